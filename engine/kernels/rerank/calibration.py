"""Compiled calibration: a pick changes the divergence by its category alone, so only the best of each category compete."""

from __future__ import annotations

from math import inf, log
from typing import Any

import numpy as np
from numba import njit, types

from engine.kernels.rerank.compiled import inner
from engine.kernels.rerank.reference import KEPT, LEAST

# Compiled when imported, so before a server listens; read-only, for what is mapped from a snapshot is.
_F1, _I1, _T1 = (types.Array(kind, 1, "C", readonly=True) for kind in (types.float32, types.int32, types.float64))


@inner()
def _part(share: Any, count: Any, size: Any) -> Any:
    """One category's part of the divergence, as the reference has it."""
    return share * log(share / ((1.0 - KEPT) * (count / size) + KEPT * share)) if share > LEAST else 0.0


@inner()
def _chain(relevance: Any, categories: Any, first: Any, best: Any, after: Any) -> None:
    """Candidates by category, in their order, the last category for those without; and the best of each."""
    none = len(first) - 1
    for i in range(len(relevance) - 1, -1, -1):
        kind = categories[i] if categories[i] >= 0 else none
        after[i], first[kind] = first[kind], i
        if best[kind] < 0 or relevance[i] >= relevance[best[kind]]:
            best[kind] = i


@inner()
def _take(relevance: Any, first: Any, best: Any, after: Any, kind: Any, gone: Any) -> None:
    """Out of its category's chain, whose best is then another."""
    top, before, i = -1, -1, first[kind]
    while i >= 0:
        if i != gone:
            before = i
            if top < 0 or relevance[i] > relevance[top]:
                top = i
        elif before < 0:
            first[kind] = after[i]
        else:
            after[before] = after[i]
        i = after[i]
    best[kind] = top


@inner()
def _pick(
    relevance: Any, target: Any, weight: Any, bound: Any, first: Any, best: Any, after: Any, counts: Any, change: Any,
    picked: Any,
) -> None:  # fmt: skip
    kinds = len(target)
    size, now, total, stale = 0, 0.0, 0.0, True
    for kind in range(kinds):
        now += _part(target[kind], 0, 1)
    for step in range(len(picked)):
        close = now <= bound
        if stale and not close:
            total, stale = 0.0, False
            for kind in range(kinds):
                if target[kind] > 0.0:
                    without = _part(target[kind], counts[kind], size + 1)
                    change[kind] = _part(target[kind], counts[kind] + 1, size + 1) - without
                    total += without
        most, chosen, own = -inf, -1, 0
        for kind in range(kinds + 1):
            i = best[kind]
            if i < 0:
                continue
            value = np.float64(relevance[i])
            if not close:
                value = (1.0 - weight) * value - weight * (now if kind == kinds else total + change[kind])
            better = value > most
            if value == most:
                better = relevance[i] > relevance[chosen] or (relevance[i] == relevance[chosen] and i < chosen)
            if better or chosen < 0:
                most, chosen, own = value, i, kind
        picked[step] = chosen
        _take(relevance, first, best, after, own, chosen)
        if own < kinds:
            if stale:  # relevance alone chose: the divergence is yet to be taken
                total = 0.0
                for kind in range(kinds):
                    total += _part(target[kind], counts[kind], size + 1)
                change[own] = _part(target[own], counts[own] + 1, size + 1) - _part(target[own], counts[own], size + 1)
            now = total + change[own]
            counts[own] += 1
            size += 1
            stale = True


@njit(types.int32[::1](_F1, _I1, _T1, types.int64, types.float64, types.float64), cache=True, nogil=True)
def calibrate(relevance: Any, categories: Any, target: Any, keep: Any, weight: Any, bound: Any) -> Any:
    """As at the front door; `bound` is -inf for none."""
    count, kinds = len(relevance), len(target)
    if len(categories) != count:
        raise IndexError("categories and relevance differ in number")
    for i in range(count):
        if categories[i] >= kinds:
            raise IndexError("categories point outside the target")
        if not -inf < relevance[i] < inf:
            raise ValueError("relevance holds NaN or infinity")
    for kind in range(kinds):
        if not 0.0 <= target[kind] < inf:
            raise ValueError("target holds a share that is negative, NaN or infinite")
    picked = np.empty(max(0, min(keep, count)), np.int32)
    ends = np.full((2, kinds + 1), -1, np.int32)
    after = np.empty(count, np.int32)
    counts = np.zeros(kinds, np.int64)
    change = np.zeros(kinds + 1)
    _chain(relevance, categories, ends[0], ends[1], after)
    _pick(relevance, target, weight, bound, ends[0], ends[1], after, counts, change, picked)
    return picked
