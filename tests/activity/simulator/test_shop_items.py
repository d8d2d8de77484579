"""The items of the simulated shop: seasons, arrivals, ends, and what is better or worse than it looks."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.compute as pc
import pytest

from engine.activity.simulator import ShopReport, ShopSettings, simulate
from engine.activity.simulator.items import stock
from engine.activity.simulator.seasons import factors
from tests.activity.simulator.frames import catalogue, log_of, truth

MANY = ShopSettings(users=10, items=9_000, days=60, late_share=0.1, ended_share=0.1, limited_share=0.0)
HALF_A_YEAR = dt.timedelta(days=182)


def sessions_by_shelf(folder: Path, start: dt.date, seasons: float) -> dict[str, int]:
    """How many visits went to each shelf in a week, by what most of their page is from."""
    settings = ShopSettings(
        seed=5, start=start, days=7, users=8_000, items=400, seasons=seasons, drift=0.0, gift_burst_share=0.0,
        repeat_share=0.0,
    )  # fmt: skip
    simulate(settings, folder)
    seen = log_of(folder).filter(event="impression").group_by("session_id").agg(pl.col("leaf").mode().min())
    return dict(seen["leaf"].value_counts().iter_rows())


# --- seasons ----------------------------------------------------------------------------------------------------------


def test_the_demand_for_a_shelf_rises_and_falls_by_the_factor_of_the_truth(report: ShopReport, tmp_path: Path) -> None:
    told = {row["category"]: row for row in truth(report, "seasons").iter_rows(named=True)}
    summer = dt.date(2026, 6, 22)  # a Monday, and one half a year later
    weeks = [sessions_by_shelf(tmp_path / str(start), start, 1.0) for start in (summer, summer + HALF_A_YEAR)]
    first, second = (factors(ShopSettings(start=start), 3) for start in (summer, summer + HALF_A_YEAR))
    expected = dict(zip(told, np.log(first / second), strict=True))
    seen = {leaf: np.log(weeks[0][leaf] / weeks[1][leaf]) for leaf in told}
    for leaf in told:  # within four standard errors of the logarithm of a ratio of two counts
        assert abs(seen[leaf] - expected[leaf]) < 4 * np.sqrt(1 / weeks[0][leaf] + 1 / weeks[1][leaf]), leaf
    assert weeks[0]["Camping"] > 3 * weeks[1]["Camping"]
    assert weeks[1]["Candles"] > 2 * weeks[0]["Candles"]
    assert told["Camping"]["at_peak"] / told["Camping"]["at_trough"] == pytest.approx(5)


def test_without_seasons_the_year_is_flat(tmp_path: Path) -> None:
    assert (factors(ShopSettings(seasons=0.0), 200) == 1).all()
    summer = dt.date(2026, 6, 22)
    weeks = [sessions_by_shelf(tmp_path / str(start), start, 0.0) for start in (summer, summer + HALF_A_YEAR)]
    assert weeks[0] == weeks[1]  # the same people, to the last visit


def test_a_season_peaks_on_its_day_and_means_one_over_the_year(report: ShopReport) -> None:
    year = np.stack([factors(ShopSettings(), day) for day in range(365)])
    told = truth(report, "seasons")
    moving = told["at_peak"].to_numpy() > 1
    assert np.allclose(year.mean(axis=0), 1, atol=0.01)
    assert (abs(year.argmax(axis=0) + 1 - told["peak"].to_numpy())[moving] <= 1).all()
    assert np.allclose(year.max(axis=0), told["at_peak"], rtol=1e-3)
    assert np.allclose(year.min(axis=0), told["at_trough"], rtol=1e-3)
    assert 10 < moving.sum() < len(told)


def test_the_week_has_its_rhythm(log: pl.DataFrame) -> None:
    visits = log.filter(event="impression").unique("session_id")["ts"].dt.weekday().value_counts()
    counts = dict(visits.iter_rows())
    assert counts[6] > 1.15 * counts[2]  # Saturday, Tuesday


# --- arrivals and ends ------------------------------------------------------------------------------------------------


def test_items_arrive_and_end_a_few_each_day() -> None:
    items = stock(MANY)
    for days, share in ((items.first_day[items.first_day > 0], 0.1), (items.last_day[items.ending], 0.1)):
        assert len(days) == pytest.approx(share * MANY.items, rel=0.05)
        assert days.min() == 1
        weeks = np.bincount(days, minlength=MANY.days)[1:57].reshape(-1, 7).sum(axis=1)
        assert (abs(weeks - weeks.mean()) < 4 * np.sqrt(weeks.mean())).all()


def test_nothing_is_bought_after_its_end(report: ShopReport, log: pl.DataFrame) -> None:
    items = truth(report, "items")
    ended = items.drop_nulls("ended").join(log, on="item_id")
    assert ended["item_id"].n_unique() > 20
    assert (ended["ts"].dt.date() < ended["ended"]).all()
    late = items.drop_nulls("arrived").join(log, on="item_id")
    assert late["item_id"].n_unique() > 20
    assert (late["ts"].dt.date() >= late["arrived"]).all()
    told = catalogue(report).filter(pl.col("available_from").is_null()).drop_nulls("available_until")
    assert dict(told.select("item_id", pl.col("available_until").dt.date()).iter_rows()) == dict(
        items.drop_nulls("ended").select("item_id", "ended").iter_rows()
    )


def test_a_catalogue_knows_nothing_of_the_days_to_come() -> None:
    items = stock(MANY)
    for day in (0, 20, 59):
        evening = np.datetime64(MANY.start, "us") + np.timedelta64(day + 1, "D")
        table = items.catalogue(day)
        assert table.num_rows == (items.first_day <= day).sum()
        assert pc.max(table["added"]).as_py().replace(tzinfo=None) < evening
        ends = table.filter(pc.is_null(table["available_from"]))["available_until"].drop_null()
        assert len(ends) == (items.last_day[items.ending] <= day + 1).sum()
        assert not len(ends) or pc.max(ends).as_py().replace(tzinfo=None) <= evening
    assert items.catalogue(59)["item_id"].to_pylist() != sorted(items.catalogue(59)["item_id"].to_pylist())


# --- satisfaction is not clicks -----------------------------------------------------------------------------------------


def test_satisfaction_is_told_of_each_click_and_purchase_and_of_nothing_else(
    report: ShopReport, log: pl.DataFrame
) -> None:
    verdicts = truth(report, "satisfaction")
    assert set(verdicts["event_id"]) == set(log.filter(pl.col("event").is_in(["click", "purchase"]))["event_id"])
    assert verdicts["event_id"].is_unique().all()


def test_clickbait_has_more_clicks_and_less_satisfaction(report: ShopReport, log: pl.DataFrame) -> None:
    items = truth(report, "items").select("item_id", "clickbait")
    shown = log.filter(event="impression").join(items, on="item_id")["clickbait"].value_counts()
    clicked = log.filter(event="click").join(truth(report, "satisfaction"), on="event_id").join(items, on="item_id")
    looks, clicks = dict(shown.iter_rows()), dict(clicked["clickbait"].value_counts().iter_rows())
    assert clicks[True] / looks[True] > 1.5 * clicks[False] / looks[False]
    kept = dict(clicked.group_by("clickbait").agg(pl.col("satisfied").mean()).iter_rows())
    assert kept[True] < 0.5 * kept[False]
    assert items["clickbait"].sum() == round(0.04 * report.items)
    needs = truth(report, "repeat_needs").join(items, on="item_id")
    assert not needs["clickbait"].any()  # nobody makes a habit of it


def test_quality_makes_satisfaction_and_no_clicks(report: ShopReport, log: pl.DataFrame) -> None:
    plain = truth(report, "items").filter(~pl.col("clickbait")).select("item_id", "quality")
    plain = plain.with_columns(good=pl.col("quality") > pl.col("quality").median())
    shown = dict(log.filter(event="impression").join(plain, on="item_id")["good"].value_counts().iter_rows())
    clicked = log.filter(event="click").join(truth(report, "satisfaction"), on="event_id").join(plain, on="item_id")
    clicks = dict(clicked["good"].value_counts().iter_rows())
    kept = dict(clicked.group_by("good").agg(pl.col("satisfied").mean()).iter_rows())
    assert clicks[True] / shown[True] == pytest.approx(clicks[False] / shown[False], rel=0.1)
    assert kept[True] > kept[False] + 0.08
