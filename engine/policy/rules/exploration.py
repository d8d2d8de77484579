"""Exploration: a few places are drawn, with chances that are known, so that the shop learns what it would never have shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from engine.errors import PolicyError
from engine.policy.rules.draws import chance
from engine.policy.slate import Moment, Slate, Verdict, everyone


@dataclass(frozen=True, slots=True)
class Exploration:
    """Draws the last places of the list anew, each from candidates of its own below the list. A seed of 0 draws nothing.

    The other places are not touched, and no candidate can come into two of them, so that the chances are exact.

    Args:
        slots: places that are drawn, from the end of the list; at most half of it.
        rate: the chance that a place is drawn at all.
        pool: candidates below the list that may come in; the n-th of a place's own has a share of 1 / n.
    """

    name: ClassVar[str] = "exploration"
    slots: int = 1
    rate: float = 0.2
    pool: int = 40

    def __post_init__(self) -> None:
        if self.slots < 0 or self.pool < 0:
            raise PolicyError(f"exploration: slots={self.slots}, pool={self.pool}.", "Choose 0 or more.")
        if not 0 <= self.rate <= 1:
            raise PolicyError(f"exploration: rate is {self.rate}.", "Choose it from 0 to 1.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        slots = min(self.slots, moment.limit // 2)
        if not moment.seed or not slots or len(slate) <= moment.limit:
            return Verdict(everyone(len(slate)))
        order, propensity = drawn(len(slate), moment.limit, slots, self.rate, self.pool, moment.seed)
        return Verdict(order, propensity=propensity)


@njit(
    "Tuple((int64[::1], float32[::1]))(int64, int64, int64, float64, int64, uint64)",
    cache=True,
    nogil=True,
)
def drawn(count: Any, limit: Any, slots: Any, rate: Any, pool: Any, seed: Any) -> Any:
    """(count,) the new order, and the chance of each to stand where it now stands."""
    order, propensity = np.arange(count), np.ones(count, np.float32)
    last = min(count, limit + pool)
    for slot in range(slots):
        first = limit + slot
        total = 0.0
        for nth in range((last - first + slots - 1) // slots if first < last else 0):
            total += 1.0 / (nth + 1)
        if total == 0.0:
            continue
        place = limit - slots + slot
        if chance(seed, np.uint64(2 * slot)) >= rate:
            propensity[place] = 1.0 - rate
            continue
        left, taken = chance(seed, np.uint64(2 * slot + 1)) * total, first
        for at in range(first, last, slots):
            taken = at
            left -= 1.0 / ((at - first) // slots + 1)
            if left < 0.0:
                break
        nth = (taken - first) // slots
        order[place], order[taken] = order[taken], order[place]
        propensity[place] = rate / (nth + 1) / total
    return order, propensity
