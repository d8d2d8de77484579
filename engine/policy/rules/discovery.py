"""Discovery: some room for what few know or nobody knows yet, as far as it suits this person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit, types

from engine.errors import PolicyError
from engine.policy.positions import raised
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.schema import LANES

_KINDS = (types.int32, types.uint8, types.float32, types.bool_, types.int64)
_POPULAR = np.uint8(LANES.index("popular"))
_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Discovery:
    """Brings tail and new items into the list until they have their share of it, the most relevant first; they take places of
    the lower part in turns, and what stood lowest goes below the list.

    Args:
        share: of the list, at least, as far as there are such candidates.
        from_place: the first place, 1-based, that one of them may be put to.
        new_days: for how long after its start an item is new.
    """

    name: ClassVar[str] = "discovery"
    share: float = 0.15
    from_place: int = 4
    new_days: float = 14.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise PolicyError(f"discovery: share is {self.share}.", "Choose it from 0 to 1.")
        if self.from_place < 1 or not self.new_days >= 0:
            raise PolicyError(
                f"discovery: from_place={self.from_place}, new_days={self.new_days}.",
                "Choose 1 or more, and 0 or more.",
            )

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        limit = min(moment.limit, len(slate.item))
        floor = int(np.ceil(self.share * limit - 1e-9))
        table, newer = moment.items, moment.now_us - int(self.new_days * _DAY)
        fresh = tail_or_new(slate.item, slate.lane, slate.score, table.tail, table.available_from, newer)
        order = raised(fresh, np.zeros(len(fresh), np.bool_), limit, floor, min(self.from_place, limit) - 1)
        return Verdict(order if len(order) else everyone(len(slate.item)))


@njit(types.bool_[::1](*(types.Array(kind, 1, "C", readonly=True) for kind in _KINDS), types.int64), cache=True)
def tail_or_new(items: Any, lanes: Any, scores: Any, tail: Any, since: Any, newer: Any) -> Any:
    """(n,) which candidates are.

    Args:
        tail, since: (I,) of the catalogue. newer: what began later is new.
    """
    fresh = np.empty(len(items), np.bool_)
    for row in range(len(items)):
        item = items[row]
        if not 0 <= item < len(tail) or item >= len(since):
            raise IndexError("an item code lies outside the snapshot")
        # What is shown to everybody was not chosen for this person.
        fresh[row] = (tail[item] or since[item] > newer) and lanes[row] != _POPULAR and scores[row] > np.float32(0)
    return fresh
