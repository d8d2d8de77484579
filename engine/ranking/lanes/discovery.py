"""What few know and this person may like: the tower's best among the items that the crowd's wants leave out."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ranking.found import Found
from engine.ranking.lanes.two_tower import search
from engine.ranking.people import People, Shop


@dataclass(frozen=True, slots=True)
class DiscoveryLane:
    """keep: candidates per person and profile. trust: what a score is multiplied with beside other lanes'."""

    keep: float = 30
    trust: float = 0.6

    def find(self, people: People, shop: Shop) -> Found:
        """As the two-tower lane, over the tail alone; relevance to the person decides, never chance."""
        return search(people, shop, shop.tail, int(self.keep), self.trust)
