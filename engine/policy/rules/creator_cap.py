"""Creator cap: no maker, author or brand takes more than their share of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.policy.capping import capped, check_share
from engine.policy.slate import Moment, Slate, Verdict


@dataclass(frozen=True, slots=True)
class CreatorCap:
    """Keeps the first few of each creator; items without a creator are not capped. What is over the cap comes back, last, where
    the list would be shorter.

    Args:
        share: of the list that one creator may take, over 0 and up to 1; at least one item.
    """

    name: ClassVar[str] = "creator_cap"
    share: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.name, self.share)

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is over the cap and not needed to fill the list."""
        return capped(slate, moment, moment.items.creator, self.share, "creator_full")
