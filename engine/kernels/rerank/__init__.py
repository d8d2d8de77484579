"""Diverse re-ranking: maximal marginal relevance behind one front door.

places = mmr(relevance, vectors, keep=20, balance=0.7)
"""

from __future__ import annotations

import numpy as np

from engine.errors import KernelError
from engine.kernels.rerank import cpu
from engine.kernels.rerank.reference import F32, I32

__all__ = ["mmr"]


def mmr(relevance: F32, vectors: F32, keep: int, balance: float) -> I32:
    """Order candidates so that each is relevant and unlike those above it.

    The next pick is the candidate with the largest `balance * relevance - (1 - balance) * likeness`, where likeness is
    its largest cosine, -1..1, to what was picked before (none for the first pick). A zero vector has cosine 0 to all.

    Args:
        relevance: (N,) float32, finite; on a scale that compares with a cosine, such as 0..1.
        vectors: (N, D) float32, finite; any length.
        keep: candidates to return; all N when N is smaller.
        balance: 1 is pure relevance, 0 pure variety.

    Returns:
        (min(keep, N),) int32 positions into the input, best first; ties keep input order.

    Raises:
        KernelError: shapes or dtypes disagree, a value is NaN or infinite, keep is negative or balance outside 0..1.

    Source: maximal marginal relevance, Carbonell & Goldstein 1998, doi:10.1145/290941.291025.
    """
    if relevance.ndim != 1 or relevance.dtype != np.float32:
        raise KernelError(
            f"relevance: expected (N,) float32, found {relevance.shape} {relevance.dtype}.", "Cast it once."
        )
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise KernelError(f"vectors: expected (N, D) float32, found {vectors.shape} {vectors.dtype}.", "Cast it once.")
    if len(relevance) != len(vectors):
        raise KernelError(f"There are {len(relevance)} relevances for {len(vectors)} vectors.", "Pass one for each.")
    if not (np.isfinite(relevance).all() and np.isfinite(vectors).all()):
        raise KernelError("relevance or vectors hold NaN or infinity.", "Stop at the step that made them.")
    if keep < 0:
        raise KernelError(f"keep is {keep}.", "Ask for none or more.")
    if not 0 <= balance <= 1:
        raise KernelError(f"balance is {balance}.", "Choose it from 0 (variety) to 1 (relevance).")
    return cpu.mmr(relevance, vectors, keep, balance)
