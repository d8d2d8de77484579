"""What maximal marginal relevance is, in NumPy: the definition whose picks every other path must reproduce."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

# Directions lie on a grid of 2^-24. Products of two are then multiples of 2^-48, and no sum of them exceeds 1 by more
# than the grid's rounding (Cauchy-Schwarz), so float64 holds each sum exactly: cosines do not depend on the order of
# addition, on fused operations or on the device, and copies of one vector tie exactly.
_GRID = 2.0**24


def directions(vectors: F32) -> F64:
    """Vectors at unit length, rounded to a grid of 2^-24.

    Args:
        vectors: (N, D) finite.

    Returns:
        (N, D) directions whose dot products are exact cosines in float64; zero vectors stay zero, like nothing.
    """
    wide = vectors.astype(np.float64)  # holds the square of any float32: no length overflows or vanishes
    length = np.sqrt(np.vecdot(wide, wide))
    length[length == 0] = 1.0
    wide *= (_GRID / length)[:, None]
    np.rint(wide, out=wide)
    wide *= 1.0 / _GRID
    return wide


def mmr(relevance: F32, vectors: F32, keep: int, balance: float) -> I32:
    """Pick again and again what is most relevant and least like anything picked so far. Shapes as at the front door."""
    unit = directions(vectors)
    cosine = unit @ unit.T
    picked: list[int] = []
    left = list(range(len(relevance)))
    while left and len(picked) < keep:

        def value(candidate: int) -> float:
            worth = balance * float(relevance[candidate])
            return worth - (1 - balance) * float(cosine[candidate, picked].max()) if picked else worth

        best = max(left, key=value)  # the first of equals
        picked.append(best)
        left.remove(best)
    return np.array(picked, np.int32)
