"""Ingest, second half: what all parts say of one bucket of people becomes one sorted shard, on what they granted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.activity.columns import DAY, UNDO, event_name
from engine.activity.gather import gather
from engine.activity.mapping import DataSettings
from engine.activity.order import Events, Rows, distinct, latest, settled_order
from engine.activity.parts import PartStore
from engine.activity.undo import standing
from engine.identity import KEY_BYTES, UserKeys
from engine.schema import ACTIVITY, EVENTS, POPULARITY, USER_KEY

_KEY = f"S{KEY_BYTES}"
_MOST_HALVES = 1000.0  # a float holds about as many
# What a want says when conf/data does not weigh it otherwise. Impressions and dismissals say nothing of interest.
WEIGHTS = {"view": 0.1, "click": 0.2, "cart": 0.5, "purchase": 1.0, "like": 1.0, "gift": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class Tonight:
    """What a night brings to the parts.

    parts: generations in the store, in the order of the partitions' names. places: `gather.bind` of them. standings:
    schema.STANDINGS, by key. trainable, profilable: per source code, the mask whose grant the purpose needs. sensitive:
    (I,) items whose events tell more than others, and sensitive_masks: per source, what these need besides. as_of, moments:
    microseconds since the epoch; popularity is wanted at each moment, counting nothing later. half_life: days after which
    a want counts half for popularity.
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
    )
    counts = found.counts
    events = distinct(settled_order(found.events, found.by_person))
    strangers = distinct(settled_order(found.strangers))
    counts["-duplicate"] = len(found.events) + len(found.strangers) - len(events) - len(strangers)
    before = len(events) + len(strangers)
    events = events.only(standing(events, np.ones(len(events), bool)))
    strangers = strangers.only(standing(strangers, np.zeros(len(strangers), bool)))
    counts["-undone_or_undoing"] = before - len(events) - len(strangers)

    weights = {**WEIGHTS, **data.weights}
    want = np.array([weights.get(name, 0.0) for name in EVENTS], np.float32)
    popularity = _popularity(events, strangers, want, tonight)

    trainable, profilable = _granted(found.keys, found.seals, events, tonight)
    allowed = trainable | profilable
    kept = np.flatnonzero(allowed)
    counts["-no_grant"] = len(events) - len(kept)
    counts["-anonymous"] = len(strangers)
    asked = _people_of(events)
    events, trainable, profilable = events.take(kept), trainable[kept], profilable[kept]
    # Wants and the rest are capped apart: no flood of dismissals pushes out what somebody bought.
    within = latest(events, (want[events.event] > 0).astype(np.int64), data.events_per_user)
    counts["-over_events_per_user"] = int((~within).sum())
    if not within.all():
        events, trainable, profilable = events.take(within), trainable[within], profilable[within]
    activity = _shard(found.keys, events, trainable, profilable, want, data.gift_weight)
    return Settled(
        activity,
        popularity,
        dict(counts),
        {event_name(code): int(found.expired[code]) for code in np.flatnonzero(found.expired).tolist()},
        oldest(events),
        asked,
        asked - _people_of(events),
    )


def _people_of(events: Events) -> int:
    """How many people there are in events that lie by person."""
    return int(np.count_nonzero(np.diff(events.person))) + bool(len(events))


def oldest(events: Events) -> dict[str, int]:
    """By event name, the time of the oldest, microseconds since the epoch."""
    first = np.full(len(EVENTS), np.iinfo(np.int64).max)
    np.minimum.at(first, events.event, events.ts)
    return {name: int(first[code]) for code, name in enumerate(EVENTS) if first[code] < np.iinfo(np.int64).max}


