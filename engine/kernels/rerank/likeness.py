"""Compiled re-ranking by item vectors: marginal relevance and determinantal point processes, lazily greedy.

What a candidate is worth only falls as the list grows, so an old value bounds the new one from above, and only candidates
whose bound reaches the leader's value are looked at again (Minoux 1978, doi:10.1007/BFb0006528; for determinants Hemmi et
al. 2022, arXiv:2206.05947). Both stand in one file with what they share, because a compiled cache knows the changes of its
own file alone.
"""

from __future__ import annotations

from math import exp, inf, nan, sqrt
from typing import Any

import numpy as np
from numba import njit, types

from engine.kernels.rerank.compiled import inner
from engine.kernels.rerank.reference import COPY, GRID

# Compiled when imported, so before a server listens; read-only, for what is mapped from a snapshot is.
_F1, _F2, _I1 = (
    types.Array(kind, ndim, "C", readonly=True)
    for kind, ndim in ((types.float32, 1), (types.float32, 2), (types.int32, 1))
)
_PICKS = types.int32[::1](_F1, _F2, _I1, types.int64, types.float64)
_SUMS = {"reassoc", "contract", "nsz"}  # in any order: of sums that are exact, or whose error the slack covers
_STEP = 1.0 / GRID
# Within these squared lengths products of two vectors neither overflow nor lose bits below float32's range.
_SHORTEST, _LONGEST = np.float32(2.0**-60), np.float32(2.0**60)
_WIDEST = 65_536


@inner(fastmath={"reassoc"})
def _all_finite(values: Any) -> Any:
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i] * np.float32(0)  # NaN for both
    return total == np.float32(0)


@njit(nogil=True)
def _check(relevance: Any, table: Any, rows: Any) -> None:
    """Nothing is read from outside the table, and every comparison of relevance holds one way."""
    if len(rows) != len(relevance):
        raise IndexError("rows and relevance differ in number")
    lowest, highest = np.int32(0), np.int32(-1)
    for i in range(len(rows)):
        lowest, highest = min(lowest, rows[i]), max(highest, rows[i])
    if lowest < 0 or highest >= len(table):
        raise IndexError("rows point outside the table")
    if not _all_finite(relevance):
        raise ValueError("relevance holds NaN or infinity")


@inner()
def _first_of_most(worth: Any, left: Any) -> Any:
    """The first of the most relevant that are left."""
    best = -1
    for i in range(len(worth)):
        if left[i] == left[i] and (best < 0 or worth[i] > worth[best]):
            best = i
    return best


@inner()
def _reaching(bound: Any, lead: Any, due: Any) -> Any:
    """Put those whose bound is at least lead in due; returns how many."""
    found = 0
    for i in range(len(bound)):
        due[found] = i
        found += bound[i] >= lead
    return found


@inner(fastmath=_SUMS)
def _rough(table: Any, row: Any, other: Any) -> Any:
    total = np.float32(0)
    for d in range(table.shape[1]):
        total += table[row, d] * table[other, d]
    return np.float64(total)


@inner(fastmath=_SUMS)
def _rough_both(table: Any, row: Any, other: Any) -> Any:
    """The product, and the row's square."""
    total = squared = np.float32(0)
    for d in range(table.shape[1]):
        total += table[row, d] * table[other, d]
        squared += table[row, d] * table[row, d]
    return np.float64(total), squared


@inner()
def _slack(width: Any) -> Any:
    return (4 * width + 16) * 2.0**-24


@inner()
def _inverse_length(squared: Any, width: Any) -> Any:
    """0 where float32 products would not do."""
    return 1.0 / sqrt(np.float64(squared)) if _SHORTEST < squared < _LONGEST and width <= _WIDEST else 0.0


@inner()
def _direct(table: Any, row: Any, unit: Any, i: Any) -> None:
    """One row of `reference.directions`."""
    width = table.shape[1]
    a = b = c = e = 0.0
    whole = width // 4 * 4
    for d in range(0, whole, 4):
        a += np.float64(table[row, d]) * np.float64(table[row, d])
        b += np.float64(table[row, d + 1]) * np.float64(table[row, d + 1])
        c += np.float64(table[row, d + 2]) * np.float64(table[row, d + 2])
        e += np.float64(table[row, d + 3]) * np.float64(table[row, d + 3])
    if whole < width:
        a += np.float64(table[row, whole]) * np.float64(table[row, whole])
    if whole + 1 < width:
        b += np.float64(table[row, whole + 1]) * np.float64(table[row, whole + 1])
    if whole + 2 < width:
        c += np.float64(table[row, whole + 2]) * np.float64(table[row, whole + 2])
    length = sqrt((a + b) + (c + e))
    scale = GRID / length if 0.0 < length < inf else 0.0
    for d in range(width):
        # Zero for what is not finite, too: a NaN would leave nobody to pick.
        unit[i, d] = np.float32(np.rint(np.float64(table[row, d]) * scale) * _STEP) if scale > 0.0 else np.float32(0)


