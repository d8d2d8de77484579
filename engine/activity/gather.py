"""What the parts of a store hold of one bucket of people, under tonight's codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.activity.order import Events, Rows, order_of_keys
from engine.activity.parts import PartStore, Run
from engine.identity import KEY_BYTES

NOT_OFFERED, UNKNOWN_ITEM = -1, -2
_ALL_MARKS = 1 << 64
_KEY = f"S{KEY_BYTES}"


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """A bucket's people and events.

    keys, seals: (P,) of the people, by key. events: in the order of the parts. by_person: (N,) their order by person.
    strangers: anonymous events, all of person 0. counts: rows left out, by reason; expired: those past their retention, by
    event code.
    """

    keys: NDArray[np.bytes_]
    seals: NDArray[np.bytes_]
    events: Events
    by_person: Rows
    strangers: Events
    counts: Counter[str]
    expired: NDArray[np.int64]


def bind(
    store: PartStore, parts: Mapping[str, int], catalogue: pa.Array, dropped: pa.Array
) -> list[list[NDArray[np.int32]]]:
    """For each run of each part, tonight's code of each of its items, or NOT_OFFERED or UNKNOWN_ITEM.

    Args:
        parts: generations in the store, with how many runs each has.
        catalogue: ids on offer, in the order of their codes. dropped: ids that are known and not offered.
    """
    names = [store.item_ids(key, number) for key, runs in parts.items() for number in range(runs)]
    if not names:
        return [[] for _ in parts]
    together = pa.concat_arrays(names)
    code = pc.index_in(together, value_set=catalogue).fill_null(UNKNOWN_ITEM).to_numpy(zero_copy_only=False).copy()
    strange = np.flatnonzero(code < 0)
    if len(strange) and len(dropped):
        known = pc.is_in(together.take(pa.array(strange)), value_set=dropped).to_numpy(zero_copy_only=False)
        code[strange[known]] = NOT_OFFERED
    ends = np.cumsum([len(ids) for ids in names])
    split = iter(np.split(code.astype(np.int32), ends[:-1]))
    return [[next(split) for _ in range(runs)] for runs in parts.values()]


def gather(
    store: PartStore,
    parts: Sequence[str],
    places: Sequence[Sequence[NDArray[np.int32]]],
    bucket: int,
    buckets: int,
    since: NDArray[np.int64],
    until: int,
) -> Gathered:
    """Everything of one bucket of `buckets` that a night may look at.

    A person's rows all lie in the bucket of their key; anonymous rows are spread by their mark.

    Args:
        places: as `bind` gives them.
        since: (256,) by event code, the earliest time that is retained; until: the night's time. Microseconds since the epoch.
    """
    counts: Counter[str] = Counter()
    expired = np.zeros(256, np.int64)
    people: list[tuple[NDArray[np.bytes_], NDArray[np.bytes_], NDArray[np.int64]]] = []
    events, strangers = [Events.none()], [Events.none()]
    for key, of_part in zip(parts, places, strict=True):
        for number, place in enumerate(of_part):
            run = store.run(key, number)
            keys, seals, sizes, rows, anonymous = _slice(run, bucket, buckets)
            owner = np.repeat(np.arange(len(keys), dtype=np.int32), sizes)
            known, kept = _read(run, rows, owner, place, since, until, counts, expired)
            people.append((keys, seals, np.bincount(owner[kept], minlength=len(keys))))
            events.append(known)
            nobody = np.zeros(anonymous.stop - anonymous.start, np.int32)
            strangers.append(_read(run, anonymous, nobody, place, since, until, counts, expired)[0])
    keys, seals, person, by_person = _by_person(people)
    named = replace(Events.concat(events), person=person)
    return Gathered(keys, seals, named, by_person, Events.concat(strangers), counts, expired)


def _slice(
    run: Run, bucket: int, buckets: int
) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_], NDArray[np.int64], slice, slice]:
    """Keys, seals and number of rows of the bucket's people, and where their rows and the anonymous ones lie."""
    edges = [-(-65_536 * number // buckets) for number in (bucket, bucket + 1)]
    first, last = (
        len(run.keys) if edge >= 65_536 else int(np.searchsorted(run.keys, np.array(edge.to_bytes(2), _KEY)))
        for edge in edges
    )
    ends = np.concatenate([[0], run.ends])
    nobody = int(ends[-1])
    marks = run.column("mark")[nobody:]
    low, high = (
        len(marks) if edge >= _ALL_MARKS else int(np.searchsorted(marks, np.uint64(edge)))
        for edge in (-(-_ALL_MARKS * number // buckets) for number in (bucket, bucket + 1))
    )
    return (
        run.keys[first:last],
        run.seals[first:last],
        np.diff(ends[first : last + 1]),
        slice(int(ends[first]), int(ends[last])),
        slice(nobody + low, nobody + high),
    )


def _read(
    run: Run,
    rows: slice,
    person: NDArray[np.int32],
    place: NDArray[np.int32],
    since: NDArray[np.int64],
    until: int,
    counts: Counter[str],
    expired: NDArray[np.int64],
) -> tuple[Events, NDArray[np.bool_]]:
    """The rows that a night may look at, and which of the rows they are."""
    event, ts, item = run.column("event")[rows], run.column("ts")[rows], place[run.column("item")[rows]]
    sold, early, retained = item >= 0, ts <= until, ts >= since[event]
    kept = sold & early & retained
    if not kept.all():
        counts["-not_offered"] += int((item == NOT_OFFERED).sum())
        counts["unknown_item"] += int((item == UNKNOWN_ITEM).sum())
        counts["-after_as_of"] += int((sold & ~early).sum())
        expired += np.bincount(event[sold & early & ~retained], minlength=256)
    columns: dict[str, Any] = {"person": person, "item": item, "event": event, "ts": ts}
    columns |= {name: run.column(name)[rows] for name in Events.__slots__ if name not in columns}
    if not kept.all():
        columns = {name: column[kept] for name, column in columns.items()}
    return Events(**columns), kept


def _by_person(
    people: list[tuple[NDArray[np.bytes_], NDArray[np.bytes_], NDArray[np.int64]]],
) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_], NDArray[np.int32], Rows]:
    """Keys and seals over all runs; the person of each row; and the rows by person, whole blocks moved, none sorted."""
    if not people:
        return np.empty(0, _KEY), np.empty(0, _KEY), np.empty(0, np.int32), np.empty(0, np.int64)
    keys, seals, sizes = (np.concatenate([each[column] for each in people]) for column in range(3))
    there = sizes > 0  # nothing is to be known of those of whom nothing is left
    keys, seals, sizes = keys[there], seals[there], sizes[there]
    order, new = order_of_keys(keys)
    code = np.empty(len(keys), np.int32)
    code[order] = np.cumsum(new) - 1
    starts = (np.cumsum(sizes) - sizes)[order]
    moved = sizes[order]
    rows = np.repeat(starts - (np.cumsum(moved) - moved), moved) + np.arange(int(sizes.sum()))
    first = order[new]
    return keys[first], seals[first], np.repeat(code, sizes), rows
