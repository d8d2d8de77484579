"""Fatigue: what was shown again and again and never opened makes room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit, types

from engine.errors import PolicyError
from engine.policy.slate import Moment, Slate, Verdict, everyone


@dataclass(frozen=True, slots=True)
class Fatigue:
    """Moves such items down, the further the more often they were shown, and removes them in the end.

    Args:
        after: times shown from which on an item moves down.
        factor: its place is multiplied with, for each of these times.
        most: times shown from which on it goes.
    """

    name: ClassVar[str] = "fatigue"
    after: int = 3
    factor: float = 1.6
    most: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.after <= self.most:
            raise PolicyError(f"fatigue: after={self.after}, most={self.most}.", "Choose 1 <= after <= most.")
        if not 1 <= self.factor <= 100:
            raise PolicyError(f"fatigue: factor is {self.factor}.", "Choose it from 1 to 100.")

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder and remove."""
        if not len(moment.shown):
            return Verdict(everyone(len(slate)))
        kept = tired(slate.item, moment.shown, moment.times, self.after, self.factor, self.most)
        return Verdict(kept, {"shown_often": len(slate.item) - len(kept)})


@njit(
    types.int64[::1](*(types.Array(types.int32, 1, "C", readonly=True),) * 3, types.int64, types.float64, types.int64),
    cache=True,
)
def tired(items: Any, shown: Any, times: Any, after: Any, factor: Any, most: Any) -> Any:
    """Positions that are kept, in their new order; shown: ascending."""
    if len(shown) != len(times):
        raise ValueError("shown and times differ in length")
    count = len(items)
    rows, places, fresh = np.empty(count, np.int64), np.empty(count, np.float64), np.empty(count, np.int64)
    late, early = 0, 0
    for row in range(count):
        low, high = 0, len(shown)
        while low < high:
            middle = (low + high) // 2
            if shown[middle] < items[row]:
                low = middle + 1
            else:
                high = middle
        seen = np.int64(times[low]) if low < len(shown) and shown[low] == items[row] else 0
        if seen >= most:
            continue
        if seen < after:
            fresh[early] = row
            early += 1
            continue
        # In order of their new places: few, so that inserting each is cheapest.
        place, at = (row + 1.0) * factor ** (seen - after + 1), late
        while at > 0 and places[at - 1] > place:
            places[at], rows[at] = places[at - 1], rows[at - 1]
            at -= 1
        places[at], rows[at] = place, row
        late += 1
    kept = np.empty(early + late, np.int64)
    i, j = 0, 0
    for place in range(early + late):
        if j < late and (i == early or places[j] < fresh[i] + 1.0):
            kept[place] = rows[j]
            j += 1
        else:
            kept[place] = fresh[i]
            i += 1
    return kept
