"""The people of the simulated shop: segments, activity, interests, sources."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from engine.activity.simulator import ShopReport, ShopSettings
from engine.activity.simulator.groups import divide
from tests.activity.simulator.frames import truth


def test_segments_and_consent_have_the_shares_that_were_set(report: ShopReport) -> None:
    people = truth(report, "users")
    assert dict(people["segment"].value_counts().iter_rows()) == {
        "newcomer": 160, "no_consent": 200, "gift_burst": 120, "regular": 1520,
    }  # fmt: skip
    adults = people.filter(age="18+")
    assert len(adults) / len(people) == pytest.approx(0.97, abs=0.015)
    steady = adults.filter(pl.col("segment") != "regular")["consent"].value_counts()
    # Nobody but regulars changes their mind about everything, so the others are what the settings say.
    assert set(steady["consent"]) == {"none", "all"}
    assert set(adults.filter(segment="no_consent")["consent"]) == {"none"}
    some = adults.filter(consent="some")
    assert len(some) / len(people) == pytest.approx(0.15 + 0.08 * 0.61 / 5, abs=0.02)


def test_newcomers_come_late_and_leave_at_most_three_events(report: ShopReport, log: pl.DataFrame) -> None:
    people = truth(report, "users").filter(segment="newcomer")
    assert people["events"].is_between(0, 3).all()
    assert people["events"].n_unique() == 4
    events = log.join(people.select("user_id"), on="user_id")
    assert len(events) == people["events"].sum()
    assert events["ts"].dt.date().min() >= dt.date(2026, 2, 25)  # type: ignore[operator]


def test_the_anonymous_share_is_as_set(report: ShopReport, log: pl.DataFrame) -> None:
    assert log["user_id"].null_count() == report.anonymous
    assert report.anonymous / report.total == pytest.approx(ShopSettings().anonymous_share, abs=0.01)


def test_activity_has_a_heavy_tail(log: pl.DataFrame) -> None:
    events = log.drop_nulls("user_id").group_by("user_id").len()["len"].sort(descending=True)
    assert int(events.head(len(events) // 10).sum()) > 0.3 * int(events.sum())


def test_people_browse_most_where_their_interest_is_loudest(report: ShopReport, log: pl.DataFrame) -> None:
    affinity = truth(report, "affinity").with_columns(mean=(pl.col("at_start") + pl.col("at_end")) / 2)
    assert affinity.group_by("user_id").agg(pl.col("at_start", "at_end").sum()).select(
        (pl.col("at_start", "at_end") - 1).abs().max() < 1e-9
    ).to_numpy().all()  # fmt: skip
    clicks = log.filter(event="click").group_by("user_id", leaf="leaf").len().rename({"leaf": "category"})
    told = affinity.join(clicks, on=["user_id", "category"], how="left").fill_null(0)
    busy = told.filter(pl.col("len").sum().over("user_id") >= 20)
    seen = busy.with_columns(share=pl.col("len") / pl.col("len").sum().over("user_id"))
    assert np.corrcoef(seen["mean"], seen["share"])[0, 1] > 0.85


def test_interests_drift(report: ShopReport) -> None:
    several = truth(report, "affinity").filter(pl.len().over("user_id") > 1)
    moved = (several["at_end"] - several["at_start"]).abs()
    assert moved.mean() > 0.03  # type: ignore[operator]
    assert moved.max() > 0.2  # type: ignore[operator]


def test_each_person_has_sources_of_choice_and_a_till_sees_purchases_alone(log: pl.DataFrame) -> None:
    assert set(log.filter(source="store")["event"]) == {"purchase"}
    visits = log.unique("session_id").drop_nulls("user_id").group_by("user_id", "source").len()
    busy = visits.filter(pl.col("len").sum().over("user_id") >= 15)
    first = busy.group_by("user_id").agg(top=pl.col("len").max() / pl.col("len").sum())
    assert first["top"].mean() > 0.55  # type: ignore[operator]
    favourites = busy.sort("len", "source").group_by("user_id").last()["source"]
    assert 0.2 < (favourites != "web").mean() < 0.8  # type: ignore[operator]


def test_the_cast_shows_one_of_each_segment(report: ShopReport) -> None:
    people = {row["user_id"]: row for row in truth(report, "users").iter_rows(named=True)}
    assert {segment: people[user]["segment"] for segment, user in report.cast.items()} == {
        name: name for name in ("regular", "newcomer", "no_consent", "gift_burst")
    }
    assert people[report.cast["regular"]]["consent"] == "all"
    assert people[report.cast["newcomer"]]["events"] == 3


def test_groups_differ_in_activity_and_taste(report: ShopReport) -> None:
    people = truth(report, "users").filter(pl.col("segment") != "newcomer")
    sizes = dict(people["group"].value_counts(normalize=True).iter_rows())
    assert sizes["large"] == pytest.approx(0.6, abs=0.04)
    assert sizes["small"] == pytest.approx(0.12, abs=0.03)
    rates = dict(people.group_by("group").agg(pl.col("visits_a_day").mean()).iter_rows())
    assert rates["large"] > 1.2 * rates["middle"] > 1.4 * rates["small"]
    first = people.select("group", category=pl.col("interests").list.first())
    shares = (
        first.group_by("group", "category").len().with_columns(share=pl.col("len") / pl.col("len").sum().over("group"))
    )
    table = shares.pivot(on="group", index="category", values="share").fill_null(0)
    for other in ("middle", "small"):
        assert (table["large"] - table[other]).abs().sum() / 2 > 0.25, other  # total variation


def test_without_contrast_the_groups_are_alike() -> None:
    people = divide(ShopSettings(group_contrast=0.0, users=500))
    assert set(people.group) == {0, 1, 2}
    assert (people.activity == 1).all()
    assert not people.shelves.any()
    assert not people.style.any()


def test_interests_are_few_or_many_and_loud_or_quiet(report: ShopReport) -> None:
    per_person = truth(report, "affinity").group_by("user_id").agg(pl.len(), loudest=pl.col("at_start").max())
    assert set(per_person["len"]) == {1, 2, 3, 4}
    many = per_person.filter(len=4)
    assert 0.3 < many["loudest"].min() < many["loudest"].max() < 0.8  # type: ignore[operator]
