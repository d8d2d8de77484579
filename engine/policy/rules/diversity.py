"""Diversity: neighbours in a list are unlike each other, as far as relevance lets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.errors import PolicyError
from engine.kernels.rerank import mmr
from engine.policy.slate import Moment, Slate, Verdict


@dataclass(frozen=True, slots=True)
class Diversity:
    """Fills the list by maximal marginal relevance over item vectors; the other candidates follow in their order.

    Args:
        strength: 0 leaves the order, 1 looks at variety alone; a request's own diversity stands in its place.
        pool: how many of the first candidates may enter the list.
    """

    name: ClassVar[str] = "diversity"
    strength: float = 0.2
    pool: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise PolicyError(f"diversity: strength is {self.strength}.", "Choose it from 0 to 1.")
        if self.pool < 1:
            raise PolicyError(f"diversity: pool is {self.pool}.", "Choose at least 1; five lists long is usual.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        strength = self.strength if moment.diversity is None else moment.diversity
        everyone = np.arange(len(slate))
        pool = min(self.pool, len(slate))
        if strength == 0 or pool < 2:
            return Verdict(everyone)
        # Relevance is the place, not the score: scores of the lanes fall off steeply, so that on any linear scale all
        # but the first few would look equally poor and variety alone would choose among them.
        relevance = np.arange(pool, 0, -1, dtype=np.float32) / np.float32(pool)
        first = mmr(relevance, moment.items.vector.take(slate.item[:pool], axis=0), moment.limit, 1 - strength)
        follows = np.ones(len(slate), np.bool_)
        follows[first] = False
        return Verdict(np.concatenate([first, everyone[follows]]))
