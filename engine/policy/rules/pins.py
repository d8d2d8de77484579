"""Pins: what the shop puts at a place of its own choosing for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from engine.errors import PolicyError
from engine.policy.derived import OncePerTable
from engine.policy.rules.terms import Terms, checked
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.snapshot import ItemTable

_Placed = tuple[NDArray[np.int32], NDArray[np.int32]]  # items and their places, 0-based, ascending


@dataclass(frozen=True, slots=True)
class Pins:
    """Moves pinned items to their places. They rely on nobody's grant, and go where every other rule lets them: what was bought,
    dismissed, blocked or cannot be had is not brought back.

    Args:
        pins: each {item, place: 1-based, until: 2026-12-31, reason: what for}; it holds through that day, in UTC.
    """

    name: ClassVar[str] = "pins"
    pins: tuple[Mapping[str, Any], ...] = ()
    _terms: Terms = field(init=False, repr=False, compare=False)
    _placed: OncePerTable[dict[int, _Placed]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = checked("pins", self.pins, ("item", "place", "until", "reason"))
        for term in terms:
            if type(term["place"]) is not int or not 1 <= term["place"] <= _LAST:
                raise PolicyError(f"pins: place is {term['place']!r}.", f"Give a whole number from 1 to {_LAST}.")
        for what in ("place", "item"):
            if len({term[what] for term in terms}) < len(terms):
                raise PolicyError(f"pins: two entries have one {what}.", "Give each its own.")
        object.__setattr__(self, "pins", terms)  # settings hand over lists
        object.__setattr__(self, "_terms", Terms("pins", terms))
        object.__setattr__(self, "_placed", OncePerTable(_nothing_yet))

    def codes(self, items: ItemTable, now_us: int) -> NDArray[np.int32]:
        """(p,) the items that are pinned at a moment, by place; a list is offered them before its rules run."""
        return self._at(items, now_us)[0]

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        count = len(slate.item)
        codes, places = self._at(moment.items, moment.now_us)
        if not len(codes):
            return Verdict(everyone(count))
        return Verdict(pinned(slate.item, codes, places, moment.limit))

    def _at(self, items: ItemTable, now_us: int) -> _Placed:
        over = self._terms.over(now_us)
        if over == len(self.pins):
            return _NONE
        by_over = self._placed(items)
        found = by_over.get(over)
        if found is None:
            terms = sorted(self._terms.left(over), key=lambda term: int(term["place"]))
            codes = np.array([items.code_of(str(term["item"])) for term in terms], np.int32)
            places = np.array([term["place"] - 1 for term in terms], np.int32)
            found = by_over[over] = codes[codes >= 0], places[codes >= 0]
        return found


@njit(types.int64[::1](*(types.Array(types.int32, 1, "C", readonly=True),) * 3, types.int64), cache=True)
def pinned(items: Any, codes: Any, places: Any, limit: Any) -> Any:
    """(n,) the new order: each pinned item that is there at its place, or last where the list is shorter."""
    count = len(items)
    order, at, found = np.arange(count), np.empty(len(codes), np.int64), 0
    moved, to = np.zeros(count, np.bool_), np.full(count, -1, np.int64)
    for pin in range(len(codes)):
        at[pin] = -1
        if places[pin] < limit:
            for row in range(count):
                if items[row] == codes[pin]:
                    at[pin], moved[row] = row, True
                    found += 1
                    break
    # From the last pin up, so that two beyond the end keep their order.
    free: Any = count - 1
    for pin in range(len(codes) - 1, -1, -1):
        if at[pin] >= 0:
            place: Any = min(np.int64(places[pin]), free)
            to[place], free = at[pin], place - 1
    row = 0
    for slot in range(count):
        if to[slot] >= 0:
            order[slot] = to[slot]
        else:
            while moved[row]:
                row += 1
            order[slot] = row
            row += 1
    return order


def _nothing_yet(_: ItemTable) -> dict[int, _Placed]:
    return {}


_LAST = 1000
_NONE = np.empty(0, np.int32), np.empty(0, np.int32)
