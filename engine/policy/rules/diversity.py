"""Diversity: neighbours in a list are unlike each other, as far as relevance lets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.errors import PolicyError
from engine.kernels.rerank import cpu
from engine.policy.positions import falling, foremost
from engine.policy.slate import Moment, Slate, Verdict, everyone

_METHODS = ("mmr", "dpp")


@dataclass(frozen=True, slots=True)
class Diversity:
    """Fills the list by relevance and unlikeness of item vectors (engine/kernels/rerank); the others follow in their order.

    Args:
        strength: 0 leaves the order, 1 looks at variety alone; a request's own diversity stands in its place.
        pool: how many of the first candidates may enter the list.
        method: mmr, or dpp, which looks at all of the list at once and takes longer.
    """

    name: ClassVar[str] = "diversity"
    strength: float = 0.2
    pool: int = 100
    method: str = "mmr"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise PolicyError(f"diversity: strength is {self.strength}.", "Choose it from 0 to 1.")
        if self.pool < 1:
            raise PolicyError(f"diversity: pool is {self.pool}.", "Choose at least 1; five lists long is usual.")
        if self.method not in _METHODS:
            raise PolicyError(f"diversity: method is '{self.method}'.", f"Known: {', '.join(_METHODS)}.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        strength = self.strength if moment.diversity is None else moment.diversity
        count = len(slate)
        pool = min(self.pool, count)
        if strength == 0 or pool < 2:
            return Verdict(everyone(count))
        relevance = falling(pool)
        vectors, rows, keep = moment.items.vector, slate.item[:pool], min(moment.limit, pool)
        if self.method == "mmr":
            first = cpu.mmr_of(relevance, vectors, rows, keep, 1 - strength)
        else:
            first = cpu.dpp_of(relevance, vectors, rows, keep, strength)
        return Verdict(foremost(first, count))
