"""Exact top-K of dot products: one front door, dispatched by device.

ids, scores = top_k(users, items, 100, starts, seen)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import KernelError
from engine.kernels.top_k import cpu, cuda
from engine.kernels.top_k.reference import F32, I32

__all__ = ["top_k"]


def top_k(
    users: F32,
    items: F32,
    k: int,
    starts: NDArray[np.int64] | None = None,
    seen: I32 | None = None,
    device: str = "cpu",
) -> tuple[I32, F32]:
    """The k best items of each user by dot product, exactly, without what the user has seen.

    A score is the dot product accumulated in float64 in index order and rounded once to float32; ties go to the lower row.

    Args:
        users: (U, D) float32, finite.
        items: (I, D) float32, finite.
        k: items wanted per user, at least 1.
        starts: (U + 1,) where each user's part of `seen` begins; None: nothing was seen.
        seen: (S,) rows of `items` to hide.
        device: "cpu" or "cuda".

    Returns:
        (U, k) item rows, best first, -1 where there are no more; and (U, k) scores, -inf there.

    Raises:
        KernelError: shapes or dtypes disagree, k < 1, or a value is NaN or infinite.
    """
    for name, array in (("users", users), ("items", items)):
        if array.ndim != 2 or array.dtype != np.float32:
            raise KernelError(f"{name}: expected (n, D) float32, found {array.shape} {array.dtype}.", "Cast it once.")
        if not np.isfinite(array).all():
            raise KernelError(f"{name}: holds NaN or infinity.", "Stop at the step that made it: training diverged.")
    if users.shape[1] != items.shape[1]:
        raise KernelError(f"users are {users.shape[1]} wide, items {items.shape[1]}.", "Encode both with one model.")
    if k < 1:
        raise KernelError(f"k is {k}.", "Ask for at least one item.")
    if starts is None or seen is None:
        starts, seen = np.zeros(len(users) + 1, np.int64), np.empty(0, np.int32)
    if len(starts) != len(users) + 1 or starts[0] != 0 or starts[-1] != len(seen) or (np.diff(starts) < 0).any():
        raise KernelError("starts does not cut seen into one part per user.", "Pass offsets of length users + 1.")
    if len(seen) and (seen.min() < 0 or seen.max() >= len(items)):
        raise KernelError(f"seen names row {seen.max()} of {len(items)} items.", "Map items to rows of this matrix.")
    if not len(items):
        return np.full((len(users), k), -1, np.int32), np.full((len(users), k), -np.inf, np.float32)
    users, items = np.ascontiguousarray(users), np.ascontiguousarray(items)
    run = cuda.top_k if device == "cuda" else cpu.top_k
    return run(users, items, k, starts, seen)
