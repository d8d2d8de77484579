"""The list that a server on a snapshot would give, from the very calls of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.policy import Chain, Effect, Moment, Slate, allowed, make_list
from engine.policy.rules.dismissed import dismissed_of
from engine.schema import LANES, NOBODY
from engine.snapshot import Snapshot, UserRecord

_POPULAR = LANES.index("popular")


@dataclass(frozen=True, slots=True)
class Served:
    """A list, what it cost, and whether anything of the person was used."""

    slate: Slate
    effects: tuple[Effect, ...]
    profiled: bool


def served(
    snapshot: Snapshot,
    chain: Chain,
    record: UserRecord | None,
    granted: int,
    now: int,
    region: str = "",
    taken: frozenset[int] = frozenset(),
    limit: int = 0,
) -> Served:
    """One list.

    Args:
        record: what the snapshot knows of the person; None for a stranger.
        granted: mask of what the person allows, after the dial.
        now: microseconds since the epoch.
        taken: items that are not wanted.
        limit: 0: the surface's own.
    """
    popular = Slate.of_anyone(*snapshot.fallback(region=region), _POPULAR)

    def moment(record: UserRecord | None, granted: int) -> Moment:
        known: dict[str, Any] = {}
        if record is not None:
            gone = dismissed_of(record.mix, granted, snapshot.categories, snapshot.items)
            known = {"seen": record.seen, "mix": record.mix, "dismissed": gone}
        return Moment(
            items=snapshot.items,
            categories=snapshot.categories,
            now_us=now,
            surface=chain.name,
            region=region,
            granted=granted,
            limit=limit or chain.default_limit,
            exclude=taken,
            **known,
        )

    if record is not None:
        candidates = record.candidates
        if (allowed(candidates.basis, granted) & (candidates.basis != np.uint64(NOBODY))).any():
            outcome = make_list(chain, candidates, popular, moment(record, granted))
            return Served(outcome.slate, outcome.effects, True)
    # Where nothing personal may be used, nothing may differ from what a stranger gets.
    outcome = chain.run(popular, moment(None, NOBODY))
    return Served(outcome.slate, outcome.effects, False)
