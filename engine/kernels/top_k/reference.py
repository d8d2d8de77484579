"""What exact top-K is, in NumPy: the definition that every other path must reproduce bit for bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.schema import NO_ITEM

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


def exact_scores(users: F32, items: F32, picked: NDArray[np.integer]) -> F32:
    """Scores of picked items: dot products accumulated in float64 in index order, rounded once to float32.

    Args:
        users: (U, D) vectors.
        items: (I, D) vectors.
        picked: (U, P) rows of `items` for each user.

    Returns:
        (U, P) scores. A product of two float32 is exact in float64, so a fused multiply-add changes nothing.
    """
    total = np.zeros(picked.shape, np.float64)
    chosen = items[picked]
    for d in range(users.shape[1]):
        total += users[:, d, None].astype(np.float64) * chosen[:, :, d]
    return total.astype(np.float32)


def best_first(scores: F32, ids: I32, k: int) -> tuple[I32, F32]:
    """The k best of each row: higher score first, ties to the lower id; -inf is never returned but as padding."""
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    best, value = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
    return np.where(np.isneginf(value), np.int32(NO_ITEM), best), value


def top_k(users: F32, items: F32, k: int, starts: NDArray[np.int64], seen: I32) -> tuple[I32, F32]:
    """Score everything, hide what was seen, sort. Shapes as at the front door."""
    count = len(items)
    out_ids = np.full((len(users), k), NO_ITEM, np.int32)
    out_scores = np.full((len(users), k), -np.inf, np.float32)
    every = np.arange(count, dtype=np.int32)[None]
    for row in range(len(users)):  # one user at a time: the reference is for reading, and memory stays flat
        scores = exact_scores(users[row : row + 1], items, every)
        scores[0, seen[starts[row] : starts[row + 1]]] = -np.inf
        ids, values = best_first(scores, every, k)
        out_ids[row, : ids.shape[1]], out_scores[row, : ids.shape[1]] = ids[0], values[0]
    return out_ids, out_scores
