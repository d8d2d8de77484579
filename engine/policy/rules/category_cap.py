"""Category cap: no root category takes more than its share of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import PolicyError
from engine.policy.slate import Moment, Slate, Verdict


@dataclass(frozen=True, slots=True)
class CategoryCap:
    """Keeps the first few of each root category; items without a category are not capped.

    What is over the cap comes back, last, only where the list would otherwise be shorter than asked for. Elsewhere the
    cap holds for the whole slate, so it still holds when a later rule reorders or removes.

    Args:
        share: of the list that one category may take, over 0 and up to 1; at least one item.
    """

    name: ClassVar[str] = "category_cap"
    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PolicyError(f"category_cap: share is {self.share}.", "Choose it over 0 and up to 1.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is over the cap and not needed to fill the list."""
        most = max(1, int(self.share * moment.limit + 1e-9))  # 0.29 * 100 is a little less than 29
        root = moment.items.root_category[slate.item]
        over = beyond(root, most) & (root >= 0)
        kept = np.flatnonzero(~over)
        missing = moment.limit - len(kept)
        if missing > 0:
            kept = np.concatenate([kept, np.flatnonzero(over)[:missing]])
        return Verdict(kept, {"category_full": len(slate) - len(kept)})


def beyond(values: NDArray[np.integer], most: int) -> NDArray[np.bool_]:
    """(n,) whether at least `most` equal values, 1 or more, stand before each value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    result = np.zeros(len(values), np.bool_)
    # Sorted, the one that stands `most` places before is equal only where there are so many.
    result[order[most:]] = ordered[most:] == ordered[:-most]
    return result
