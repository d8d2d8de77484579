"""Kinds of items: events, places and what else is of the neighbourhood have their places beside products, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from engine.errors import PolicyError
from engine.policy.derived import OncePerTable
from engine.policy.paths import within
from engine.policy.positions import raised
from engine.policy.rules.terms import checked
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.snapshot import ItemTable

_MOST_KINDS = 64
_I1, _K1 = (types.Array(kind, 1, "C", readonly=True) for kind in (types.int32, types.int8))
_N1 = types.Array(types.int64, 1, "C", readonly=True)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Holds the list to at most, and as far as there are candidates to at least, so much of each kind.

    What is over `most` goes; it comes back, last, only where the list would be shorter. What is brought up to reach `least`
    stands spread over the lower part of the list, the best first.

    Args:
        kinds: each {kind: event, categories: [concerts, markets], least: 0.1, most: 0.3}: an item is of the first kind that has
            one of its categories, at whatever depth; of none, it is a product. least and most are shares of the list.
        from_place: the first place, 1-based, that something is brought up to.
        offered: the most popular ones of each kind, by root category, that every list may draw upon: few of them are among what
            sells best, or among anybody's candidates.
    """

    name: ClassVar[str] = "kinds"
    kinds: tuple[Mapping[str, Any], ...] = ()
    from_place: int = 4
    offered: int = 10
    _of_items: OncePerTable[NDArray[np.int8]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = checked("kinds", self.kinds, ("kind", "categories"), ("least", "most"))
        for kind in kinds:
            name, least, most = kind["kind"], *_bounds(kind)
            if not (isinstance(least, int | float) and isinstance(most, int | float) and 0 <= least <= most <= 1):
                raise PolicyError(
                    f"kinds: {name}: least is {least!r}, most is {most!r}.", "Choose 0 <= least <= most <= 1."
                )
            if isinstance(kind["categories"], str):
                raise PolicyError(f"kinds: {name}: categories is '{kind['categories']}'.", "Write a list of names.")
        if sum(_bounds(kind)[0] for kind in kinds) > 1:
            raise PolicyError(
                "kinds: what they take at least comes to more than the list.", "Lower some of the floors."
            )
        if len(kinds) > _MOST_KINDS or self.from_place < 1 or self.offered < 0:
            raise PolicyError(
                f"kinds: {len(kinds)} kinds, from_place={self.from_place}, offered={self.offered}.",
                f"Choose at most {_MOST_KINDS} kinds, a place of 1 or more, and 0 or more.",
            )
        object.__setattr__(self, "kinds", kinds)  # settings hand over lists
        object.__setattr__(self, "_of_items", OncePerTable(self._kinds_of))

    @property
    def categories(self) -> list[str]:
        """All that make up some kind."""
        return [str(name) for kind in self.kinds for name in kind["categories"]]

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is over, and bring up what is lacking."""
        count, limit = len(slate.item), moment.limit
        if not self.kinds or not count:
            return Verdict(everyone(count))
        of_items = self._of_items(moment.items)
        bounds = [_bounds(kind) for kind in self.kinds]
        most = np.array([int(share * limit + 1e-9) for _, share in bounds], np.int64)
        kept = under(slate.item, of_items, most, limit)
        own = of_items.take(slate.item.take(kept))
        floors = [int(np.ceil(share * min(limit, len(kept)) - 1e-9)) for share, _ in bounds]
        for kind, floor in enumerate(floors):
            if floor:
                # Others stay, up to their own floors: what one kind brings up another must not send down.
                order = raised(
                    own == kind, _owed(own, floors, limit, kind), limit, floor, min(self.from_place, limit) - 1
                )
                if len(order):
                    kept, own = kept.take(order), own.take(order)
        return Verdict(kept, {"kind_full": count - len(kept)})

    def _kinds_of(self, items: ItemTable) -> NDArray[np.int8]:
        """(I,) the kind of each item, -1: a product."""
        paths, every = items.paths, np.arange(items.count, dtype=np.int32)
        found = np.full(items.count, -1, np.int8)
        for code, kind in reversed([*enumerate(self.kinds)]):
            known = [paths.by_name[name] for name in map(str, kind["categories"]) if name in paths.by_name]
            named = np.array(known, np.int32)
            found[within(every, paths.offsets, paths.codes, named, len(paths.names))] = code
        return found


def _bounds(kind: Mapping[str, Any]) -> tuple[Any, Any]:
    return kind.get("least", 0.0), kind.get("most", 1.0)


def _owed(own: NDArray[np.int8], floors: list[int], limit: int, asking: int) -> NDArray[np.bool_]:
    """Which candidates other kinds need for their own floors: the first so many of each."""
    owed = np.zeros(len(own), np.bool_)
    for kind, floor in enumerate(floors):
        if kind != asking and floor:
            owed[np.flatnonzero(own[:limit] == kind)[:floor]] = True
    return owed


@njit(types.int64[::1](_I1, _K1, _N1, types.int64), cache=True)
def under(items: Any, of_items: Any, most: Any, limit: Any) -> Any:
    """Positions of the first so many of each kind, and behind them of as many others as a list of `limit` lacks."""
    count = len(items)
    tally, kept, over = np.zeros(len(most), np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    inside, waiting = 0, 0
    for row in range(count):
        if not 0 <= items[row] < len(of_items):
            raise IndexError("an item code lies outside the snapshot")
        kind = of_items[np.uint64(items[row])]
        full = False
        if kind >= 0:
            full = tally[kind] >= most[kind]
            tally[kind] += 1
        if full:
            over[waiting] = row
            waiting += 1
        else:
            kept[inside] = row
            inside += 1
    back = max(0, min(limit - inside, waiting))
    for row in range(back):
        kept[inside + row] = over[row]
    return kept[: inside + back]
