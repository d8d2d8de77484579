"""What the parts of a store hold of one bucket of people, under tonight's codes and in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.activity.keys import KEY, Keys, find
from engine.activity.linked import Moved, within
from engine.activity.merge import LEFT_OUT, NOT_OFFERED, ROW, UNKNOWN_ITEM, Packed, merged
from engine.activity.order import order_of_keys
from engine.activity.parts import PartStore, Run
from engine.errors import DataError

_ALL_MARKS = 1 << 64


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """A bucket's people and events.

    keys, seals: (P,) of the people, by key. events: (N,) by person in settled order, each once; after the people, the
    anonymous ones by mark. ends: (P + 1,) where those of each end. counts: rows left out, by reason; expired: those past
    their retention, by event code.
    """

    keys: NDArray[np.bytes_]
    seals: NDArray[np.bytes_]
    events: Packed
    ends: NDArray[np.int64]
    counts: Counter[str]
    expired: NDArray[np.int64]


def bind(
    store: PartStore, parts: Mapping[str, int], catalogue: pa.Array, dropped: pa.Array
) -> list[list[NDArray[np.int32]]]:
    """For each run of each part, tonight's code of each of its items, or NOT_OFFERED or UNKNOWN_ITEM.

    Args:
        parts: generations in the store, with how many runs each has.
        catalogue: ids on offer and Categories.ids, in the order of their codes. dropped: ids that are known and not offered.
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
    moved: Moved | None = None,
) -> Gathered:
    """Everything of one bucket of `buckets` that a night may look at.

    A person's rows all lie in the bucket of their key, but for those of linked ids; anonymous rows are spread by their mark.

    Args:
        places: as `bind` gives them.
        since: (256,) by event code, the earliest time that is retained; until: the night's time. Microseconds since the epoch.
        moved: ids whose rows count as those of the person that they belong to, in the bucket of that one's key.

    Raises:
        DataError: a part is damaged, so that compiled code would read what is not there.
    """
    visitors = moved.into(bucket, buckets) if moved is not None else None
    found = [
        (run, place, lies)
        for key, of_part in zip(parts, places, strict=True)
        for run, place in zip((store.run(key, number) for number in range(len(of_part))), of_part, strict=True)
        for lies in (_slice(run, bucket, buckets, moved), *([_visiting(run, visitors)] if visitors is not None else []))
    ]
    nobody = [lies.anonymous.stop - lies.anonymous.start for _, _, lies in found]
    everybody = np.concatenate([np.empty(0, KEY), *(lies.keys for _, _, lies in found)])
    seals = np.concatenate([np.empty(0, KEY), *(lies.seals for _, _, lies in found)])
    size = np.concatenate([np.empty(0, np.int64), *(lies.sizes for _, _, lies in found), np.array(nobody, np.int64)])
    if (size < 0).any():
        raise DataError(f"A part in {store.root} is damaged: rows end before they begin.", "Remove the store of parts.")
    rows, at = np.empty(int(size.sum()), ROW), 0
    for anonymous in (False, True):
        for run, place, lies in found:
            at = _pack(run, lies.anonymous if anonymous else lies.rows, place, rows, at)
    here = np.flatnonzero(np.concatenate([np.empty(0, bool), *(lies.here for _, _, lies in found)]))
    order, new = order_of_keys(everybody[here])
    order = here[order]
    # The blocks of each person, then those of nobody; of rows that are another bucket's, none.
    block = np.concatenate([order, np.arange(len(everybody), len(size))])
    first = np.concatenate([np.flatnonzero(new), [len(order), len(block)]])
    blocks = (first, (np.cumsum(size) - size)[block], size[block])
    events = np.empty_like(rows)  # NumPy's own memory comes in large pages, that of compiled code does not
    ends, left_out, expired = merged(rows, blocks, since, until, events)
    there = np.diff(ends, prepend=0) > 0  # nothing is to be known of those of whom nothing is left
    there[-1] = True
    whose = order[new][there[:-1]]
    counts = Counter(dict(zip(LEFT_OUT, left_out.tolist(), strict=True)))
    return Gathered(everybody[whose], seals[whose], events[: ends[-1]], ends[there], counts, expired)


class _Lies(NamedTuple):
    """Where a bucket lies in a run: keys, seals and number of rows of its people, and who of them is not settled elsewhere; their
    rows, and the anonymous ones.
    """

    keys: Keys
    seals: Keys
    sizes: NDArray[np.int64]
    here: NDArray[np.bool_]
    rows: slice | NDArray[np.int64]
    anonymous: slice


def _slice(run: Run, bucket: int, buckets: int, moved: Moved | None) -> _Lies:
    people = within(run, bucket, buckets)
    first, last = people.start, people.stop
    ends = np.concatenate([[0], run.ends])
    nobody = int(ends[-1])
    marks = run.column("mark")[nobody:]
    low, high = (
        len(marks) if edge >= _ALL_MARKS else int(np.searchsorted(marks, np.uint64(edge)))
        for edge in (-(-_ALL_MARKS * number // buckets) for number in (bucket, bucket + 1))
    )
    keys = run.keys[people]
    here = np.ones(len(keys), bool)
    if moved is not None:
        here[find(moved.keys, keys)[1]] = False
    return _Lies(
        keys,
        run.seals[people],
        np.diff(ends[first : last + 1]),
        here,
        slice(int(ends[first]), int(ends[last])),
        slice(nobody + low, nobody + high),
    )


def _visiting(run: Run, visitors: Moved) -> _Lies:
    """The rows of linked ids, wherever they lie, under the keys of their persons."""
    place = np.searchsorted(run.keys, visitors.keys)  # few: as numbers, all of the run's would be looked at
    there = np.flatnonzero(place < len(run.keys))
    there = there[run.keys[place[there]] == visitors.keys[there]]
    at = place[there]
    starts = np.concatenate([[0], run.ends])[at]
    sizes = run.ends[at] - starts
    ends = np.cumsum(sizes)
    rows = np.arange(sizes.sum()) + np.repeat(starts - (ends - sizes), sizes)
    return _Lies(visitors.to[there], visitors.seals[there], sizes, np.ones(len(there), bool), rows, slice(0, 0))


def _pack(run: Run, rows: slice | NDArray[np.int64], place: NDArray[np.int32], into: Packed, at: int) -> int:
    """Put some rows of a run, with places for items, among the others from `at` on; where they end."""
    packed = into[at : at + (rows.stop - rows.start if isinstance(rows, slice) else len(rows))]
    for name in ROW.names or ():
        column = run.column(name)[rows]
        packed[name] = place[column] if name == "item" else column
    return at + len(packed)
