"""User towers by name: ours and those that a team registers under the entry point group `bodega.towers`."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Any

from engine.errors import SettingsError


def user_tower(settings: Any) -> Any:
    """The tower that `settings.name` names, built with the settings.

    Raises:
        SettingsError: no such tower; names the nearest.
    """
    known = {point.name: point for point in entry_points(group="bodega.towers")}
    if settings.name not in known:
        near = difflib.get_close_matches(settings.name, known, 1)
        raise SettingsError(
            f"There is no tower '{settings.name}'" + (f"; did you mean '{near[0]}'?" if near else "."),
            f"Use one of {', '.join(sorted(known))}, or register yours under the entry point group bodega.towers.",
        )
    return known[settings.name].load()(settings)
