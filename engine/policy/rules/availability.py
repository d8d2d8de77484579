"""Availability: what cannot be had now, or not where the person is, is not shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.policy.slate import Moment, Slate, Verdict


@dataclass(frozen=True, slots=True)
class Availability:
    """Keeps what is on sale at this moment (from its start, up to but not including its end) and in this region."""

    name: ClassVar[str] = "availability"

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is out of its time or place."""
        items = moment.items
        shown = items.available_from.take(slate.item) <= moment.now_us
        shown &= items.available_until.take(slate.item) > moment.now_us
        in_time = int(np.count_nonzero(shown))
        limited = np.flatnonzero(shown & items.has_regions.take(slate.item))
        if len(limited):
            region = moment.region.upper()
            shown[limited] = [covers(items.regions(code), region) for code in slate.item[limited].tolist()]
        kept = np.flatnonzero(shown)
        return Verdict(kept, {"unavailable": len(slate) - in_time, "not_in_region": in_time - len(kept)})


def covers(regions: list[str], region: str) -> bool:
    """Whether an item limited to these regions may be shown in a region.

    DE covers DE-BY. DE-BY does not cover DE: a person somewhere in Germany may not be in Bavaria. Nothing covers ''.
    """
    return any(region == wide or region.startswith(f"{wide}-") for wide in map(str.upper, regions) if wide)
