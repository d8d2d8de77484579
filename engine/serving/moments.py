"""The moment of a request, as the rules see it, and what may be shown to anybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.policy import Chain, Effect, Moment, Slate
from engine.policy.rules.dismissed import dismissed_of
from engine.policy.rules.kinds import Kinds
from engine.policy.rules.pins import Pins
from engine.schema import LANES
from engine.serving.asking import Ask
from engine.serving.footing import Footing
from engine.serving.mixes import mix_of
from engine.serving.todays import Todays
from engine.snapshot import Snapshot, UserRecord

POPULAR = LANES.index("popular")
_PINNED = LANES.index("pinned")
_NO_CODES = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """What may be used of somebody: their record, and their events of today; either may be missing."""

    record: UserRecord | None
    todays: Todays | None
    version: Hashable  # of the events


NOBODY_KNOWN = Person(None, None, None)


def popular(snapshot: Snapshot, only_categories: Sequence[str] = (), region: str = "") -> Slate:
    """What may be shown to anybody, best first: the list of the region, or those of some categories before it."""
    codes = [snapshot.categories.index(name) for name in only_categories if name in snapshot.categories]
    lists = [snapshot.fallback(code) for code in sorted(set(codes))] + [snapshot.fallback(region=region)]
    item = np.concatenate([each for each, _ in lists])
    score = np.concatenate([each for _, each in lists])
    if codes:
        best = np.lexsort((item, -score))
        item, score = item[best], score[best]
        first = np.sort(np.unique(item, return_index=True)[1])
        item, score = item[first], score[first]
    return Slate.of_anyone(item, score, POPULAR)


def merged(effects: Sequence[Effect]) -> list[Effect]:
    """Effects with those of one rule and reason added up, in the order in which they first came."""
    counts: Counter[tuple[str, str]] = Counter()
    for effect in effects:
        counts[effect.rule, effect.reason] += effect.count
    return [Effect(rule, reason, count) for (rule, reason), count in counts.items() if count]


def moment_of(
    snapshot: Snapshot,
    chain: Chain,
    ask: Ask,
    made_us: int,
    stand: Footing,
    person: Person,
    shown: frozenset[int] = frozenset(),
    mass: float = 1.0,
) -> Moment:
    """What the rules may look at.

    Args:
        made_us: microseconds since the epoch. shown: items of the pages before. mass: of the person's stored wants.
    """
    names = {*ask.exclude, *ask.basket, ask.item_id} - {""}
    personal: dict[str, Any] = {}
    stored = person.record.mix if person.record is not None else None
    personal["mix"] = mix_of(stored, person.todays, stand.granted, snapshot.items.root_category, mass)
    if person.record is not None and stored is not None:
        personal["seen"] = person.record.seen
        personal["dismissed"] = dismissed_of(stored, stand.granted, snapshot.categories, snapshot.items)
    if (todays := person.todays) is not None:
        personal |= {"hidden": todays.hidden, "shown": todays.shown, "times": todays.times}
        personal["dismissed"] = np.union1d(personal.get("dismissed", _NO_CODES), todays.dismissed).astype(np.int32)
    return Moment(
        items=snapshot.items,
        categories=snapshot.categories,
        now_us=made_us,
        surface=chain.name,
        region=ask.region,
        granted=stand.granted,
        granted_today=stand.today,
        limit=ask.limit or chain.default_limit,
        exclude=shown | {code for name in names if (code := snapshot.items.code_of(name)) >= 0},
        only_categories=frozenset(ask.only_categories),
        diversity=ask.diversity,
        seed=ask.seed,
        **personal,
    )


def anyone(snapshot: Snapshot, chain: Chain, ask: Ask, made_us: int) -> Slate:
    """What may be shown to anybody: what the shop pinned, what is popular, and what is popular of kinds that have places of their
    own; to a minor, who is never profiled, without sensitive items.
    """
    slate = popular(snapshot, ask.only_categories, ask.region)
    for rule in chain.rules:
        if isinstance(rule, Kinds) and rule.kinds and rule.offered and not ask.only_categories:
            roots = [snapshot.categories.index(name) for name in rule.categories if name in snapshot.categories]
            for item, score in (snapshot.fallback(root, ask.region) for root in roots):
                new = np.flatnonzero(~np.isin(item[: rule.offered], slate.item))
                slate = slate.then(Slate.of_anyone(item[new], score[new], POPULAR))
        if isinstance(rule, Pins) and len(pinned := rule.codes(snapshot.items, made_us)):
            first = Slate.of_anyone(pinned, np.full(len(pinned), slate.score.max(initial=1.0), np.float32), _PINNED)
            slate = first.then(slate.take(np.flatnonzero(~np.isin(slate.item, pinned))))
    return slate.take(np.flatnonzero(~snapshot.items.sensitive[slate.item])) if ask.minor else slate
