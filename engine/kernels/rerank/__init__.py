"""Re-ranking behind one front door: variety by item vectors, spacing and calibration by category or creator.

places = mmr(relevance, vectors, keep=20, balance=0.7)
places = mmr_of(relevance, table, rows, keep=20, balance=0.7)   vectors are rows of an item table: nothing is copied

What calls with a snapshot's own arrays may call `cpu` directly; the front door only adds named errors.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from engine.errors import KernelError
from engine.kernels.rerank import cpu
from engine.kernels.rerank.reference import F32, F64, I32

__all__ = ["calibrate", "dpp", "dpp_of", "mmr", "mmr_of", "space"]


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
    rows = _own_rows(relevance, vectors)
    return mmr_of(relevance, vectors, rows, keep, balance)


def mmr_of(relevance: F32, table: F32, rows: I32, keep: int, balance: float) -> I32:
    """`mmr` of vectors where they lie.

    Args:
        relevance, keep, balance: as `mmr` has them.
        table: (I, D) float32 item vectors, C-contiguous, finite (not looked at); may be read-only.
        rows: (N,) int32 each candidate's row of the table.

    Raises:
        KernelError: as `mmr`, or a row lies outside the table.
    """
    _check(relevance, table, rows, keep)
    if not 0 <= balance <= 1:
        raise KernelError(f"balance is {balance}.", "Choose it from 0 (variety) to 1 (relevance).")
    try:
        picked: I32 = cpu.mmr_of(_whole(relevance), _whole(table), _whole(rows), keep, balance)
        return picked
    except (IndexError, ValueError) as error:
        raise _named(error) from error


def dpp(relevance: F32, vectors: F32, keep: int, strength: float) -> I32:
    """Order candidates by greedy search for the likeliest set of a determinantal point process.

    The kernel is L = diag(q) S diag(q), with S the cosines (1 of each with itself; a zero vector's are 0 to all others)
    and q = exp(alpha * relevance), alpha = (1 - strength) / (2 * strength): so that the log-likelihood of a set is, up to
    a factor, `(1 - strength) * sum of relevance + strength * log det S`. The next pick is the candidate that makes
    det(L) largest. Where none adds to it in float64, or all that are left copy what was picked (det S would shrink to
    2^-20 of itself or less), the rest follow by relevance.

    Args:
        relevance: (N,) float32, finite; on a scale that compares with the logarithm of a share, such as 0..1.
        vectors: (N, D) float32, finite; any length.
        keep: candidates to return; all N when N is smaller.
        strength: 0 is pure relevance, 1 pure variety.

    Returns:
        (min(keep, N),) int32 positions into the input, best first; ties keep input order.

    Raises:
        KernelError: shapes or dtypes disagree, a value is NaN or infinite, keep is negative or strength outside 0..1.

    Source: Chen, Zhang & Zhou 2018, arXiv:1709.05135.
    """
    rows = _own_rows(relevance, vectors)
    return dpp_of(relevance, vectors, rows, keep, strength)


def dpp_of(relevance: F32, table: F32, rows: I32, keep: int, strength: float) -> I32:
    """`dpp` of vectors where they lie; table and rows as `mmr_of` has them."""
    _check(relevance, table, rows, keep)
    if not 0 <= strength <= 1:
        raise KernelError(f"strength is {strength}.", "Choose it from 0 (relevance) to 1 (variety).")
    try:
        picked: I32 = cpu.dpp_of(_whole(relevance), _whole(table), _whole(rows), keep, strength)
        return picked
    except (IndexError, ValueError) as error:
        raise _named(error) from error


def space(values: I32, keep: int, window: int, most: int) -> I32:
    """Order candidates so that equal values do not stand close together.

    Place by place, the first candidate that is left and fits: whose value stands less than `most` times in the
    `window - 1` places before. Where none fits, the first that is left: nobody is lost, and the promise is broken there.

    Args:
        values: (N,) int32 codes of categories, creators...; negative ones always fit.
        keep: how many places to fill so; the candidates that are left follow in their order.
        window: consecutive places that are looked at together, at least 1.
        most: how often one value may stand among them, at least 1.

    Returns:
        (N,) int32 positions into the input.

    Raises:
        KernelError: a wrong shape or dtype, keep is negative, window or most is less than 1.
    """
    if values.ndim != 1 or values.dtype != np.int32:
        raise KernelError(f"values: expected (N,) int32, found {values.shape} {values.dtype}.", "Cast it once.")
    if keep < 0:
        raise KernelError(f"keep is {keep}.", "Ask for none or more.")
    if window < 1 or most < 1:
        raise KernelError(f"window is {window}, most is {most}.", "Choose at least 1 for both.")
    picked: I32 = cpu.space(_whole(values), keep, window, most)
    return picked


def calibrate(
    relevance: F32, categories: I32, target: F64, keep: int, weight: float, bound: float | None = None
) -> I32:
    """Order candidates so that the list's mix of categories follows a person's.

    The next pick is the candidate with the largest `(1 - weight) * relevance - weight * KL(target || q)`, where q are the
    shares of the categories in the list with it, as 0.99 of the share and 0.01 of the target. Shares are of the items that
    have a category; an item without one leaves them as they are. While the divergence is within `bound`, relevance
    alone counts.

    Args:
        relevance: (N,) float32, finite; on a scale that compares with a divergence in nats, such as 0..1.
        categories: (N,) int32 each candidate's one category, a position in `target`; negative: none.
        target: (C,) float64 shares that are wanted, adding up to 1.
        keep: candidates to return; all N when N is smaller.
        weight: 0 is pure relevance, 1 pure calibration.
        bound: a divergence in nats that is close enough; None: none is.

    Returns:
        (min(keep, N),) int32 positions into the input, best first; ties go to the more relevant, then keep input order.

    Raises:
        KernelError: shapes or dtypes disagree, a value is NaN or infinite, a share or keep is negative, a category is not
            one of the target's, or weight lies outside 0..1.

    Source: Steck 2018, doi:10.1145/3240323.3240372.
    """
    if relevance.ndim != 1 or relevance.dtype != np.float32:
        raise _wrong_relevance(relevance)
    if categories.shape != relevance.shape or categories.dtype != np.int32:
        found = f"{categories.shape} {categories.dtype}"
        raise KernelError(f"categories: expected {relevance.shape} int32, found {found}.", "Pass one for each.")
    if target.ndim != 1 or target.dtype != np.float64:
        raise KernelError(f"target: expected (C,) float64, found {target.shape} {target.dtype}.", "Cast it once.")
    if keep < 0:
        raise KernelError(f"keep is {keep}.", "Ask for none or more.")
    if not 0 <= weight <= 1:
        raise KernelError(f"weight is {weight}.", "Choose it from 0 (relevance) to 1 (calibration).")
    limit = -inf if bound is None else bound
    try:
        picked: I32 = cpu.calibrate(_whole(relevance), _whole(categories), _whole(target), keep, weight, limit)
        return picked
    except (IndexError, ValueError) as error:
        raise _named(error) from error


def _own_rows(relevance: F32, vectors: F32) -> I32:
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise KernelError(f"vectors: expected (N, D) float32, found {vectors.shape} {vectors.dtype}.", "Cast it once.")
    if len(relevance) != len(vectors):
        raise KernelError(f"There are {len(relevance)} relevances for {len(vectors)} vectors.", "Pass one for each.")
    if not cpu.finite(_whole(vectors)):
        raise KernelError("vectors hold NaN or infinity.", "Stop at the step that made them.")
    return np.arange(len(vectors), dtype=np.int32)


def _check(relevance: F32, table: F32, rows: I32, keep: int) -> None:
    if relevance.ndim != 1 or relevance.dtype != np.float32:
        raise _wrong_relevance(relevance)
    if table.ndim != 2 or table.dtype != np.float32:
        raise KernelError(f"table: expected (I, D) float32, found {table.shape} {table.dtype}.", "Cast it once.")
    if rows.shape != relevance.shape or rows.dtype != np.int32:
        raise KernelError(
            f"rows: expected {relevance.shape} int32, found {rows.shape} {rows.dtype}.", "Pass one for each."
        )
    if keep < 0:
        raise KernelError(f"keep is {keep}.", "Ask for none or more.")


def _wrong_relevance(relevance: F32) -> KernelError:
    return KernelError(f"relevance: expected (N,) float32, found {relevance.shape} {relevance.dtype}.", "Cast it once.")


def _whole(array: Any) -> Any:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _named(error: Exception) -> KernelError:
    return KernelError(f"{error}.", "Stop at the step that made it.")
