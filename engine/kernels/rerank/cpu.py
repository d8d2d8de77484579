"""Maximal marginal relevance on the CPU: each candidate remembers its nearest pick, so a pick costs one product."""

from __future__ import annotations

import numpy as np

from engine.kernels.rerank import reference


def mmr(relevance: reference.F32, vectors: reference.F32, keep: int, balance: float) -> reference.I32:
    """Same picks as the reference, in O(keep N D) instead of O(N^2 D). Shapes as at the front door."""
    keep = min(keep, len(relevance))
    if balance == 1:
        return np.argsort(-relevance, kind="stable")[:keep].astype(np.int32)
    picked = np.empty(keep, np.int32)
    unit = reference.directions(vectors)
    worth = balance * relevance.astype(np.float64)
    value = worth.copy()
    nearest = np.full(len(worth), -np.inf)
    cosine = np.empty_like(worth)
    for step in range(keep):
        best = int(value.argmax())
        picked[step] = best
        worth[best] = -np.inf  # stays so in every later value
        np.dot(unit, unit[best], out=cosine)
        np.maximum(nearest, cosine, out=nearest)
        np.multiply(nearest, 1 - balance, out=cosine)
        np.subtract(worth, cosine, out=value)
    return picked
