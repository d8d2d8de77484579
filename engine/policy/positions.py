"""Positions that rules keep, compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

_FLAGS = types.Array(types.bool_, 1, "C", readonly=True)
_I1 = types.Array(types.int32, 1, "C", readonly=True)


@njit(types.int64[::1](_FLAGS), cache=True)
def unmarked(flags: Any) -> Any:
    """Where flags are not set, ascending."""
    kept, left = np.empty(len(flags), np.int64), 0
    for i in range(len(flags)):
        kept[left] = i
        left += not flags[i]
    return kept[:left]


@njit(types.int64[::1](_I1, _FLAGS), cache=True)
def unmarked_of(items: Any, flags: Any) -> Any:
    """Positions of the items whose flag is not set; flags: (I,) of the catalogue."""
    kept, left = np.empty(len(items), np.int64), 0
    for i in range(len(items)):
        if not 0 <= items[i] < len(flags):
            raise IndexError("an item code lies outside the snapshot")
        kept[left] = i
        left += not flags[np.uint64(items[i])]
    return kept[:left]


@njit(types.int64[::1](_I1, types.int64), cache=True)
def foremost(first: Any, count: Any) -> Any:
    """(count,) some positions of 0..count-1, none twice, and behind them the others in their order."""
    order, taken, place = np.empty(count, np.int64), np.zeros(count, np.bool_), 0
    if len(first) > count:
        raise IndexError("more positions than candidates")
    for each in first:
        if not 0 <= each < count:
            raise IndexError("a position lies outside the slate")
        order[place], taken[np.uint64(each)] = each, True
        place += 1
    for i in range(count):
        if not taken[i] and place < count:
            order[place] = i
            place += 1
    return order


@njit(types.int64[::1](_FLAGS, _FLAGS, types.int64, types.int64, types.int64), cache=True)
def raised(wanted: Any, stays: Any, limit: Any, floor: Any, first: Any) -> Any:
    """(n,) positions in an order in which at least `floor` of the first `limit` are wanted ones, if there are as many; (0,) where
    nothing moves. What comes up makes them places spread over the lower part, the better ones higher; what stood lowest goes
    below the list.

    Args:
        wanted, stays: (n,) flags; what stays makes room for nothing.
        first: the first place, 0-based, that something may come up to.
    """
    count = len(wanted)
    limit = min(limit, count)
    if len(stays) != count:
        raise ValueError("flags differ in length")
    lacking = floor
    for row in range(limit):
        lacking -= wanted[row]
    if lacking <= 0:
        return np.empty(0, np.int64)
    coming, found = np.empty(lacking, np.int64), 0
    for row in range(limit, count):
        if wanted[row] and found < lacking:
            coming[found] = row
            found += 1
    going, gone = np.zeros(count, np.bool_), 0
    for row in range(limit - 1, -1, -1):
        if gone < found and not wanted[row] and not stays[row]:
            going[row] = True
            gone += 1
    found = gone  # a list in which everything stays has no room
    if found == 0:
        return np.empty(0, np.int64)
    first = max(0, min(first, limit - found))
    reserved = np.zeros(limit, np.bool_)
    for nth in range(found):
        reserved[first + ((limit - first) * (nth + 1)) // found - 1] = True
    order, used = np.empty(count, np.int64), np.zeros(count, np.bool_)
    row = 0
    for place in range(limit):
        if not reserved[place]:
            while going[row]:
                row += 1
            order[place] = row
            reserved[place] = wanted[row]
            row += 1
    nth, row = 0, 0
    for place in range(limit):
        if reserved[place]:  # all places of wanted ones: the better stands higher, whether it came up or was there
            while row < limit and not wanted[row]:
                row += 1
            if row < limit:
                order[place] = row
                row += 1
            else:
                order[place] = coming[nth]
                nth += 1
        used[order[place]] = True
    place = limit
    for row in range(count):
        if not used[row]:
            order[place] = row
            place += 1
    return order


@cache
def falling(count: int) -> NDArray[np.float32]:
    """(count,) relevance by place, from 1 down to 1 / count; read-only.

    The place stands for the score: scores of the lanes fall off steeply, so that on any linear scale all but the first few would
    look equally poor, and variety or the mix alone would choose among them.
    """
    found: NDArray[np.float32] = np.arange(count, 0, -1, dtype=np.float32) / np.float32(count)
    found.flags.writeable = False
    return found
