"""One shop of the default settings for all tests of the simulator."""

from __future__ import annotations

import polars as pl
import pytest

from engine.activity.simulator import ShopReport, ShopSettings, simulate
from tests.activity.simulator.frames import log_of


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> ShopReport:
    return simulate(ShopSettings(), tmp_path_factory.mktemp("shop") / "shop")


@pytest.fixture(scope="session")
def log(report: ShopReport) -> pl.DataFrame:
    """The log, with each item's root and leaf beside it."""
    return log_of(report.folder)