@inner(fastmath=_SUMS)
def _product(unit: Any, i: Any, other: Any) -> Any:
    total = 0.0
    for d in range(unit.shape[1]):
        total += np.float64(unit[i, d]) * np.float64(unit[other, d])
    return total


@inner()
def _exact(table: Any, rows: Any, unit: Any, directed: Any, i: Any, other: Any) -> Any:
    """The cosine of two candidates by the definition."""
    if not directed[i]:
        _direct(table, np.uint32(rows[i]), unit, np.uint32(i))
        directed[i] = 1
    if not directed[other]:
        _direct(table, np.uint32(rows[other]), unit, np.uint32(other))
        directed[other] = 1
    return _product(unit, np.uint32(i), np.uint32(other))


@inner()
def _first_of_best(
    table: Any, rows: Any, unit: Any, directed: Any, picked: Any, step: Any,
    worth: Any, price: Any, bound: Any, lead: Any, sure: Any, settled: Any,
) -> Any:  # fmt: skip
    """Among those whose bound is at least lead, by the definition."""
    best, most = -1, -inf
    for i in range(len(bound)):
        if not bound[i] >= lead:
            continue
        while settled[i] < step:
            cosine = _exact(table, rows, unit, directed, i, picked[settled[i]])
            sure[i] = cosine if settled[i] == 0 else max(sure[i], cosine)
            settled[i] += 1
        value = worth[i] - price * sure[i]
        if value > most:
            most, best = value, i
    return best


@inner()
def _mmr(
    table: Any, rows: Any, price: Any, worth: Any, bound: Any, likest: Any, inverse: Any, sure: Any,
    looked: Any, settled: Any, directed: Any, due: Any, unit: Any, picked: Any,
) -> None:  # fmt: skip
    width = table.shape[1]
    slack = _slack(width)
    best = runner = -1
    for step in range(len(picked)):
        if step == 0 or price == 0.0:
            best = _first_of_most(worth, bound)
        else:
            # First the runner-up of the step before, for a high lead; then who can reach it.
            due[0] = runner if runner >= 0 else _first_of_most(worth, bound)
            best, runner, lead, rival, reaching = -1, -1, -inf, -inf, 1
            for turn in range(2):
                if turn:
                    reaching = _reaching(bound, lead, due)
                for place in range(reaching):
                    i = due[place]
                    if i == best:
                        continue
                    u = np.uint32(i)
                    row = np.uint32(rows[u])
                    while looked[u] < step and bound[u] >= lead:
                        other = np.uint32(picked[np.uint32(looked[u])])
                        looked[u] += 1
                        if inverse[u] < 0.0:
                            cosine, squared = _rough_both(table, row, np.uint32(rows[other]))
                            inverse[u] = _inverse_length(squared, width)
                        else:
                            cosine = _rough(table, row, np.uint32(rows[other]))
                        scale = inverse[u] * inverse[other]
                        cosine = (
                            cosine * scale if scale > 0.0 else _exact(table, rows, unit, directed, i, np.int64(other))
                        )
                        if cosine > likest[u]:
                            likest[u] = cosine
                            bound[u] = worth[u] - price * (cosine - slack)
                    if bound[u] < lead:
                        continue
                    least = worth[u] - price * (likest[u] + slack)
                    if least > lead:
                        lead, i, best = least, best, i
                    if i >= 0 and bound[i] > rival:
                        rival, runner = bound[i], i
            if rival >= lead:
                best = _first_of_best(
                    table, rows, unit, directed, picked, step, worth, price, bound, lead, sure, settled
                )
        if runner == best:
            runner = -1
        picked[step] = best
        bound[best] = nan  # no comparison holds: out
        if inverse[best] < 0.0:
            inverse[best] = _inverse_length(_rough_both(table, rows[best], rows[best])[1], width)


