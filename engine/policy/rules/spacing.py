"""Spacing: neighbours in a list are not of one shelf and one maker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.errors import PolicyError
from engine.kernels.rerank import cpu
from engine.policy.positions import foremost
from engine.policy.slate import Moment, Slate, Verdict, everyone


@dataclass(frozen=True, slots=True)
class Spacing:
    """Of each few places in a row, at most some go to one root category, and to one creator; the next that fits moves up.

    Args:
        window: places in a row that are looked at; 0 or 1: nothing is.
        most: of one root category within them. most_creator: of one creator.
        pool: how many of the first candidates may move.
    """

    name: ClassVar[str] = "spacing"
    window: int = 3
    most: int = 2
    most_creator: int = 1
    pool: int = 100

    def __post_init__(self) -> None:
        if self.window < 0 or self.most < 1 or self.most_creator < 1 or self.pool < 1:
            raise PolicyError(
                f"spacing: window={self.window}, most={self.most}, most_creator={self.most_creator}.",
                "Choose a window of 0 or more, and at least 1 of the others.",
            )

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        count = len(slate.item)
        pool = min(self.pool, count)
        if self.window < 2 or pool < 2:
            return Verdict(everyone(count))
        keep, items, table = min(moment.limit, pool), slate.item[:pool], moment.items
        order = cpu.space(table.creator.take(items), keep, self.window, self.most_creator)
        # The category comes last, for it is what one sees: where both cannot be had, it holds.
        again = cpu.space(table.root_category.take(items.take(order)), keep, self.window, self.most)
        return Verdict(foremost(order.take(again), count))
