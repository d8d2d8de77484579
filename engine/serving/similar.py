"""Items like an item: those wanted together with it, then those whose vectors point the same way."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from engine.consent.vocabulary import Level
from engine.errors import UnknownThing
from engine.policy import Moment, Slate
from engine.schema import LANES, NO_ITEM, NOBODY
from engine.serving.asking import NON_PROFILED, Answer, Ask, Line
from engine.serving.moments import merged
from engine.serving.reasons import SIMILAR
from engine.serving.replica import Replica
from engine.snapshot import ItemTable

_LANE = LANES.index("similar")
_SURFACE = "item_page"  # where such a list is mostly shown, so its policy is the default here
# The rules may remove some, so more are offered than are wanted.
_SPARE = 3


def similar(replica: Replica, ask: Ask) -> Answer:
    """Items like `ask.item_id`, nearest first, through the surface's chain.

    Raises:
        UnknownThing: the snapshot has no such item, or there is no such surface.
        NoSnapshot: nothing is served yet.
    """
    surface = ask.surface or (_SURFACE if _SURFACE in replica.policies else "")
    chain = replica.chain(surface, "context.surface")
    limit = ask.limit or chain.default_limit
    made_us = time.time_ns() // 1000
    with replica.lease() as served:
        items = served.snapshot.items
        code = items.code_of(ask.item_id)
        if code < 0:
            raise UnknownThing(
                f"There is no item '{ask.item_id}' in snapshot {served.name}.",
                "Send an item of the catalogue; a new one is known after the next night.",
                "item_id",
            )
        slate = _near(items, code, limit * _SPARE)
        if ask.minor:
            slate = slate.take(np.flatnonzero(~items.sensitive[slate.item]))
        moment = Moment(
            items=items,
            categories=served.snapshot.categories,
            now_us=made_us,
            surface=chain.name,
            region=ask.region,
            granted=NOBODY,
            limit=limit,
            exclude=frozenset({code, *(items.code_of(name) for name in ask.basket)}),
            only_categories=frozenset(),
            diversity=0.0,  # the caller asked for likeness
            seen=None,
        )
        outcome = chain.run(slate, moment)
        lines = [
            Line(items.id_of(item), score, LANES[_LANE], SIMILAR)
            for item, score in zip(outcome.slate.item.tolist(), outcome.slate.score.tolist(), strict=True)
        ]
        return Answer(
            lines=lines,
            mode=NON_PROFILED,
            reason="non_personal",
            level=Level.NONE,
            profile="",
            manifest=served.snapshot.manifest,
            sequence=0,
            made_us=made_us,
            policy=f"{chain.name}@{chain.version}",
            global_privacy_control=ask.global_privacy_control,
            withheld=merged(outcome.effects),
        )


def _near(items: ItemTable, code: int, count: int) -> Slate:
    together = items.neighbour[code]
    used = together != NO_ITEM
    item, score = together[used], items.likeness[code][used]
    if len(item) < count:
        more, cosine = _by_vector(items, code, item, count - len(item))
        # Cosines follow the co-visits in the list, so their scores must not stand above them.
        ceiling = float(score.min()) if len(score) else 1.0
        item = np.concatenate([item, more])
        score = np.concatenate([score, np.minimum(cosine, np.float32(ceiling))])
    return Slate.of_anyone(item, score, _LANE)


def _by_vector(
    items: ItemTable, code: int, known: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest items by cosine, those with a positive one, without the item itself and those known."""
    vector = items.vector
    dots = vector @ vector[code]
    lengths = np.sqrt(np.einsum("ij,ij->i", vector, vector)) * np.linalg.norm(vector[code])
    cosine = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    cosine[code] = cosine[known] = 0.0
    best = np.argsort(-cosine, kind="stable")[:count]
    best = best[cosine[best] > 0]
    return best.astype(np.int32), cosine[best]
