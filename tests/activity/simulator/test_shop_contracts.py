"""What the simulated shop writes keeps the contracts of a real one."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from engine.activity.simulator import ShopReport, ShopSettings
from engine.activity.simulator.log import EVENT_TRUTH, LOG, SATISFACTION
from engine.activity.simulator.truth import AFFINITY, ITEMS, REPEAT_NEEDS, SEASONS, USERS
from engine.schema import CATALOGUE, GRANTS
from tests.activity.simulator.frames import catalogue, truth


def test_each_file_of_the_log_keeps_the_contract_and_its_own_day(report: ShopReport) -> None:
    files = sorted(report.folder.glob("log/*/*"))
    assert len(files) == report.days
    for day, path in enumerate(files):
        date = dt.date(2026, 1, 1) + dt.timedelta(days=day)
        assert path.parts[-2:] == (f"date={date}", "part-00000.parquet")
        assert pq.read_schema(path).equals(LOG)
        assert set(pl.read_parquet(path)["ts"].dt.date()) == {date}


def test_the_log_names_known_things_alone(report: ShopReport, log: pl.DataFrame) -> None:
    assert len(log) == report.total == sum(report.events.values())
    assert set(log["event"]) == {"impression", "view", "click", "cart", "purchase", "like", "dismiss"}
    assert set(log["source"]) == set(ShopSettings().sources)
    assert log["event_id"].n_unique() == len(log)
    assert log["leaf"].null_count() == 0
    assert set(log["user_id"].drop_nulls()) <= set(truth(report, "users")["user_id"])
    priced = log["event"].is_in(["cart", "purchase"])
    assert log.filter(priced)["value"].min() > 0  # type: ignore[operator]
    assert log.filter(~priced)["value"].null_count() == (~priced).sum()
    sessions = log.group_by("session_id").agg(
        pl.col("user_id", "source").n_unique(), span=pl.col("ts").max() - pl.col("ts").min()
    )
    assert sessions["user_id"].max() == sessions["source"].max() == 1
    assert sessions["span"].max() < dt.timedelta(hours=1)  # type: ignore[operator]


def test_the_catalogue_keeps_the_contract(report: ShopReport) -> None:
    assert pq.read_schema(report.folder / "catalogue.parquet").equals(CATALOGUE)
    items = catalogue(report)
    assert len(items) == report.items == items["item_id"].n_unique()
    tree = items.select(root=pl.col("categories").list[0], leaf=pl.col("categories").list[1]).unique()
    leaves = tree.group_by("root").len()["len"]
    assert set(items["categories"].list.len()) == {2}
    assert len(leaves) == 8
    assert leaves.is_between(3, 5).all()
    assert items["title"].null_count() == items["text"].null_count() == items["added"].null_count() == 0
    assert 0 < items["creator"].null_count() < 0.1 * len(items)
    assert items["price"].min() > 0  # type: ignore[operator]
    assert (items["sensitive"].list.len() > 0).sum() == round(0.02 * len(items))
    regional = items["regions"].list.len() > 0
    offered = items["available_from"].is_not_null() & items["available_until"].is_not_null()
    assert (regional | offered).sum() == pytest.approx(0.04 * len(items), abs=3)
    ended = items["available_from"].is_null() & items["available_until"].is_not_null()
    assert ended.sum() == round(0.03 * len(items))
    assert (items["added"].dt.date() > dt.date(2026, 1, 1)).sum() >= 0.06 * len(items) - 1


def test_grants_and_truth_keep_their_schemas(report: ShopReport) -> None:
    one = {"grants": GRANTS, "truth/users": USERS, "truth/affinity": AFFINITY, "truth/repeat_needs": REPEAT_NEEDS}
    one |= {"truth/items": ITEMS, "truth/seasons": SEASONS}
    for name, schema in one.items():
        assert pq.read_schema(report.folder / f"{name}.parquet").equals(schema), name
    for name, schema in {"events": EVENT_TRUTH, "satisfaction": SATISFACTION}.items():
        files = sorted(report.folder.glob(f"truth/{name}/date=*/part-00000.parquet"))
        assert len(files) == report.days
        assert all(pq.read_schema(path).equals(schema) for path in files)
    assert {path.name for path in report.folder.iterdir()} == {"log", "catalogue.parquet", "grants.parquet", "truth"}


def test_nothing_is_shown_before_it_is_sold_or_after(report: ShopReport, log: pl.DataFrame) -> None:
    dates = catalogue(report).select("item_id", "added", "available_from", "available_until")
    shown = log.join(dates, on="item_id")
    assert (shown["ts"] >= shown["added"]).all()
    assert (shown["ts"] >= shown["available_from"]).drop_nulls().all()
    assert (shown["ts"] < shown["available_until"]).drop_nulls().all()
    regions = catalogue(report).filter(pl.col("regions").list.len() > 0).select("item_id", "regions")
    people = truth(report, "users").select("user_id", "region")
    known = log.join(regions, on="item_id").join(people, on="user_id")
    assert len(known) > 100
    assert known.select(pl.col("regions").list.contains(pl.col("region"))).to_series().all()


def test_rows_are_in_no_order(report: ShopReport) -> None:
    rows = pl.read_parquet(report.folder / "log" / "date=2026-02-10" / "part-00000.parquet")
    time = rows["ts"].dt.epoch("us").to_numpy()
    assert abs(np.corrcoef(np.arange(len(rows)), time)[0, 1]) < 0.1
    assert not rows["event_id"].is_sorted()
