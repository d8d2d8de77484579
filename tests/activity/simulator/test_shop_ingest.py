"""What the simulated shop writes is what ingest reads: nothing of it is quarantined, on any evening."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import fs

from engine.activity.catalogue import read_catalogue
from engine.activity.mapping import DataSettings
from engine.activity.people import People
from engine.activity.rows import Rules, read_rows
from engine.activity.simulator import LiveShop, ShopSettings

SHOP = ShopSettings(seed=9, users=400, items=150, days=5, late_share=0.3, ended_share=0.2, gift_burst_share=0.3)


def test_every_row_of_every_evening_is_taken(tmp_path: Path) -> None:
    shop = LiveShop(replace(SHOP, newcomer_days=2), tmp_path / "shop")
    names = shop.items.ids.to_pylist()
    evening = 1_767_225_600_000_000  # 2026-01-01
    read = 0
    for day in range(SHOP.days):
        report = shop.step(day, lambda visitors, today: [names[:12] if today > 1 else []] * len(visitors))
        evening += 86_400_000_000
        items = pl.read_parquet(tmp_path / "shop" / "catalogue.parquet")["item_id"].sort().to_list()
        rules = Rules(
            DataSettings(path=str(tmp_path)), pa.array(items), pa.array([], pa.string()), SHOP.sources, evening
        )
        path = tmp_path / "shop" / "log" / f"date={report.date}" / "part-00000.parquet"
        for checked in read_rows(fs.LocalFileSystem(), str(path), rules, People(None)):
            assert set(checked.counts) <= {"-counted_only"}  # impressions
            assert checked.ahead is None
            read += checked.rows
    assert read > 2000


def test_the_catalogue_of_every_evening_is_taken_whole(tmp_path: Path) -> None:
    shop = LiveShop(SHOP, tmp_path / "shop")
    for day in range(SHOP.days):
        shop.step(day)
        offered, left_out = read_catalogue(DataSettings(path=str(tmp_path / "shop")))
        whole = pl.read_parquet(tmp_path / "shop" / "catalogue.parquet").sort("item_id")
        assert offered["item_id"].to_pylist() == whole["item_id"].to_list()
        assert not len(left_out)
