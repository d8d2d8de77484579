"""Make a small shop to try things on: log, catalogue and grants, and the truth apart from them.

python -m jobs.simulate out=OUT shop.users=2000 shop.days=60        writes OUT/shop
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.activity.simulator import ShopReport, ShopSettings, simulate
from engine.errors import SettingsError
from jobs.launch import recipe
from jobs.progress import say
from jobs.settings import Settings, ShopChoice


def shop_settings(choice: ShopChoice, **changed: Any) -> ShopSettings:
    """The shop that was asked for, with some of it changed.

    Raises:
        SettingsError: a value cannot be.
    """
    try:
        start = dt.date.fromisoformat(choice.start)
    except ValueError as error:
        raise SettingsError(f"shop.start is '{choice.start}'.", "Write it as 2026-01-31.") from error
    return ShopSettings(**asdict(choice) | {"start": start} | changed)


def open_shop(settings: Settings) -> ShopReport:
    """Simulate into OUT/shop.

    Raises:
        SettingsError: a value cannot be, or the folder is not empty.
    """
    return simulate(shop_settings(settings.shop), Path(settings.out) / "shop")


@recipe("simulate")
def main(settings: Settings) -> None:
    """The command."""
    report = open_shop(settings)
    say(f"simulate: {report.total} events of {report.people} people over {report.days} days in {report.folder}")
    for name, count in report.events.items():
        say(f"  {count:>9} {name}")


if __name__ == "__main__":
    main()
