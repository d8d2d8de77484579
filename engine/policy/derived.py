"""What rules work out once for a snapshot's item table and keep for as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from engine.snapshot import ItemTable

Made = TypeVar("Made")


class OncePerTable(Generic[Made]):
    """A function of an item table that remembers its answers; it holds no table, and forgets with it.

    Threads that ask at once may each work it out; all get an equal answer.
    """

    def __init__(self, make: Callable[[ItemTable], Made]) -> None:
        self._make = make
        self._made: dict[int, tuple[Any, Made]] = {}

    def __call__(self, items: ItemTable) -> Made:
        # A table takes no weak reference; an array that it alone holds lives as long.
        anchor = items.has_regions
        key = id(anchor)
        found = self._made.get(key)
        if found is not None and found[0]() is anchor:
            return found[1]
        made = self._make(items)
        self._made[key] = (weakref.ref(anchor, lambda gone: self._forget(key, gone)), made)
        return made

    def _forget(self, key: int, gone: Any) -> None:
        # The number of an array that went may already be another's.
        if (found := self._made.get(key)) is not None and found[0] is gone:
            del self._made[key]

    def __len__(self) -> int:
        return len(self._made)
