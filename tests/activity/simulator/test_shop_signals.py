"""Signals that later stages must find: cadences, gift bursts, titles, things that are bought once."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from engine.activity.simulator import ShopReport
from tests.activity.simulator.frames import catalogue, truth


def test_the_cadence_of_repeat_needs_can_be_recovered(report: ShopReport, log: pl.DataFrame) -> None:
    needs = truth(report, "repeat_needs")
    people = truth(report, "users").filter(pl.col("segment") != "newcomer")
    assert needs["user_id"].n_unique() == pytest.approx(0.5 * len(people), rel=0.1)
    bought = log.filter(event="purchase").join(needs, on=["user_id", "item_id"]).sort("ts")
    gaps = bought.group_by("user_id", "item_id").agg(
        days=(pl.col("ts").diff().dt.total_seconds() / 86_400).median(),
        period=pl.col("period_days").first(),
        count=pl.len(),
    )
    often = gaps.filter(pl.col("count") >= 4)
    assert len(often) > 100
    error = (often["days"] / often["period"] - 1).abs()
    assert error.median() < 0.1  # type: ignore[operator]
    assert (error < 0.3).mean() > 0.85  # type: ignore[operator]
    coffee = log.filter(leaf="Coffee").join(needs, on=["user_id", "item_id"])["period_days"]
    assert coffee.median() == pytest.approx(14, rel=0.15)


def test_gift_bursts_are_short_and_foreign_to_the_person(report: ShopReport, log: pl.DataFrame) -> None:
    people = truth(report, "users").filter(segment="gift_burst")
    days = (people["gift_until"] - people["gift_from"]).dt.total_days()
    assert days.is_between(2, 5).all()
    assert (people["gift_from"] >= dt.date(2026, 1, 25)).all()
    assert (people["gift_until"] <= dt.date(2026, 3, 2)).all()
    own = truth(report, "affinity").join(people.select("user_id", "gift_category"), on="user_id")
    assert (own["root"] != own["gift_category"]).all()
    events = (
        log.drop_nulls("user_id")
        .join(people, on="user_id")
        .with_columns(
            inside=pl.col("ts").dt.date().is_between(pl.col("gift_from"), pl.col("gift_until"), closed="left"),
            foreign=pl.col("root") == pl.col("gift_category"),
        )
    )
    bursts = events.filter("inside", "foreign").group_by("user_id").len()
    assert len(bursts) == len(people)
    assert bursts["len"].median() >= 15  # type: ignore[operator]
    outside = events.filter(~pl.col("inside"))
    assert outside["foreign"].mean() < 0.1  # type: ignore[operator]


def test_titles_tell_the_shelf(report: ShopReport) -> None:
    titles = catalogue(report).with_row_index("row")
    words = titles.select("row", leaf=pl.col("categories").list[1], word=pl.col("title").str.split(" ")).explode("word")
    known, unknown = words.filter(pl.col("row") % 2 == 0), words.filter(pl.col("row") % 2 == 1)
    votes = known.group_by("word", "leaf").len().with_columns(vote=pl.col("len") / pl.col("len").sum().over("word"))
    guess = (
        unknown.rename({"leaf": "true"})
        .join(votes, on="word")
        .group_by("row", "true", "leaf")
        .agg(pl.col("vote").sum())
    )
    best = guess.sort("vote", "leaf").group_by("row").last()
    assert (best["true"] == best["leaf"]).mean() > 0.9  # type: ignore[operator]


def test_lasting_things_are_hardly_bought_twice(report: ShopReport, log: pl.DataFrame) -> None:
    meant = truth(report, "events").select("event_id")
    browsed = log.filter(event="purchase").drop_nulls("user_id").join(meant, on="event_id", how="anti")
    lasting = browsed.filter(pl.col("root").is_in(["Books", "Games"]))
    assert len(lasting) > 500
    assert lasting.select("user_id", "item_id").is_duplicated().mean() < 0.02  # type: ignore[operator]
