"""The simple rankers that a served list must beat, in the same run on the same people."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.schema import NO_ITEM

I32 = NDArray[np.int32]
_PEOPLE_AT_ONCE = 256


def popularity(people: int, shares: NDArray[np.float64], k: int, hidden: tuple[NDArray[np.int64], I32] | None) -> I32:
    """(U, k) the same most wanted items for everybody, less what is hidden from each."""
    return _ranked(lambda rows: np.tile(shares, (len(rows), 1)), people, k, hidden)


def personal_frequency(
    starts: NDArray[np.int64],
    item: I32,
    shares: NDArray[np.float64],
    k: int,
    hidden: tuple[NDArray[np.int64], I32] | None,
) -> I32:
    """(U, k) what each person wanted most often, ties and gaps by popularity."""
    total = max(float(shares.sum()), 1e-12) * 2

    def score(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        table = np.tile(shares / total, (len(rows), 1))
        part = slice(starts[rows[0]], starts[rows[-1] + 1])
        np.add.at(table, (np.repeat(np.arange(len(rows)), np.diff(starts[rows[0] : rows[-1] + 2])), item[part]), 1.0)
        return table

    return _ranked(score, len(starts) - 1, k, hidden)


def item_to_item(
    starts: NDArray[np.int64],
    item: I32,
    neighbour: I32,
    likeness: NDArray[np.float32],
    k: int,
    hidden: tuple[NDArray[np.int64], I32] | None,
) -> I32:
    """(U, k) items by the sum of their likeness to what each person wanted, each distinct item once (Linden et al. 2003)."""
    count = len(neighbour)

    def score(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        table = np.zeros((len(rows), count + 1))
        part = slice(starts[rows[0]], starts[rows[-1] + 1])
        owner = np.repeat(np.arange(len(rows)), np.diff(starts[rows[0] : rows[-1] + 2]))
        had = np.unique(owner * count + item[part])
        near = neighbour[had % count]
        np.add.at(table, (np.repeat(had // count, near.shape[1]), near.ravel()), likeness[had % count].ravel())
        return table[:, :count]  # NO_ITEM fell into the last column

    return _ranked(score, len(starts) - 1, k, hidden)


def _ranked(
    score: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    people: int,
    k: int,
    hidden: tuple[NDArray[np.int64], I32] | None,
) -> I32:
    lists = np.full((people, k), NO_ITEM, np.int32)
    for first in range(0, people, _PEOPLE_AT_ONCE):
        rows = np.arange(first, min(first + _PEOPLE_AT_ONCE, people))
        table = score(rows)
        if hidden is not None:
            starts, item = hidden
            owner = np.repeat(np.arange(len(rows)), np.diff(starts[first : rows[-1] + 2]))
            table[owner, item[starts[first] : starts[rows[-1] + 1]]] = -np.inf
        order = np.argsort(-table, axis=1, kind="stable")[:, :k]
        value = np.take_along_axis(table, order, 1)
        lists[rows, : order.shape[1]] = np.where(value > 0, order, NO_ITEM)
    return lists
