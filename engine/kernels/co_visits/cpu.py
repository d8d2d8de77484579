"""Co-visit counts as sorted sparse pairs, so that memory follows the pairs that occur and not the catalogue squared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAIRS_AT_ONCE = 20_000_000


def co_visits(
    starts: NDArray[np.int64], item: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sorted codes `i * count + j` of the pairs that occur, and how many people wanted both.

    Within a person the items must be distinct.
    """
    sizes = np.diff(starts)
    pairs = np.cumsum(sizes.astype(np.int64) ** 2)
    codes, people = np.empty(0, np.int64), np.empty(0, np.float64)
    first = 0
    while first < len(sizes):
        done = pairs[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(pairs, done + PAIRS_AT_ONCE, "right")))
        more, seen = np.unique(_pairs(starts[first : last + 1], item, count), return_counts=True)
        codes, people = add(codes, people, more, seen.astype(np.float64))
        first = last
    return codes, people


def add(
    codes: NDArray[np.int64], people: NDArray[np.float64], more: NDArray[np.int64], seen: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The sum of two sparse counts, each sorted by code."""
    both, counts = np.concatenate([codes, more]), np.concatenate([people, seen])
    order = np.argsort(both, kind="stable")  # two rising runs: merged in one pass
    both = both[order]
    edges = np.flatnonzero(np.diff(both, prepend=-1))
    return both[edges], np.add.reduceat(counts[order], edges)


def _pairs(starts: NDArray[np.int64], item: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    sizes = np.diff(starts)
    left = np.repeat(np.arange(starts[0], starts[-1]), np.repeat(sizes, sizes))
    lengths = np.repeat(sizes, sizes)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    right = np.repeat(np.repeat(starts[:-1], sizes), lengths) + offset
    codes: NDArray[np.int64] = item[left].astype(np.int64) * count + item[right]
    return codes
