"""Maximal marginal relevance on the CPU: each candidate remembers its worst value so far, so a pick costs one row.

A candidate's value after many picks is the smallest of its values after each of them alone: rounding keeps order, so
the smallest of the rounded values is the rounded value at the largest likeness, and the picks are the reference's.
"""

from __future__ import annotations

import numpy as np

from engine.kernels.rerank import reference

# Below so many candidates a pick, one product of all with all costs less than a product a pick (measured at 64 wide).
_TABLE_UP_TO = 6


def mmr(relevance: reference.F32, vectors: reference.F32, keep: int, balance: float) -> reference.I32:
    """Same picks as the reference, in O(keep N D) or O(N^2 D), whichever is less. Shapes as at the front door."""
    count = len(relevance)
    keep = min(keep, count)
    if balance == 1:
        return np.argsort(-relevance, kind="stable")[:keep].astype(np.int32)
    picked = np.empty(keep, np.int32)
    unit = reference.directions(vectors)
    worth = balance * relevance.astype(np.float64)
    price = balance - 1
    table = (unit @ unit.T) * price + worth if count <= _TABLE_UP_TO * keep else None
    value = worth
    for step in range(keep):
        best = int(value.argmax())
        picked[step] = best
        alone = table[best] if table is not None else (unit @ unit[best]) * price + worth
        # The first pick may raise values, where vectors point away from each other; from then on they only fall.
        value = alone.copy() if step == 0 else np.minimum(value, alone, out=value)
        value[best] = -np.inf
    return picked
