"""What must hold before a night is published. A gate that says no leaves yesterday's snapshot serving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class GateSettings:
    """How far a figure may fall below yesterday's, as a share of it; and the least there must be."""

    quality_fall: float = 0.3
    coverage_fall: float = 0.5
    people_fall: float = 0.5
    items_fall: float = 0.5
    least_items: int = 1
    beat_popularity: bool = True


# Figure -> the setting that says how far it may fall. The names are those of a snapshot's metrics.
_FALLS = {
    "served.all.recall@20": "quality_fall",
    "served.all.ndcg@10": "quality_fall",
    "served.coverage": "coverage_fall",
    "people": "people_fall",
    "items": "items_fall",
}


def broken_gates(
    today: Mapping[str, float], yesterday: Mapping[str, float] | None, settings: GateSettings
) -> list[str]:
    """Which gates today's figures break, each with the bound and by how much; empty when none.

    Args:
        today: figures by name. A quality figure that could not be measured is absent, and then not compared.
        yesterday: those of the snapshot that serves now; None on the first night.
    """
    broken = []
    if today.get("items", 0) < settings.least_items:
        broken.append(f"items: {today.get('items', 0):g}, at least {settings.least_items} expected")
    for figure, setting in _FALLS.items():
        if yesterday is None or figure not in today or math.isnan(yesterday.get(figure, math.nan)):
            continue
        fall = getattr(settings, setting)
        bound = yesterday[figure] * (1 - fall)
        if not today[figure] >= bound:  # a figure that is not a number passes no gate
            broken.append(
                f"{figure}: {today[figure]:.4g} is below {bound:.4g}, which is yesterday's {yesterday[figure]:.4g}"
                f" less gates.{setting} = {fall:g}"
            )
    served, popular = today.get("served.all.recall@20"), today.get("popularity.all.recall@20")
    if settings.beat_popularity and served is not None and popular is not None and not served >= popular:
        broken.append(f"served.all.recall@20: {served:.4g} is below popularity's {popular:.4g} (gates.beat_popularity)")
    return broken


def gone_back(today: datetime, serving: datetime | None) -> list[str]:
    """The gate against an empty or missing day: a log that ends earlier than the one that serves."""
    if serving is None or today >= serving:
        return []
    return [f"as_of: {today.isoformat()} lies before the {serving.isoformat()} that serves"]
