"""Consent over time in the simulated shop: grants, withdrawals, who comes back, and minors."""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from pathlib import Path

import polars as pl

from engine.activity.simulator import ShopReport, ShopSettings
from engine.consent import Ledger, Vocabulary
from engine.consent.imports import KEYED_GRANTS
from tests.activity.simulator.frames import truth


def test_replaying_the_grants_gives_the_sources_that_the_truth_names(report: ShopReport) -> None:
    people, sources = truth(report, "users"), set(ShopSettings().sources)
    standing: dict[str, set[str]] = {}
    grants = pl.read_parquet(report.folder / "grants.parquet").filter(purpose="profile").sort("occurred_at")
    for user, source, granted in grants.select("user_id", "source", "granted").iter_rows():
        named = {source} if source else sources
        standing[user] = standing.get(user, set()) | named if granted else standing.get(user, set()) - named
    expected = {user: set(names) for user, names in people.select("user_id", "sources_granted").iter_rows() if names}
    assert {user: names for user, names in standing.items() if names} == expected
    partial = people.filter(consent="some")["sources_granted"].list.len()
    assert partial.is_between(1, len(sources) - 1).all()


def grants_of(report: ShopReport) -> pl.DataFrame:
    """In time, with the day of the log on which it was, below 0 before it began."""
    grants = pl.read_parquet(report.folder / "grants.parquet").sort("occurred_at")
    return grants.with_columns(day=(pl.col("occurred_at").dt.date() - dt.date(2026, 1, 1)).dt.total_days())


def test_every_withdrawal_comes_after_a_grant_of_the_same(report: ShopReport) -> None:
    withdrawn = grants_of(report).filter(~pl.col("granted"))
    assert len(withdrawn) > 200
    granted = grants_of(report).filter("granted")
    both = withdrawn.join(granted, on=["user_id", "purpose"], suffix="_before").filter(
        (pl.col("source_before") == "") | (pl.col("source_before") == pl.col("source"))
    )
    first = both.group_by("user_id", "purpose", "source", "occurred_at").agg(pl.col("occurred_at_before").min())
    assert len(first) == len(withdrawn)
    assert (first["occurred_at_before"] < first["occurred_at"]).all()
    assert withdrawn["day"].is_between(0, report.days - 1).all()


def test_people_narrow_their_consent_give_it_up_and_come_back(report: ShopReport) -> None:
    grants, people = grants_of(report), truth(report, "users").select("user_id", "consent", "segment")
    left = grants.filter(~pl.col("granted")).join(people, on="user_id")
    narrowed = left.filter((pl.col("source") != "") & (pl.col("consent") == "some"))
    given_up = left.filter((pl.col("source") == "") & (pl.col("consent") == "none"))
    no_training = left.filter((pl.col("source") == "") & (pl.col("consent") == "all"))
    assert narrowed["user_id"].n_unique() > 80
    assert given_up["user_id"].n_unique() > 5
    assert set(given_up["segment"]) == {"regular"}
    back = grants.filter("granted", pl.col("notice_version") == "2026-02")
    assert back["user_id"].n_unique() > 10
    assert set(back["source"]) > {""}
    for_good = no_training.join(back, on="user_id", how="anti")
    assert set(for_good["purpose"]) == {"train"}
    both = back.join(left, on=["user_id", "purpose", "source"], suffix="_left")
    assert len(both) == len(back)
    assert (both["occurred_at"] > both["occurred_at_left"]).all()


def test_changes_of_mind_are_spread_over_the_days(report: ShopReport) -> None:
    days = grants_of(report).filter(~pl.col("granted")).unique("user_id")["day"]
    thirds = [days.is_between(first, first + 19).mean() for first in (0, 20, 40)]
    assert min(thirds) > 0.2  # type: ignore[type-var]


def test_a_minor_grants_nothing_and_a_guardian_no_training(report: ShopReport) -> None:
    ages = truth(report, "users").select("user_id", "age", "consent")
    minors = ages.filter(pl.col("age") != "18+")
    assert 30 < len(minors) < 100
    assert set(minors["age"]) == {"16-17", "13-15"}
    grants = grants_of(report).join(ages, on="user_id")
    assert set(grants.filter(actor="person")["age"]) == {"18+"}
    by_guardian = grants.filter(actor="guardian")
    assert set(by_guardian["user_id"]) <= set(minors["user_id"])
    assert "profile" in set(by_guardian["purpose"]) <= {"profile", "measure"}
    assert 0 < by_guardian["user_id"].n_unique() < 0.5 * len(minors)
    assert set(minors.join(by_guardian, on="user_id", how="anti")["consent"]) == {"none"}


def test_a_ledger_takes_the_grants_and_stands_where_the_truth_does(report: ShopReport, tmp_path: Path) -> None:
    vocabulary = Vocabulary(sources=ShopSettings().sources)
    key = pl.col("user_id").str.pad_end(16).cast(pl.Binary)
    keyed = pl.read_parquet(report.folder / "grants.parquet").with_columns(key.alias("user_id"))
    table = keyed.rename({"user_id": "user_key"}).to_arrow().cast(KEYED_GRANTS)
    with closing(Ledger.open(f"sqlite:///{tmp_path / 'consent.db'}", vocabulary)) as ledger:
        assert ledger.import_grants(table).skipped == 0
        standings = dict(zip(*ledger.standings()[0].select(["user_key", "granted"]).to_pydict().values(), strict=True))
    for user, sources in truth(report, "users").select("user_id", "sources_granted").iter_rows():
        expected = sum(vocabulary.mask("profile", source) for source in sources)
        assert standings.get(user.ljust(16).encode(), 0) & vocabulary.groups == expected, user
