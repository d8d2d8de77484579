"""Price cap: no price band takes more than its share of a list, so that cheap and dear stand side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import PolicyError
from engine.policy.capping import capped, check_share
from engine.policy.derived import OncePerTable
from engine.policy.slate import Moment, Slate, Verdict
from engine.snapshot import ItemTable

_MOST = 100  # bands a decade: 2.3 % wide


@dataclass(frozen=True, slots=True)
class PriceCap:
    """Keeps the first few of each price band; items without a price are not capped. What is over the cap comes back, last,
    where the list would be shorter.

    Args:
        share: of the list that one band may take, over 0 and up to 1; at least one item.
        bands_per_decade: bands between a price and ten times that price: with 3 each is 2.15 times as dear as the one below.
    """

    name: ClassVar[str] = "price_cap"
    share: float = 0.5
    bands_per_decade: int = 3

    def __post_init__(self) -> None:
        check_share(self.name, self.share)
        if not 1 <= self.bands_per_decade <= _MOST:
            found = f"price_cap: bands_per_decade is {self.bands_per_decade}."
            raise PolicyError(found, f"Choose it from 1 to {_MOST}; 3 is usual.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is over the cap and not needed to fill the list."""
        return capped(slate, moment, _bands_of(self.bands_per_decade)(moment.items), self.share, "price_full")


def bands(price: NDArray[np.float32], per_decade: int) -> NDArray[np.int32]:
    """(n,) the band of each price, dearer ones higher; all that are free in band 0, and -1 where there is no price."""
    found = np.full(len(price), -1, np.int32)
    priced, free = np.isfinite(price) & (price > 0), price == 0
    # In float64, or ten times a price might fall short of so many bands further up. The least price there is is band 1.
    scaled = np.floor(np.log10(price[priced].astype(np.float64)) * per_decade + 1e-6)
    found[priced] = scaled.astype(np.int32) + 46 * per_decade + 1
    found[free] = 0
    return found


@cache
def _bands_of(per_decade: int) -> OncePerTable[NDArray[np.int32]]:
    def of_table(items: ItemTable) -> NDArray[np.int32]:
        return bands(items.price, per_decade)

    return OncePerTable(of_table)
