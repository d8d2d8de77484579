"""Exact top-K for one person at once: float32 products, a cut with a proven margin, float64 re-scoring. Without torch.

Same answer as the reference, bit for bit. Whatever reaches the K-th best float32 score less the margin of cpu.py is re-scored,
so nothing has to be proven complete afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from engine.kernels.top_k.cpu import margin
from engine.kernels.top_k.reference import F32, I32

# Compiled when imported, so before a server listens; read-only, for what is mapped from a snapshot is.
_TABLE, _VECTOR, _ROWS = (
    types.Array(kind, ndim, "C", readonly=True)
    for kind, ndim in ((types.float32, 2), (types.float32, 1), (types.int32, 1))
)

_LOWEST = np.finfo(np.float32).min


def longest(items: F32) -> float:
    """The largest norm of (I, D) items: once for each catalogue."""
    most = 0.0
    for first in range(0, len(items), 65_536):
        part = items[first : first + 65_536].astype(np.float64)
        most = max(most, float(np.einsum("id,id->i", part, part).max(initial=0.0)))
    return float(np.sqrt(most))


def slack(vector: F32, most: float) -> float:
    """How much two float32 scores may err together; `most` is `longest(items)`. Infinite where they may overflow."""
    norm = np.sqrt((vector.astype(np.float64) ** 2).sum(keepdims=True))
    return float(margin(norm, most, len(vector))[0])


def rough_scores(vector: F32, items: F32, slack: float) -> F32:
    """(I,) float32 products, in whatever order the library adds them up; all the same where they would say nothing."""
    if not np.isfinite(slack):
        return np.zeros(len(items), np.float32)
    result: F32 = items @ vector
    return result


def best(vector: F32, items: F32, rough: F32, k: int, slack: float, rows: I32 | None = None) -> tuple[I32, F32]:
    """The k best of some items.

    Args:
        vector: (D,) finite. items: (I, D) finite, C-contiguous.
        rough: (R,) `rough_scores`; -inf for what must not be found.
        k: at least 1. slack: that `rough` was made with.
        rows: (R,) rows of `items` that `rough` is of, none twice; None: all.

    Returns:
        at most k rows and scores, best first, ties to the lower row.
    """
    cut = _LOWEST
    if len(rough) > k:
        last = np.float32(np.partition(rough, len(rough) - k)[len(rough) - k] - slack)
        cut = max(cut, np.nextafter(last, -np.inf, dtype=np.float32))  # rounded to float32 it may have risen
    places = np.flatnonzero(rough >= cut)
    found: I32 = places.astype(np.int32) if rows is None else rows[places]
    scores = np.empty(len(found), np.float32)
    _exact(items, vector, found, scores)
    order = np.lexsort((found, -scores))[:k]
    return found[order], scores[order]


@njit(types.void(_TABLE, _VECTOR, _ROWS, types.float32[::1]), cache=True, nogil=True)
def _exact(items: Any, vector: Any, rows: Any, scores: Any) -> None:
    """Dot products accumulated in float64 in index order, rounded once to float32."""
    for place in range(len(rows)):
        total = 0.0
        for d in range(len(vector)):
            total += np.float64(vector[d]) * np.float64(items[rows[place], d])
        scores[place] = np.float32(total)
