"""The shop lived a day at a time: it shows lists, people react, and some do not come again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine.activity.simulator import Course, Lists, LiveShop, ShopSettings, Visitor, simulate
from engine.activity.simulator.moods import Moods
from engine.errors import DataError, SettingsError
from tests.activity.simulator.frames import checksums, log_of

WARM_UP = 20
SHOP = ShopSettings(seed=4, users=700, items=300, days=32, churn=0.1, returning=1.0, sessions_per_day=0.4)


def by_taste(shop: LiveShop, sign: int = 1) -> Lists:
    """Lists that suit the tastes of the truth best, or with -1 worst."""
    row = {name: place for place, name in enumerate(shop.people.ids.to_pylist())}
    names = np.array(shop.items.ids.to_pylist())

    def lists(visitors: Sequence[Visitor], day: int) -> list[list[str]]:
        sold = np.flatnonzero(shop.items.on_sale(day))
        given = []
        for visitor in visitors:
            person = row[visitor.user_id]
            fit = shop.items.style[sold] @ shop.people.taste[person] * 3 + shop.items.quality[sold]
            fit += 2 * np.isin(shop.items.leaf[sold], shop.people.interests[person])
            given.append(names[sold[np.argsort(-sign * fit, kind="stable")[: shop.settings.page]]].tolist())
        return given

    return lists


def lived(folder: Path, sign: int) -> tuple[LiveShop, Course]:
    shop = LiveShop(SHOP, folder)
    course = Course(shop.people)
    for day in range(SHOP.days):
        report = shop.step(day, by_taste(shop, sign) if day >= WARM_UP else None)
        if day >= WARM_UP:
            course.add(report)
    return shop, course


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveShop, Course]:
    return lived(tmp_path_factory.mktemp("good") / "shop", 1)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveShop, Course]:
    return lived(tmp_path_factory.mktemp("bad") / "shop", -1)


def users(shop: LiveShop) -> pl.DataFrame:
    return pl.read_parquet(shop.folder / "truth" / "users.parquet")


# --- the same shop ----------------------------------------------------------------------------------------------------


def test_without_lists_it_is_the_simulated_shop_to_the_last_byte(tmp_path: Path) -> None:
    settings = ShopSettings(seed=3, users=150, items=80, days=6, churn=0.3, returning=0.5)
    simulate(settings, tmp_path / "at_once")
    shop = LiveShop(settings, tmp_path / "by_day")
    for day in range(settings.days):
        shop.step(day)
    assert checksums(tmp_path / "at_once") == checksums(tmp_path / "by_day")


def test_the_same_lists_give_the_same_bytes_and_others_give_others(tmp_path: Path, good, bad) -> None:
    again, course = lived(tmp_path / "again", 1)
    assert checksums(again.folder) == checksums(good[0].folder)
    assert course.listed == good[1].listed
    name = "log/date=2026-01-25/part-00000.parquet"
    assert checksums(good[0].folder)[name] != checksums(bad[0].folder)[name]
    first = "log/date=2026-01-20/part-00000.parquet"  # the last day without lists
    assert checksums(good[0].folder)[first] == checksums(bad[0].folder)[first]


def test_each_evening_leaves_what_a_night_reads(tmp_path: Path) -> None:
    shop = LiveShop(replace(SHOP, ended_share=0.2, late_share=0.2), tmp_path / "shop")
    known = []
    for day in range(4):
        shop.step(day, by_taste(shop))
        assert len(list(shop.folder.glob("log/date=*/part-00000.parquet"))) == day + 1
        log, items = log_of(shop.folder), pl.read_parquet(shop.folder / "catalogue.parquet")
        assert log["leaf"].null_count() == 0  # whatever the log names is in the catalogue of that evening
        evening = dt.datetime(2026, 1, 2 + day, tzinfo=dt.UTC)
        assert items["added"].max() < evening  # type: ignore[operator]
        assert pl.read_parquet(shop.folder / "grants.parquet")["occurred_at"].max() < evening  # type: ignore[operator]
        known.append(len(items))
    assert known == sorted(known)
    assert known[0] < known[-1]
    assert not list(shop.folder.rglob(".*"))


def test_the_grants_of_the_days_are_those_of_the_file(good) -> None:
    shop, _ = good
    days = pl.concat([pl.from_arrow(shop.grants.of(day)) for day in range(SHOP.days)])  # type: ignore[misc]
    whole = pl.read_parquet(shop.folder / "grants.parquet")
    midnight = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert len(days) > 20
    assert days.sort(days.columns).equals(whole.filter(pl.col("occurred_at") >= midnight).sort(days.columns))
    assert days["occurred_at"].is_sorted()


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_are_asked_once_a_visitor_for_who_is_signed_in(tmp_path: Path) -> None:
    shop, asked = LiveShop(SHOP, tmp_path / "shop"), []

    def lists(visitors: Sequence[Visitor], day: int) -> list[list[str]]:
        asked.append((day, visitors))
        return [[] for _ in visitors]

    report = shop.step(0, lists)
    ((day, visitors),) = asked
    names = [visitor.user_id for visitor in visitors]
    assert day == 0
    assert names == sorted(set(names))
    truth = {row["user_id"]: row for row in users(shop).iter_rows(named=True)}
    assert all(truth[each.user_id]["region"] == each.region for each in visitors)
    assert all((truth[each.user_id]["age"] != "18+") == each.minor for each in visitors)
    in_the_log = set(log_of(shop.folder)["user_id"].drop_nulls())
    assert 0.1 < len(set(names) & in_the_log) / len(in_the_log) < 0.7  # the others went straight to a shelf
    assert report.listed.visits >= len(names)
    assert report.listed.shown == report.listed.clicks == report.slots.total == 0


def test_home_pages_show_the_lists_and_nothing_else(tmp_path: Path) -> None:
    shop = LiveShop(replace(SHOP, anonymous_share=0.0, sources=("web",), source_shares=(1.0,)), tmp_path / "shop")
    one = [name for name, sold in zip(shop.items.ids.to_pylist(), shop.items.evergreen, strict=True) if sold][:2]
    visitors: list[str] = []

    def lists(asked: Sequence[Visitor], day: int) -> list[list[str]]:
        visitors.extend(each.user_id for each in asked)
        return [one for _ in asked]

    report = shop.step(0, lists)
    seen = log_of(shop.folder).filter(pl.col("user_id").is_in(visitors), event="impression")
    alone = seen.group_by("session_id").agg(pl.col("item_id").is_in(one).all())["item_id"]
    assert alone.sum() == report.listed.visits
    top, below = (seen.filter(item_id=name)["session_id"].n_unique() for name in one)
    assert below < top  # who has seen enough does not look at the second


def test_slots_are_told_by_what_stands_in_them(tmp_path: Path) -> None:
    shop = LiveShop(replace(SHOP, late_share=0.2, ended_share=0.2), tmp_path / "shop")
    for day in range(15):
        shop.step(day)
    items, day = shop.items, 15
    names = np.array(items.ids.to_pylist())
    dead = names[items.last_day <= day][:2].tolist()
    new = names[(items.first_day <= day) & (items.first_day > day - 14) & (items.last_day > 100)][:1].tolist()
    plain = names[items.evergreen & (items.popularity > np.quantile(items.popularity, 0.9))][:2].tolist()
    report = shop.step(day, lambda visitors, _: [dead + new + plain for _ in visitors])
    visits = report.listed.visits
    assert report.slots.total == 5 * visits
    assert report.slots.dead >= 2 * visits
    assert report.slots.new == visits
    assert report.listed.shown == report.slots.total - report.slots.dead
    assert report.slots.share("dead") == report.slots.dead / report.slots.total


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (lambda visitors, day: [], "lists were asked for, 0 came"),
        (lambda visitors, day: [["item-99999"]] * len(visitors), "'item-99999'"),
        (lambda visitors, day: [["item-00001", "item-00002", "item-00001"]] * len(visitors), "twice"),
    ],
)
def test_lists_that_cannot_be_are_refused(lists: Lists, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as caught:
        LiveShop(SHOP, tmp_path / "shop").step(0, lists)
    assert caught.value.remedy


def test_days_come_one_after_another_and_end(tmp_path: Path) -> None:
    shop = LiveShop(ShopSettings(users=5, items=40, days=1), tmp_path / "shop")
    with pytest.raises(SettingsError, match="Day 1"):
        shop.step(1)
    shop.step(0)
    for day in (0, 1):
        with pytest.raises(SettingsError, match="1 of 1 days are over"):
            shop.step(day)
    with pytest.raises(SettingsError, match="not empty"):
        LiveShop(shop.settings, shop.folder)


# --- what people make of it ---------------------------------------------------------------------------------------------


def test_lists_that_suit_the_taste_satisfy_and_keep_people(good, bad) -> None:
    (_, suited), (_, adverse) = good, bad
    assert suited.listed.satisfaction > adverse.listed.satisfaction + 0.3
    assert suited.listed.clicks_a_visit > 1.5 * adverse.listed.clicks_a_visit
    assert suited.everything.left < 0.8 * adverse.everything.left
    assert suited.everything.visits > adverse.everything.visits
    assert suited.return_rate() > adverse.return_rate()
    for group in ("large", "middle", "small"):
        assert suited.by_group[group].satisfaction > adverse.by_group[group].satisfaction


def test_who_leaves_is_never_seen_again_and_the_truth_says_since_when(good) -> None:
    shop, course = good
    left = users(shop).drop_nulls("left")
    live = left.filter(pl.col("left") >= dt.date(2026, 1, 1) + dt.timedelta(days=WARM_UP))
    assert len(live) == course.everything.left > 5
    after = log_of(shop.folder).join(left, on="user_id").filter(pl.col("ts").dt.date() > pl.col("left"))
    assert after.is_empty()
    behind = pl.concat([pl.read_parquet(path) for path in (shop.folder / "truth" / "events").glob("*/*.parquet")])
    dated = behind.join(log_of(shop.folder).select("event_id", "ts"), on="event_id").join(left, on="user_id")
    assert (dated["ts"].dt.date() <= dated["left"]).all()  # not without a name either


def test_groups_and_segments_each_make_up_the_whole(good) -> None:
    _, course = good
    for parts in (course.by_group, course.by_segment):
        total = sum(parts.values(), start=type(course.listed)())
        assert total == course.listed
    assert course.listed.visits > 500
    assert course.by_group["large"].visits > course.by_group["small"].visits > 0


def test_who_is_satisfied_comes_more_often_and_never_leaves() -> None:
    settings = ShopSettings(users=3, churn=1.0, returning=1.0)
    moods, rng = Moods(settings), np.random.default_rng(0)
    assert (moods.eagerness() == 1).all()
    for day in range(40):
        moods.learn(np.array([0, 0]), np.array([True, True]), day, rng)
    left = [moods.learn(np.array([1]), np.array([False]), day, rng) for day in range(40)]
    assert moods.eagerness()[0] == pytest.approx(2, abs=0.01)
    assert moods.left.tolist()[0] == moods.left.tolist()[2] == -1
    assert moods.eagerness()[2] == 1
    assert moods.gone.tolist() == [False, True, False]
    assert moods.eagerness()[1] == 0
    assert np.concatenate(left).tolist()[0] == 1


def test_by_default_nobody_leaves_and_moods_change_nothing(tmp_path: Path) -> None:
    moods, rng = Moods(ShopSettings(users=2)), np.random.default_rng(0)
    for day in range(30):
        moods.learn(np.array([0, 1]), np.array([True, False]), day, rng)
    assert moods.mood[0] > 0.9 > 0.1 > moods.mood[1]
    assert (moods.eagerness() == 1).all()
    assert simulate(ShopSettings(users=200, items=40, days=5), tmp_path / "shop").left == 0


def test_the_return_rate_counts_those_who_had_time_to_come_back(good) -> None:
    shop, _ = good
    course, report = Course(shop.people), None
    # Four days: person 0 comes back in time, 1 too late, 2 never, 3 comes first when there is no time left.
    came = [[0, 1, 2], [], [0], [1, 3]]
    empty = LiveShop(ShopSettings(users=4, items=40, days=1), shop.folder.parent / "empty").step(0)
    for day, people in enumerate(came):
        report = replace(empty, day=day, came=np.array(people, np.int64))
        course.add(report)
    assert course.window == 2
    assert course.return_rate() == pytest.approx(1 / 3)
    assert Course(shop.people).return_rate() == 0
