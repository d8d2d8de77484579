"""What the four re-rankings are, in NumPy: the definitions whose picks every other path must reproduce."""

from __future__ import annotations

from math import exp, inf, log

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

# Directions lie on a grid of 2^-24. Products of two are then multiples of 2^-48, and no sum of them exceeds 1 by more
# than the grid's rounding (Cauchy-Schwarz), so float64 holds each sum exactly: cosines do not depend on the order of
# addition, on fused operations or on the device, and copies of one vector tie exactly.
GRID = 2.0**24
COPY = 2.0**-20  # a determinant's factor up to here is a copy's: of cosines on the grid it may be no more than rounding
KEPT = 0.01  # of the target in a calibrated list's shares, so that no logarithm is of zero (Steck 2018)
LEAST = 1e-300  # a wanted share up to here is none: what it would be divided by might vanish


def directions(vectors: F32) -> F64:
    """Vectors at unit length, rounded to a grid of 2^-24.

    Args:
        vectors: (N, D) finite.

    Returns:
        (N, D) directions whose dot products are exact cosines in float64; zero vectors stay zero, like nothing.
    """
    wide = vectors.astype(np.float64)  # holds the square of any float32: no length overflows or vanishes
    lanes = np.zeros((4, len(wide)))  # component d adds to lane d mod 4: an order that compiled code is fast in
    for d in range(wide.shape[1]):
        lanes[d % 4] += wide[:, d] * wide[:, d]
    length = np.sqrt((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]))
    length[length == 0] = 1.0
    wide *= (GRID / length)[:, None]
    np.rint(wide, out=wide)
    wide *= 1.0 / GRID
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


def dpp(relevance: F32, vectors: F32, keep: int, strength: float) -> I32:
    """Grow a Cholesky factor by what adds most to the determinant. Shapes as at the front door."""
    count = len(relevance)
    unit = directions(vectors)
    cosine = unit @ unit.T
    worth = relevance.astype(np.float64)
    quality = np.zeros(count)
    if count and strength > 0:
        short = worth - worth.max()
        quality[:] = [1.0 if gap == 0 else exp((1.0 - strength) / strength * gap) for gap in short.tolist()]
    rest = np.ones(count)  # of each variance, what the picks do not tell
    shared = np.zeros((count, min(keep, count)))
    left = np.ones(count, np.bool_)
    picked: list[int] = []
    while left.any() and len(picked) < keep:
        gain = np.where(left & (rest > COPY), quality * rest, 0.0)
        best = int(gain.argmax())
        if gain[best] <= 0:
            fill = sorted(np.flatnonzero(left).tolist(), key=lambda candidate: -worth[candidate])  # stable
            picked += fill[: keep - len(picked)]
            break
        step = len(picked)
        common = cosine[:, best].copy()
        for k in range(step):
            common -= shared[best, k] * shared[:, k]
        shared[:, step] = common / np.sqrt(rest[best])
        rest = rest - shared[:, step] * shared[:, step]
        left[best] = False
        picked.append(best)
    return np.array(picked, np.int32)


def space(values: I32, keep: int, window: int, most: int) -> I32:
    """Take the first that fits, or the first at all. Shapes as at the front door."""
    left = list(range(len(values)))
    placed: list[int] = []
    while left and len(placed) < keep:
        near = [int(values[position]) for position in placed[max(0, len(placed) - window + 1) :]]
        fits = (position for position in left if values[position] < 0 or near.count(int(values[position])) < most)
        chosen = next(fits, left[0])
        placed.append(chosen)
        left.remove(chosen)
    return np.array(placed + left, np.int32)


def divergence(counts: NDArray[np.int64], target: F64) -> F64:
    """(C,) each category's part of KL(target || shares), where the shares of a list are mixed with KEPT of the target."""
    size = max(int(counts.sum()), 1)
    return np.array([_part(float(share), int(n), size) for share, n in zip(target, counts, strict=True)])


def _part(share: float, count: int, size: int) -> float:
    return share * log(share / ((1.0 - KEPT) * (count / size) + KEPT * share)) if share > LEAST else 0.0


def calibrate(relevance: F32, categories: I32, target: F64, keep: int, weight: float, bound: float = -inf) -> I32:
    """Pick again and again what best trades relevance for a list whose shares are the target's."""
    counts = np.zeros(len(target), np.int64)
    left = list(range(len(relevance)))
    picked: list[int] = []
    now = _in_order(divergence(counts, target))
    while left and len(picked) < keep:
        size = int(counts.sum()) + 1
        without = [_part(float(share), int(n), size) for share, n in zip(target, counts, strict=True)]
        one_more = [_part(float(share), int(n) + 1, size) for share, n in zip(target, counts, strict=True)]
        total = _in_order(np.array(without))

        def diverges(candidate: int, now: float = now, total: float = total) -> float:
            category = int(categories[candidate])
            return now if category < 0 else total + (one_more[category] - without[category])  # noqa: B023

        def value(candidate: int, now: float = now) -> tuple[float, float]:
            own = float(relevance[candidate])
            return (own if now <= bound else (1.0 - weight) * own - weight * diverges(candidate), own)

        best = max(left, key=value)
        now = diverges(best)
        if categories[best] >= 0:
            counts[categories[best]] += 1
        picked.append(best)
        left.remove(best)
    return np.array(picked, np.int32)


def _in_order(parts: F64) -> float:
    total = 0.0
    for part in parts.tolist():
        total += part
    return total
