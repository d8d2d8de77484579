"""Exact top-K on the CPU: float32 products by tiles, a shortlist with a proven margin, float64 re-scoring.

A float32 dot product of length D lies within E = (D + 2) 2^-23 |u| |v| of the real one (Higham 2002, Accuracy and Stability
of Numerical Algorithms, section 3.1, with room for the final rounding). If t is the K-th best float32 score, then every
item of the true top K has a float32 score of at least t - 2E. The shortlist holds K + SLACK items; when even its last one
reaches t - 2E, something may have been cut off, and that user is redone by the reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels.top_k import reference
from engine.schema import NO_ITEM

USERS_AT_ONCE = 256
ITEMS_AT_ONCE = 32_768  # 256 x 32,768 float32 scores are 32 MiB, whatever the catalogue
SLACK = 32


def top_k(
    users: reference.F32, items: reference.F32, k: int, starts: NDArray[np.int64], seen: reference.I32
) -> tuple[reference.I32, reference.F32]:
    """Same answer as the reference, bit for bit. Shapes as at the front door."""
    out_ids = np.full((len(users), k), NO_ITEM, np.int32)
    out_scores = np.full((len(users), k), -np.inf, np.float32)
    longest = float(np.sqrt((items.astype(np.float64) ** 2).sum(1).max(initial=0.0)))
    for first in range(0, len(users), USERS_AT_ONCE):
        rows = slice(first, min(first + USERS_AT_ONCE, len(users)))
        block = users[rows]
        hidden = seen[starts[rows.start] : starts[rows.stop]]
        owner = np.repeat(np.arange(len(block)), np.diff(starts[rows.start : rows.stop + 1]))
        ids, rough = _shortlist(block, items, k, owner, hidden)
        norms = np.sqrt((block.astype(np.float64) ** 2).sum(1))
        safe = is_complete(rough, k, margin(norms, longest, items.shape[1]), len(items))
        scores = reference.exact_scores(block, items, np.maximum(ids, 0))
        scores[np.isneginf(rough)] = -np.inf
        best, value = reference.best_first(scores, ids, k)
        out_ids[rows, : best.shape[1]], out_scores[rows, : best.shape[1]] = best, value
        for row in np.flatnonzero(~safe):
            mine = np.arange(rows.start + row, rows.start + row + 2)
            out_ids[mine[0]], out_scores[mine[0]] = (
                part[0]
                for part in reference.top_k(
                    block[row : row + 1],
                    items,
                    k,
                    np.array([0, starts[mine[1]] - starts[mine[0]]]),
                    seen[starts[mine[0]] : starts[mine[1]]],
                )
            )
    return out_ids, out_scores


def margin(norms: NDArray[np.float64], longest: float, width: int) -> NDArray[np.float64]:
    """(U,) twice the largest error of a float32 score, given the users' norms and the longest item's."""
    underflow = (width + 2) * 2.0**-126  # products below the normal range lose absolute, not relative, precision
    largest = norms * longest
    # Past this a float32 sum may overflow on its way, and its score says nothing.
    largest = np.where(largest < np.finfo(np.float32).max / 2, largest, np.inf)
    return 2.0 * ((width + 2) * 2.0**-23 * largest + underflow)


def is_complete(rough: reference.F32, k: int, slack: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """(U,) whether a shortlist of rough scores, best first, provably holds the true top K of `count` items."""
    if rough.shape[1] >= count:
        return np.isfinite(slack)  # it holds them all
    last = rough[:, -1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        settled = last < rough[:, k - 1].astype(np.float64) - slack
    bounded = np.isfinite(slack) & ~(np.isposinf(rough) | np.isnan(rough)).any(1)
    # A list that ran out of unseen items ends in -inf and holds all there is.
    result: NDArray[np.bool_] = (settled | np.isneginf(last)) & bounded
    return result


def _shortlist(
    block: reference.F32, items: reference.F32, k: int, owner: NDArray[np.intp], hidden: reference.I32
) -> tuple[reference.I32, reference.F32]:
    """The K + SLACK best by float32 score, sorted: ids and rough scores."""
    ids = np.empty((len(block), 0), np.int32)
    rough = np.empty((len(block), 0), np.float32)
    for first in range(0, len(items), ITEMS_AT_ONCE):
        tile = items[first : first + ITEMS_AT_ONCE]
        with np.errstate(over="ignore", invalid="ignore"):
            scores = block @ tile.T
        inside = (hidden >= first) & (hidden < first + len(tile))
        scores[owner[inside], hidden[inside] - first] = -np.inf
        keep = min(k + SLACK, len(tile))
        places = np.argpartition(scores, len(tile) - keep, axis=1)[:, len(tile) - keep :]
        ids = np.concatenate([ids, (places + first).astype(np.int32)], 1)
        rough = np.concatenate([rough, np.take_along_axis(scores, places, 1)], 1)
    order = np.argsort(-rough, axis=1, kind="stable")[:, : k + SLACK]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(rough, order, 1)
