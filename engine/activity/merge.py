"""The compiled half of settling: each person's rows of all runs in one order, each event once.

A person's rows of a run are in order already, so that their rows of all runs are a few ascending stretches, which are merged
(natural merge sort, Knuth, The Art of Computer Programming 3, 5.2.4): as a rule the days follow one another, and nothing moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

# A row is half a cache line, so that the few that a person has in a run are fetched at once.
ROW = np.dtype(
    [
        ("ts", np.int64),
        ("mark", np.uint64),
        ("value", np.float64),
        ("item", np.int32),
        ("event", np.uint8),
        ("source", np.uint8),
        ("gift", np.bool_),
    ],
    align=True,
)
Packed = NDArray[Any]  # (N,) of ROW; items are places of tonight's catalogue
NOT_OFFERED, UNKNOWN_ITEM = -1, -2  # places of items that it does not offer
LEFT_OUT = ("-not_offered", "unknown_item", "-after_as_of", "-duplicate")


@njit(cache=True, nogil=True)
def merged(
    rows: Packed,
    blocks: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    since: NDArray[np.int64],
    until: int,
    settled: Packed,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The rows that a night may look at, by person, in settled order, of several with one mark the last.

    Args:
        blocks: (P + 1,) where each person's blocks begin and end, the last person being nobody, whose rows lie by mark;
            (B,) the blocks' first rows and (B,) how many rows they have.
        since: (256,) by event code, the earliest time that is retained; until: the night's time. Microseconds.
        settled: as long as `rows`, to be filled.

    Returns:
        (P,) where those of each person end; rows left out as LEFT_OUT; (256,) rows past retention, by event code.
    """
    first, starts, sizes = blocks
    people, most = len(first) - 1, 0
    for person in range(people):
        most = max(most, sizes[first[person] : first[person + 1]].sum())
    ends = np.empty(people, np.int64)
    left_out, expired = np.zeros(4, np.int64), np.zeros(256, np.int64)
    order, spare, bounds = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most + 1, np.int64)
    table = np.empty(_slots(most), np.int64)
    at = 0
    for person in range(people):
        count = 0
        for block in range(first[person], first[person + 1]):
            for row in range(starts[block], starts[block] + sizes[block]):
                if rows[row].item < 0:
                    left_out[-1 - rows[row].item] += 1
                elif rows[row].ts > until:
                    left_out[2] += 1
                elif rows[row].ts < since[rows[row].event]:
                    expired[rows[row].event] += 1
                else:
                    order[count] = row
                    count += 1
        nobody = person == people - 1
        _sort(order[:count], spare, bounds, rows, nobody)
        if count > 1 and not nobody:
            _drop_repeated(order[:count], table, rows)
        for each in range(count):
            row = order[each]
            if row < 0 or (nobody and each + 1 < count and rows[order[each + 1]].mark == rows[row].mark):
                left_out[3] += 1
            else:
                settled[at] = rows[row]
                at += 1
        ends[person] = at
    return ends, left_out, expired


@njit(cache=True, nogil=True, inline="always")
def _above(one: Any, other: Any, by_mark: bool) -> bool:
    """Whether a row comes after another."""
    if by_mark and one.mark != other.mark:
        return bool(one.mark > other.mark)
    if one.ts != other.ts:
        return bool(one.ts > other.ts)
    if one.item != other.item:
        return bool(one.item > other.item)
    if one.event != other.event:
        return bool(one.event > other.event)
    if one.source != other.source:
        return bool(one.source > other.source)
    if one.gift != other.gift:
        return bool(one.gift)
    if np.isnan(one.value) != np.isnan(other.value):
        return bool(np.isnan(one.value))
    if one.value > other.value or one.value < other.value:
        return bool(one.value > other.value)
    return bool(one.mark > other.mark)


@njit(cache=True, nogil=True)
def _sort(
    order: NDArray[np.int64], spare: NDArray[np.int64], bounds: NDArray[np.int64], rows: Packed, by_mark: bool
) -> None:
    """Sort a person's rows in place, by merging the ascending stretches that they are made of."""
    runs = 0
    bounds[0] = 0
    for at in range(1, len(order)):
        if _above(rows[order[at - 1]], rows[order[at]], by_mark):
            runs += 1
            bounds[runs] = at
    runs += 1
    bounds[runs] = len(order)
    while runs > 1:
        pairs = 0
        for run in range(0, runs, 2):
            low = bounds[run]
            if run + 1 < runs:
                _join(order, low, bounds[run + 1], bounds[run + 2], spare, rows, by_mark)
            bounds[pairs] = low
            pairs += 1
        bounds[pairs] = len(order)
        runs = pairs


@njit(cache=True, nogil=True)
def _join(
    order: NDArray[np.int64], low: int, middle: int, high: int, spare: NDArray[np.int64], rows: Packed, by_mark: bool
) -> None:
    """Merge two neighbouring stretches, the left one first where they tie."""
    while low < middle and not _above(rows[order[low]], rows[order[middle]], by_mark):
        low += 1  # lies right
    length = middle - low
    for each in range(length):
        spare[each] = order[low + each]
    left, right, into = 0, middle, low
    while left < length:
        if right < high and _above(rows[spare[left]], rows[order[right]], by_mark):
            order[into] = order[right]
            right += 1
        else:
            order[into] = spare[left]
            left += 1
        into += 1


@njit(cache=True, nogil=True)
def _drop_repeated(order: NDArray[np.int64], table: NDArray[np.int64], rows: Packed) -> None:
    """Put -1 for all but the last of several with one mark; a cap by time drops the last one last too."""
    slots = _slots(len(order))
    table[:slots] = -1
    for at in range(len(order) - 1, -1, -1):
        mark = rows[order[at]].mark
        slot = np.int64(mark & np.uint64(slots - 1))  # marks are hashes
        while table[slot] >= 0 and rows[table[slot]].mark != mark:
            slot = (slot + 1) & (slots - 1)
        if table[slot] >= 0:
            order[at] = -1
        else:
            table[slot] = order[at]


@njit(cache=True, nogil=True, inline="always")
def _slots(many: int) -> int:
    """Of a hash table that is at most half full: a power of two."""
    slots = 2
    while slots < 2 * many:
        slots *= 2
    return slots
