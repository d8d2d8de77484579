"""Compiled spacing of equal codes: how often each stands in the window is counted as the window moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from engine.kernels.rerank.compiled import inner

# Compiled when imported, so before a server listens; read-only, for what is mapped from a snapshot is.
_CODES = types.Array(types.int32, 1, "C", readonly=True)
_SPREAD = np.uint32(2654435769)  # 2^32 over the golden ratio: near codes fall far apart (Knuth 1998, section 6.4)


@inner()
def _group(values: Any, bits: Any, holder: Any, group: Any) -> Any:
    """Number the codes 0.. as they first appear, by open addressing; negative ones -1. Returns how many there are."""
    shift, mask = np.uint32(32 - bits), (1 << bits) - 1
    groups = 0
    for i in range(len(values)):
        value = values[i]
        if value < 0:
            group[i] = -1
            continue
        slot = np.int64(np.uint32(np.uint32(value) * _SPREAD) >> shift)
        while holder[slot] >= 0 and values[holder[slot]] != value:
            slot = (slot + 1) & mask
        if holder[slot] < 0:
            holder[slot] = i
            group[i] = groups
            groups += 1
        else:
            group[i] = group[holder[slot]]
    return groups


@inner()
def _place(group: Any, left: Any, near: Any, after: Any, keep: Any, window: Any, most: Any, placed: Any) -> None:
    """Fill placed from the chain of candidates, which `after[count]` begins."""
    count = len(group)
    free = 0  # candidates left that fit
    for i in range(count):
        after[i] = i + 1
        free += group[i] < 0 or most > 0
        if group[i] >= 0:
            left[group[i]] += 1
    after[count] = 0
    for place in range(keep):
        if place >= window:
            gone = group[placed[place - window]]
            if gone >= 0:
                near[gone] -= 1
                if near[gone] == most - 1:
                    free += left[gone]
        before = count
        i = after[count]
        if free > 0:
            while group[i] >= 0 and near[group[i]] >= most:
                before, i = i, after[i]
        after[before] = after[i]
        placed[place] = i
        own = group[i]
        if own < 0:
            free -= 1
            continue
        free -= near[own] < most
        left[own] -= 1
        near[own] += 1
        if near[own] == most:
            free -= left[own]
    i = after[count]
    for place in range(keep, count):
        placed[place] = i
        i = after[i]


@njit(types.int32[::1](_CODES, types.int64, types.int64, types.int64), cache=True, nogil=True)
def space(values: Any, keep: Any, window: Any, most: Any) -> Any:
    """As at the front door."""
    count = len(values)
    bits = 4
    while 1 << bits < 2 * count:
        bits += 1
    placed = np.empty(count, np.int32)
    room = np.empty((2, count + 1), np.int32)
    tally = np.zeros((2, count), np.int32)  # of each group, candidates left and places in the window
    group, after = room[0, :count], room[1]
    holder = np.full(1 << bits, -1, np.int32)  # a candidate that has the code
    _group(values, bits, holder, group)
    _place(group, tally[0], tally[1], after, max(0, min(keep, count)), max(1, window), most, placed)
    return placed