@njit(_PICKS, cache=True, nogil=True)
def mmr_of(relevance: Any, table: Any, rows: Any, keep: Any, balance: Any) -> Any:
    """As at the front door, by cosines in float32 that are within `slack` of the exact ones; close calls are decided exactly.

    A cosine of float32 products and lengths errs by at most 2.1 D 2^-24 (Higham 2002, section 3.1), a direction's grid adds
    D 2^-24 at most; vectors that are too long or short for float32 products are compared exactly.
    """
    _check(relevance, table, rows)
    count, width = len(relevance), table.shape[1]
    picked = np.empty(max(0, min(keep, count)), np.int32)
    room = np.empty((5, count))
    told = np.zeros(
        (3, count), np.int32
    )  # at how many picks one looked, roughly and exactly; whether `unit` has the direction
    due = np.empty(count + 1, np.int32)
    unit = np.empty((count, width), np.float32)
    price, slack = 1.0 - balance, _slack(width)
    for i in range(count):
        room[0, i] = balance * np.float64(relevance[i])
        room[1, i] = room[0, i] + price * (1.0 + slack)
        room[2, i] = room[3, i] = room[4, i] = -1.0
    _mmr(
        table, rows, price, room[0], room[1], room[2], room[3], room[4], told[0], told[1], told[2], due, unit, picked
    )  # fmt: skip
    return picked


@inner()
def _dpp(
    table: Any, rows: Any, worth: Any, quality: Any, rest: Any, gain: Any, root: Any,
    looked: Any, directed: Any, due: Any, unit: Any, shared: Any, picked: Any,
) -> None:  # fmt: skip
    best = runner = -1
    filling = False
    for step in range(len(picked)):
        best, lead, second = -1, 0.0, 0.0
        due[0] = runner
        reaching, runner = 0 if runner < 0 or filling else 1, -1
        for turn in range(2):
            if turn and not filling:
                reaching = _reaching(gain, lead, due)
            for place in range(reaching):
                i = due[place]
                if i == best:
                    continue
                while looked[i] < step and gain[i] >= lead:
                    k = looked[i]
                    other = picked[k]
                    if not directed[i]:
                        _direct(table, rows[i], unit, i)
                        directed[i] = 1
                    left = _product(unit, i, other)
                    for j in range(k):
                        left -= shared[other, j] * shared[i, j]
                    left /= root[k]
                    shared[i, k] = left
                    rest[i] -= left * left
                    gain[i] = quality[i] * rest[i] if rest[i] > COPY else 0.0
                    looked[i] += 1
                if gain[i] < lead or gain[i] <= 0.0:
                    continue
                if gain[i] > lead or i < best:
                    lead, i, best = gain[i], best, i
                if i >= 0 and gain[i] > second:
                    second, runner = gain[i], i
        if best < 0:
            filling = True
            best = _first_of_most(worth, gain)
        picked[step] = best
        if not directed[best]:
            _direct(table, rows[best], unit, best)
            directed[best] = 1
        root[step] = sqrt(rest[best])
        gain[best] = nan  # no comparison holds: out


@njit(_PICKS, cache=True, nogil=True)
def dpp_of(relevance: Any, table: Any, rows: Any, keep: Any, strength: Any) -> Any:
    """As at the front door. The sums that are not exact are taken in the reference's order, so that all bits agree."""
    _check(relevance, table, rows)
    count, width = len(relevance), table.shape[1]
    picked = np.empty(max(0, min(keep, count)), np.int32)
    room = np.empty((5, count))  # worth, quality; what the picks leave of each variance; gain; the roots, by pick
    told = np.zeros((2, count), np.int32)  # at how many picks one looked; whether `unit` has the direction
    due = np.empty(count + 1, np.int32)
    unit = np.empty((count, width), np.float32)
    shared = np.empty((count, len(picked)))  # what each has in common with each pick, beyond the picks before that
    top = -inf
    for i in range(count):
        top = max(top, np.float64(relevance[i]))
    for i in range(count):
        room[0, i] = relevance[i]
        room[1, i] = 0.0
        if strength > 0.0:
            room[1, i] = 1.0 if room[0, i] == top else exp((1.0 - strength) / strength * (room[0, i] - top))
        room[2, i] = 1.0
        room[3, i] = room[1, i]
    _dpp(table, rows, room[0], room[1], room[2], room[3], room[4], told[0], told[1], due, unit, shared, picked)
    return picked


@njit(types.boolean(_F2), cache=True, nogil=True)
def finite(vectors: Any) -> Any:
    """Whether no value of (N, D) is NaN or infinite."""
    sound = True
    for row in range(len(vectors)):
        sound &= _all_finite(vectors[row])
    return sound
