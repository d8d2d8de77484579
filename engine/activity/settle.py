"""Ingest, second half: what all parts say of one bucket of people becomes one sorted shard, on what they granted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.activity.categories import Categories
from engine.activity.columns import DAY, UNDO, event_name
from engine.activity.gather import Gathered, gather
from engine.activity.gifts import mark_gifts
from engine.activity.granted import granted_events
from engine.activity.keys import KEY, column, find
from engine.activity.linked import Moved
from engine.activity.mapping import DataSettings
from engine.activity.merge import ROW, Packed
from engine.activity.order import Events
from engine.activity.parts import PartStore
from engine.activity.undo import standing
from engine.activity.wants import popular
from engine.identity import UserKeys
from engine.schema import EVENTS, POPULARITY

# What a want says when conf/data does not weigh it otherwise. Impressions and dismissals say nothing of interest.
WEIGHTS = {"view": 0.1, "click": 0.2, "cart": 0.5, "purchase": 1.0, "like": 1.0, "gift": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class Tonight:
    """What a night brings to the parts.

    parts: generations in the store, in the order of the partitions' names. places: `gather.bind` of them. standings:
    schema.STANDINGS, by key. trainable, profilable: per source code, the mask whose grant the purpose needs. sensitive:
    (I,) items whose events tell more than others, and sensitive_masks: per source, what these need besides. as_of, moments:
    microseconds since the epoch; popularity is wanted at each moment, counting nothing later. half_life: days after which
    a want counts half for popularity. categories: whose ids `places` counts behind the items.
    """

    data: DataSettings
    store: PartStore
    parts: tuple[str, ...]
    places: list[list[NDArray[np.int32]]]
    keys: UserKeys
    standings: pa.Table
    trainable: tuple[int, ...]
    profilable: tuple[int, ...]
    sensitive: NDArray[np.bool_]
    sensitive_masks: tuple[int, ...]
    as_of: int
    moments: tuple[int, ...]
    half_life: float
    moved: Moved | None = None  # whose ids are linked; the standings then have the persons too
    categories: Categories = field(default_factory=Categories.none)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """A bucket in order: schema.ACTIVITY of those who granted something; popularity of all, by moment asked for.

    counts: rows left out, by reason. expired: rows past their retention, by event. oldest: microseconds, by event, of what
    is kept. people, unprofiled: how many there are, and of how many nothing is kept for want of a grant.
    """

    activity: pa.Table
    popularity: list[pa.Table]
    counts: dict[str, int]
    expired: dict[str, int]
    oldest: dict[str, int]
    people: int
    unprofiled: int


def interest(data: DataSettings) -> NDArray[np.float32]:
    """(len(EVENTS),) what an event of each kind says of interest; nothing is wanted by dismissing."""
    weights = {**WEIGHTS, **data.weights, "dismiss_category": 0.0}
    return np.array([weights.get(name, 0.0) for name in EVENTS], np.float32)


def retained_since(data: DataSettings, as_of: int) -> NDArray[np.int64]:
    """(256,) by event code, the earliest time that is retained at a night's time, microseconds since the epoch."""
    ever = int(np.iinfo(np.int64).min)
    since = np.full(256, ever)
    for name, days in data.retention_days.items():
        code = EVENTS.index(name)
        since[code] = since[UNDO + code] = max(as_of - int(days * DAY), ever)  # with an event goes what takes it back
    return since


def settle_bucket(bucket: int, buckets: int, tonight: Tonight) -> Settled:
    """Deduplicate, undo, drop what nobody granted, cap and sort one bucket of `buckets`."""
    data = tonight.data
    found = gather(
        tonight.store,
        tonight.parts,
        tonight.places,
        bucket,
        buckets,
        retained_since(data, tonight.as_of),
        tonight.as_of,
        tonight.moved,
    )
    counts = found.counts
    events, ends = _standing(found)
    counts["-undone_or_undoing"] = len(found.events) - len(events)
    events, ends = tonight.categories.resolved(events, len(tonight.sensitive)), ends[:-1]
    known, strangers = np.split(events, [ends[-1] if len(ends) else 0])
    granted, erased = _ledger(found, tonight)
    named = len(known)
    known, ends = _remembered(known, ends, erased)
    counts["-erased"], counts["-anonymous"] = named - len(known), len(strangers)
    mark_gifts(known, ends)
    want = np.zeros(256, np.float32)  # as wide as a code, for compiled code does not look whether a place is there
    want[: len(EVENTS)] = interest(data)
    when = (tonight.as_of, tonight.moments, tonight.half_life)
    popularity = popular(known, ends, strangers, want, when, len(tonight.sensitive))
    kept = granted_events(
        (found.keys, granted),
        (known, ends),
        tonight.sensitive,
        (tonight.sensitive_masks, tonight.trainable, tonight.profilable),
        want,
        data.gift_weight,
        data.events_per_user,
    )
    counts["-no_grant"], counts["-over_events_per_user"] = kept.no_grant, kept.over
    asked = int(np.count_nonzero(np.diff(ends, prepend=0)))
    return Settled(
        kept.activity,
        [_table(*each) for each in zip(*popularity, strict=True)],
        dict(counts),
        {event_name(code): int(found.expired[code]) for code in np.flatnonzero(found.expired).tolist()},
        _by_name(kept.oldest),
        asked,
        asked - kept.people,
    )


def _standing(found: Gathered) -> tuple[Packed, NDArray[np.int64]]:
    """The events after cancellations, and where those of each person end."""
    events, ends = found.events, found.ends
    if not (events["event"] >= UNDO).any():
        return events, ends
    person = np.repeat(np.arange(len(ends), dtype=np.int32), np.diff(ends, prepend=0))
    stands = standing(
        Events(person=person, **{name: events[name] for name in ROW.names or ()}), person < len(found.keys)
    )
    return events[stands], np.concatenate([[0], np.cumsum(stands)])[ends]


def _remembered(events: Packed, ends: NDArray[np.int64], erased: NDArray[np.int64]) -> tuple[Packed, NDArray[np.int64]]:
    """The events after each person's erasure, and where those of each end.

    What was erased counts for nothing, not even for what is popular: the person asked to be forgotten, not to be withdrawn.
    """
    if not erased.any():
        return events, ends
    sizes = np.diff(ends, prepend=0)
    kept = (events["ts"] > np.repeat(erased, sizes)) | np.repeat(erased == 0, sizes)
    return events[kept], np.concatenate([[0], np.cumsum(kept)])[ends]


def _ledger(found: Gathered, tonight: Tonight) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(P,) what each person granted, and up to when they are erased; nothing is assumed of whom the ledger does not know."""
    granted, erased = np.zeros(len(found.keys), np.uint64), np.zeros(len(found.keys), np.int64)
    standings = tonight.standings
    if len(granted):
        stable = np.frombuffer(tonight.keys.unsealed(found.keys.tobytes(), found.seals.tobytes()), KEY)
        place, known = find(column(standings, "user_key"), stable)
        granted[known] = standings["granted"].to_numpy()[place[known]]
        erased[known] = standings["erased_at"].to_numpy()[place[known]]
    return granted, erased


def _by_name(oldest: dict[int, int]) -> dict[str, int]:
    """The oldest of each event; several codes may be one."""
    return {event_name(code): moment for code, moment in sorted(oldest.items(), key=lambda each: -each[1])}


def _table(weight: NDArray[np.float64], people: NDArray[np.int64], there: NDArray[np.bool_]) -> pa.Table:
    item = np.flatnonzero(there)
    return pa.table([pa.array(item).cast(pa.int32()), weight[item], people[item]], schema=POPULARITY)