def _granted(
    keys: NDArray[np.bytes_], seals: NDArray[np.bytes_], events: Events, tonight: Tonight
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) which events may train, and which may profile. Nothing is assumed of whom the ledger does not know."""
    granted = np.zeros(len(keys), np.uint64)
    standings = tonight.standings
    if len(keys) and standings.num_rows:
        stable = np.frombuffer(tonight.keys.unsealed(keys.tobytes(), seals.tobytes()), _KEY)
        column = standings["user_key"].combine_chunks()
        known = np.frombuffer(column.buffers()[1], _KEY, len(column), column.offset * KEY_BYTES)
        place = np.minimum(np.searchsorted(known, stable), len(known) - 1)
        granted = np.where(known[place] == stable, standings["granted"].to_numpy()[place], 0).astype(np.uint64)
    has = granted[events.person]
    more = np.where(tonight.sensitive[events.item], np.array(tonight.sensitive_masks, np.uint64)[events.source], 0)
    needs = (np.array(masks, np.uint64)[events.source] | more for masks in (tonight.trainable, tonight.profilable))
    trainable, profilable = ((has & need) == need for need in needs)
    return trainable, profilable


def _popularity(events: Events, strangers: Events, want: NDArray[np.float32], tonight: Tonight) -> list[pa.Table]:
    """By moment. Each person counts once an item, by what is strongest of their wants then; each anonymous event counts alone."""
    items = len(tonight.sensitive)
    rows = np.flatnonzero(want[events.event] > 0)
    pair = (events.person[rows].astype(np.int64) << 32) | events.item[rows]
    order = np.argsort(pair, kind="stable")
    rows, pair = rows[order], pair[order]
    starts = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.empty(0, np.int64)
    item_of_pair = events.item[rows[starts]]
    alone = np.flatnonzero(want[strangers.event] > 0)
    strength, strength_alone = (
        _strength(each, places, want, tonight) for each, places in ((events, rows), (strangers, alone))
    )
    tables = []
    for moment in tonight.moments:
        fade = np.exp2(min((tonight.as_of - moment) / (DAY * tonight.half_life), _MOST_HALVES))
        weight, people = np.zeros(items), np.zeros(items, np.int64)
        if len(starts):
            strongest = np.maximum.reduceat(np.where(events.ts[rows] <= moment, strength, -1.0), starts)
            there = strongest >= 0
            weight += np.bincount(item_of_pair[there], strongest[there] * fade, items)
            people += np.bincount(item_of_pair[there], minlength=items)
        by_then = strangers.ts[alone] <= moment
        weight += np.bincount(strangers.item[alone[by_then]], strength_alone[by_then] * fade, items)
        there = people > 0
        there[strangers.item[alone[by_then]]] = True
        item = np.flatnonzero(there)
        tables.append(pa.table([pa.array(item).cast(pa.int32()), weight[item], people[item]], schema=POPULARITY))
    return tables


def _strength(events: Events, rows: Rows, want: NDArray[np.float32], tonight: Tonight) -> NDArray[np.float64]:
    """What wants count for at the night's time."""
    age = (tonight.as_of - events.ts[rows]) / (DAY * tonight.half_life)
    return want[events.event[rows]].astype(np.float64) * np.exp2(-age)


def _shard(
    keys: NDArray[np.bytes_],
    events: Events,
    trainable: NDArray[np.bool_],
    profilable: NDArray[np.bool_],
    want: NDArray[np.float32],
    gift_weight: float,
) -> pa.Table:
    """schema.ACTIVITY, by person, time, item, event, source and weight."""
    weight = np.where(events.gift, want[events.event] * np.float32(gift_weight), want[events.event])
    halves = np.frombuffer(keys.tobytes(), np.uint64).reshape(-1, 2)[events.person]
    spread = pa.FixedSizeBinaryArray.from_buffers(USER_KEY, len(events), [None, pa.py_buffer(halves)])
    columns = [spread, events.item, events.event, events.ts, weight, events.source, trainable, profilable]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column).cast(field.type)
        for field, column in zip(ACTIVITY, columns, strict=True)
    ]
    return pa.table(arrays, schema=ACTIVITY)
