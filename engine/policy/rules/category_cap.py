"""Category cap: no root category takes more than its share of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.policy.capping import capped, check_share
from engine.policy.slate import Moment, Slate, Verdict


@dataclass(frozen=True, slots=True)
class CategoryCap:
    """Keeps the first few of each root category; items without a category are not capped. What is over the cap
    comes back, last, where the list would be shorter.

    Args:
        share: of the list that one category may take, over 0 and up to 1; at least one item.
    """

    name: ClassVar[str] = "category_cap"
    share: float = 0.4

    def __post_init__(self) -> None:
        check_share(self.name, self.share)

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is over the cap and not needed to fill the list."""
        return capped(slate, moment, moment.items.root_category, self.share, "category_full")
