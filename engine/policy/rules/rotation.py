"""Rotation: near neighbours in a list take turns, so that a visit is not the one before; within a visit the list keeps still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from engine.errors import PolicyError
from engine.policy.rules.draws import mixed
from engine.policy.slate import Moment, Slate, Verdict, everyone


@dataclass(frozen=True, slots=True)
class Rotation:
    """Turns each window of the list by a number of places that the seed gives: every item stands at each place of its window
    with the same chance. A seed of 0 turns nothing.

    Args:
        window: places of a window, at least 2.
        keep_first: places that stand still at the beginning, keep_last: at the end.
    """

    name: ClassVar[str] = "rotation"
    window: int = 3
    keep_first: int = 2
    keep_last: int = 0

    def __post_init__(self) -> None:
        if self.window < 2 or self.keep_first < 0 or self.keep_last < 0:
            raise PolicyError(
                f"rotation: window={self.window}, keep_first={self.keep_first}, keep_last={self.keep_last}.",
                "Choose a window of at least 2, and 0 or more of the others.",
            )

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        last = min(len(slate), moment.limit) - self.keep_last
        if not moment.seed or last - self.keep_first < 2:
            return Verdict(everyone(len(slate)))
        order, propensity = turned(len(slate), self.keep_first, last, self.window, moment.seed)
        return Verdict(order, propensity=propensity)


@njit(
    "Tuple((int64[::1], float32[::1]))(int64, int64, int64, int64, uint64)",
    cache=True,
    nogil=True,
)
def turned(count: Any, first: Any, last: Any, window: Any, seed: Any) -> Any:
    """(count,) the new order, and the chance of each to stand where it now stands."""
    order, propensity = np.arange(count), np.ones(count, np.float32)
    for start in range(first, last, window):
        size = min(window, last - start)
        turn = np.int64(mixed(seed, np.uint64(1_000_000 + start)) % np.uint64(size))
        for place in range(size):
            order[start + place] = start + (place + turn) % size
            propensity[start + place] = 1.0 / size
    return order, propensity
