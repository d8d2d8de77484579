"""Availability: what cannot be had now, or not where the person is, is not shown."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from engine.policy import compiled
from engine.policy.derived import OncePerTable
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.snapshot import ItemTable

_OPEN = np.iinfo(np.int64)
_REGIONS = 1024  # whose answers are kept: the caller names them, so there may be any number


@dataclass(frozen=True, slots=True)
class Availability:
    """Keeps what is on sale at this moment (from its start, up to but not including its end) and in this region."""

    name: ClassVar[str] = "availability"

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is out of its time or place."""
        items, table, region = slate.item, moment.items, moment.region.upper()
        places = places_of(table)
        while True:
            kept, late, elsewhere, unknown = compiled.available(
                items, places.flags, table.available_from, table.available_until, places.of_item, places.covered(region),
                moment.now_us,
            )  # fmt: skip
            if not unknown:
                break
            places.learn(table, items)
        if len(kept) == len(items):
            return Verdict(everyone(len(kept)))
        return Verdict(kept, {"unavailable": late, "not_in_region": elsewhere})


class Places:
    """Where the items of one table are sold, as numbers: each list of regions that is met gets the next one."""

    def __init__(self, items: ItemTable) -> None:
        timed = (items.available_from != _OPEN.min) | (items.available_until != _OPEN.max)
        limited = items.has_regions.astype(np.uint8) * np.uint8(compiled.LIMITED)
        self.flags: Final = timed.astype(np.uint8) * np.uint8(compiled.TIMED) | limited
        self.of_item: Final = np.full(items.count, -1, np.int32)  # -1: not met yet
        self._numbers: dict[tuple[str, ...], int] = {}
        self._covered: dict[str, NDArray[np.bool_]] = {}
        self._lock = threading.Lock()

    def covered(self, region: str) -> NDArray[np.bool_]:
        """(p,) whether items of each place may be shown in a region of upper case."""
        found = self._covered.get(region)
        if found is None or len(found) < len(self._numbers):
            with self._lock:
                found = np.array([covers(list(names), region) for names in self._numbers], np.bool_)
                if len(self._covered) >= _REGIONS:
                    self._covered.clear()
                self._covered[region] = found
        return found

    def learn(self, items: ItemTable, codes: NDArray[np.int32]) -> None:
        """Number the places of these items."""
        limited = codes[items.has_regions[codes]]
        with self._lock:
            for code in limited[self.of_item[limited] < 0].tolist():
                names = tuple(sorted({name.upper() for name in items.regions(code)}))
                self.of_item[code] = self._numbers.setdefault(names, len(self._numbers))


places_of = OncePerTable(Places)


def covers(regions: list[str], region: str) -> bool:
    """Whether an item limited to these regions may be shown in a region.

    DE covers DE-BY. DE-BY does not cover DE: a person somewhere in Germany may not be in Bavaria. Nothing covers ''.
    """
    return any(region == wide or region.startswith(f"{wide}-") for wide in map(str.upper, regions) if wide)
