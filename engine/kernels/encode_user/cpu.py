"""Pooling and encoding in one compiled pass a person: by day for one reply, by night for a block, the same bits either way.

Matrices are walked input by input, so that the compiler may add up all outputs side by side without changing the order in
which any of them is summed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from engine.kernels.encode_user.reference import EPSILON, F32, MICROSECONDS_A_DAY, UserTower

# Compiled when imported, so before a server listens; read-only, for what is mapped from a snapshot is.
_F1, _F2, _I8, _U8 = (
    types.Array(kind, ndim, "C", readonly=True)
    for kind, ndim in ((types.float32, 1), (types.float32, 2), (types.int64, 1), (types.uint64, 1))
)
_ROWS = (_F2, _F2, _I8, _U8)
_TOWER = (_F1, _F1, _F2, _F1, _F2, _F1, _F1, _F1)
_LEAST = np.float32(1e-30)  # a weight below it counts as this much, as in the reference


class Encoder:
    """A tower laid out for the compiled code. Threads may share it."""

    def __init__(self, tower: UserTower) -> None:
        self.width = tower.width
        self.decays = len(tower.rates)
        turned = {"enter": tower.enter.T, "leave": tower.leave.T}
        self._parts = tuple(
            np.array(turned.get(name, array), np.float32, order="C") for name, array in tower.arrays().items()
        )

    def one(self, sums: F32, weights: F32, last: NDArray[np.int64], needs: NDArray[np.uint64], granted: int) -> F32:
        """One person's vector from the groups of events that some grants allow.

        Args:
            sums: (n, K * D) decayed sums of item vectors, decay by decay, each relative to its group's last event.
            weights: (n, K) decayed weights, likewise. last: (n,) microseconds since the epoch.
            needs: (n,) the grants that each group asks for. granted: mask.

        Returns:
            (D,) `encode` of what `pool` makes of these groups; zeros where none is allowed.
        """
        vector = np.zeros(self.width, np.float32)
        _one(sums, weights, last, needs, 0, len(needs), np.uint64(granted), vector, *self._parts)
        return vector

    def many(
        self,
        sums: F32,
        weights: F32,
        last: NDArray[np.int64],
        needs: NDArray[np.uint64],
        first: NDArray[np.int64],
        end: NDArray[np.int64],
        granted: int,
    ) -> F32:
        """(P, D) the vectors of people whose groups are rows first[p]..end[p] of the arrays that `one` takes."""
        vectors = np.zeros((len(first), self.width), np.float32)
        _many(sums, weights, last, needs, first, end, np.uint64(granted), vectors, *self._parts)
        return vectors


@njit(types.void(*_ROWS, types.int64, types.int64, types.uint64, types.float32[::1], *_TOWER), cache=True, nogil=True)
def _one(
    sums: Any,
    weights: Any,
    last: Any,
    needs: Any,
    first: Any,
    end: Any,
    granted: Any,
    vector: Any,
    rates: Any,
    mix: Any,
    enter: Any,
    enter_bias: Any,
    leave: Any,
    leave_bias: Any,
    gain: Any,
    shift: Any,
) -> None:
    decays, width, hidden_width = len(rates), len(gain), len(enter_bias)
    withheld = ~granted
    latest = np.int64(np.iinfo(np.int64).min)
    for row in range(first, end):
        if not needs[row] & withheld and last[row] > latest:
            latest = last[row]
    means = np.zeros(decays * width, np.float32)
    mass = np.zeros(decays, np.float32)
    for row in range(first, end):
        if needs[row] & withheld:
            continue
        days = np.float64(latest - last[row]) / MICROSECONDS_A_DAY
        for k in range(decays):
            fade = np.float32(np.exp(-days * np.float64(rates[k])))
            mass[k] += fade * weights[row, k]
            for d in range(k * width, (k + 1) * width):
                means[d] += fade * sums[row, d]
    known = False
    root = np.float32(np.sqrt(np.float64(width)))
    for k in range(decays):
        known |= mass[k] > 0
        share = max(mass[k], _LEAST)
        for d in range(k * width, (k + 1) * width):
            means[d] = means[d] / share * root
    if not known:
        return
    hidden = np.zeros(hidden_width, np.float32)
    for k in range(decays * width):
        value = means[k]
        for h in range(hidden_width):
            hidden[h] += value * enter[k, h]
    made = np.zeros(width, np.float32)
    for h in range(hidden_width):
        value = hidden[h] + enter_bias[h]
        value *= np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * value)
        for d in range(width):
            made[d] += value * leave[h, d]
    centre = 0.0
    for d in range(width):
        pooled = np.float32(0)
        for k in range(decays):
            pooled += means[k * width + d] * mix[k]
        made[d] = pooled + made[d] + leave_bias[d]
        centre += made[d]
    centre /= width
    spread = 0.0
    for d in range(width):
        made[d] -= np.float32(centre)
        spread += np.float64(made[d]) * made[d]
    scale = np.float32(np.sqrt(spread / width + EPSILON))
    for d in range(width):
        vector[d] = made[d] / scale * gain[d] + shift[d]


@njit(types.void(*_ROWS, _I8, _I8, types.uint64, types.float32[:, ::1], *_TOWER), cache=True, nogil=True)
def _many(
    sums: Any,
    weights: Any,
    last: Any,
    needs: Any,
    first: Any,
    end: Any,
    granted: Any,
    vectors: Any,
    rates: Any,
    mix: Any,
    enter: Any,
    enter_bias: Any,
    leave: Any,
    leave_bias: Any,
    gain: Any,
    shift: Any,
) -> None:
    for p in range(len(first)):
        _one(
            sums, weights, last, needs, first[p], end[p], granted, vectors[p],
            rates, mix, enter, enter_bias, leave, leave_bias, gain, shift,
        )  # fmt: skip
