"""The usual, within bounds: what is bought again and again must not fill the list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit, types

from engine.errors import PolicyError
from engine.policy.slate import Moment, Slate, Verdict
from engine.schema import LANES

_USUAL = LANES.index("usual")


@dataclass(frozen=True, slots=True)
class UsualQuota:
    """Keeps the best of the lane `usual` and removes the others, but where the list would be shorter without them.

    Args:
        share: of the list that the lane may take; at least one place.
        first: how many of them may stand among the first `among` places; the others come after these.
    """

    name: ClassVar[str] = "usual_quota"
    share: float = 0.4
    first: int = 2
    among: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise PolicyError(f"usual_quota: share is {self.share}.", "Choose it from 0 to 1.")
        if self.first < 0 or self.among < 0:
            raise PolicyError(f"usual_quota: first={self.first}, among={self.among}.", "Choose 0 or more.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is over the quota, and let others in between."""
        most = max(1, int(self.share * moment.limit + 1e-9))
        kept = within_quota(slate.lane, _USUAL, most, self.first, self.among, moment.limit)
        return Verdict(kept, {"usual_quota": len(slate) - len(kept)})


@njit(
    types.int64[::1](
        types.Array(types.uint8, 1, "C", readonly=True),
        types.int64, types.int64, types.int64, types.int64, types.int64,
    ),
    cache=True,
    nogil=True,
)  # fmt: skip
def within_quota(lanes: Any, usual: Any, most: Any, first: Any, among: Any, limit: Any) -> Any:
    """Positions that are kept, in their new order."""
    count = len(lanes)
    others, mine = np.empty(count, np.int64), np.empty(count, np.int64)
    o = m = 0
    for row in range(count):
        if lanes[row] == usual:
            mine[m] = row
            m += 1
        else:
            others[o] = row
            o += 1
    allowed = min(m, max(most, limit - o))  # what is over fills the list where nothing else does
    kept = np.empty(o + allowed, np.int64)
    i = j = 0
    for place in range(o + allowed):
        # In the order of the slate, but for what would come too soon or goes beyond the quota.
        wait = (place < among and j >= first) or (j >= most and i < o)
        if j < allowed and (i >= o or (mine[j] < others[i] and not wait)):
            kept[place] = mine[j]
            j += 1
        else:
            kept[place] = others[i]
            i += 1
    return kept
