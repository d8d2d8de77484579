"""The simulated shop keeps the contracts, keeps its secrets, and holds the signals that later stages must find."""

from __future__ import annotations

import ast
import datetime as dt
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from engine.activity import simulator
from engine.activity.simulator import ShopReport, ShopSettings, shop, simulate
from engine.activity.simulator.clicks import look
from engine.activity.simulator.log import EVENT_TRUTH, LOG
from engine.activity.simulator.truth import AFFINITY, REPEAT_NEEDS, USERS
from engine.errors import SettingsError
from engine.schema import CATALOGUE, GRANTS

SMALL = ShopSettings(users=150, items=80, days=9)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ShopReport:
    return simulate(ShopSettings(), tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def log(report: ShopReport) -> pl.DataFrame:
    """The log, with each item's root and leaf beside it."""
    rows = pl.concat([pl.read_parquet(path) for path in sorted(report.folder.glob("log/*/*.parquet"))])
    shelf = catalogue(report).select("item_id", root=pl.col("categories").list[0], leaf=pl.col("categories").list[1])
    return rows.join(shelf, on="item_id", how="left")


def catalogue(report: ShopReport) -> pl.DataFrame:
    return pl.read_parquet(report.folder / "catalogue.parquet")


def truth(report: ShopReport, name: str) -> pl.DataFrame:
    return pl.read_parquet(report.folder / "truth" / f"{name}.parquet")


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- contracts --------------------------------------------------------------------------------------------------------


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
    limited = (items["regions"].list.len() > 0) | items["available_until"].is_not_null()
    assert limited.sum() == pytest.approx(0.04 * len(items), abs=3)
    assert (items["added"].dt.date() > dt.date(2026, 1, 1)).sum() >= 0.06 * len(items) - 1


def test_grants_and_truth_keep_their_schemas(report: ShopReport) -> None:
    found = {
        name: pq.read_schema(report.folder / f"{name}.parquet")
        for name in ("grants", "truth/users", "truth/affinity", "truth/repeat_needs", "truth/events")
    }
    assert [*found.values()] == [GRANTS, USERS, AFFINITY, REPEAT_NEEDS, EVENT_TRUTH]
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


# --- same bytes -------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        simulate(ShopSettings(seed=seed, users=150, items=80, days=9), tmp_path / name)
    one, again, other = (checksums(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


def test_rows_are_in_no_order(report: ShopReport) -> None:
    rows = pl.read_parquet(report.folder / "log" / "date=2026-02-10" / "part-00000.parquet")
    time = rows["ts"].dt.epoch("us").to_numpy()
    assert abs(np.corrcoef(np.arange(len(rows)), time)[0, 1]) < 0.1
    assert not rows["event_id"].is_sorted()


# --- the truth is apart -----------------------------------------------------------------------------------------------


def test_ids_give_nothing_away(report: ShopReport, log: pl.DataFrame) -> None:
    assert all(re.fullmatch(r"user-\d{5}", name) for name in log["user_id"].drop_nulls().unique())
    assert all(re.fullmatch(r"item-\d{5}", name) for name in log["item_id"].unique())
    for column in ("event_id", "session_id"):
        assert log[column].str.contains(r"^[0-9a-f]{16}$").all()
    number = pl.col("user_id").str.slice(5).cast(pl.Int64)
    means = truth(report, "users").group_by("segment").agg(number.mean().alias("mean"), pl.len())
    # Ids of a segment lie about the middle of all ids, within four standard errors.
    allowed = 4 * report.people / np.sqrt(12 * means["len"].to_numpy())
    assert (abs(means["mean"].to_numpy() - report.people / 2) < allowed).all()


def test_the_log_and_the_catalogue_never_speak_of_the_truth(report: ShopReport, log: pl.DataFrame) -> None:
    secrets = {"segment", "newcomer", "regular", "burst", "no_consent", "repeat", "interest", "truth", "browse"}
    items = catalogue(report)
    for frame in (log, items):
        words = {word for column in frame.columns for word in re.split(r"\W+|_", column)}
        for column in ("event", "source", "flags", "title", "text", "sensitive"):
            if column in frame.columns:
                texts = frame[column].explode() if frame[column].dtype == pl.List else frame[column]
                words |= {word for text in texts.drop_nulls().unique() for word in re.split(r"\W+", text.lower())}
        assert not words & secrets
    for path in [report.folder / "catalogue.parquet", *report.folder.glob("log/*/*")]:
        assert set(pq.read_metadata(path).metadata or {}) <= {b"ARROW:schema"}


def test_only_a_part_of_the_gifts_is_flagged_and_nothing_else_is(report: ShopReport, log: pl.DataFrame) -> None:
    told = log.join(truth(report, "events").select("event_id", "reason"), on="event_id", how="left")
    flagged = told.filter(pl.col("flags").list.contains("gift"))
    assert len(flagged) == report.gifts_flagged == told["flags"].list.len().sum()
    assert set(flagged["reason"]) == {"gift"}
    markable = told.filter((pl.col("reason") == "gift") & pl.col("event").is_in(["cart", "purchase"]))
    assert len(flagged) / len(markable) == pytest.approx(0.4, abs=0.05)


def test_the_truth_names_who_was_behind_each_event(report: ShopReport, log: pl.DataFrame) -> None:
    told = log.join(truth(report, "events"), on="event_id", suffix="_true")
    assert len(told) == len(truth(report, "events")) == report.gifts + report.repeats
    known = told.filter(pl.col("user_id").is_not_null())
    assert len(known) < len(told)
    assert (known["user_id"] == known["user_id_true"]).all()


# --- people -----------------------------------------------------------------------------------------------------------


def test_segments_and_consent_have_the_shares_that_were_set(report: ShopReport) -> None:
    people = truth(report, "users")
    assert dict(people["segment"].value_counts().iter_rows()) == {
        "newcomer": 160, "no_consent": 200, "gift_burst": 120, "regular": 1520,
    }  # fmt: skip
    assert dict(people["consent"].value_counts().iter_rows()) == {"none": 200, "some": 300, "all": 1500}


def test_replaying_the_grants_gives_the_sources_that_the_truth_names(report: ShopReport) -> None:
    people, sources = truth(report, "users"), set(ShopSettings().sources)
    standing: dict[str, set[str]] = {}
    grants = pl.read_parquet(report.folder / "grants.parquet").filter(purpose="profile").sort("occurred_at")
    for user, source, granted in grants.select("user_id", "source", "granted").iter_rows():
        named = {source} if source else sources
        standing[user] = standing.get(user, set()) | named if granted else standing.get(user, set()) - named
    expected = {user: set(names) for user, names in people.select("user_id", "sources_granted").iter_rows() if names}
    assert standing == expected
    partial = people.filter(consent="some")["sources_granted"].list.len()
    assert partial.is_between(1, len(sources) - 1).all()


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


# --- signals ----------------------------------------------------------------------------------------------------------


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


# --- the click model --------------------------------------------------------------------------------------------------


def test_looks_stop_after_satisfaction_and_skip_empty_slots() -> None:
    shown = np.array([[True, True, True], [False, True, True], [False, False, False]])
    sure = np.ones(shown.shape)
    looks = look(shown, sure, sure, np.random.default_rng(0))
    assert looks.examined.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    assert (looks.satisfied == looks.clicked).all()


@pytest.mark.parametrize("shape", [(0, 12), (1, 1), (5, 123)])
def test_looks_take_odd_shapes(shape: tuple[int, int]) -> None:
    looks = look(np.ones(shape, bool), np.full(shape, 0.5), np.full(shape, 0.5), np.random.default_rng(1))
    assert looks.examined.shape == shape
    assert not (looks.clicked & ~looks.examined).any()
    assert not (looks.satisfied & ~looks.clicked).any()


def test_equal_items_are_clicked_less_further_down() -> None:
    shape = (20_000, 10)
    looks = look(np.ones(shape, bool), np.full(shape, 0.3), np.full(shape, 0.5), np.random.default_rng(2))
    clicks = looks.clicked.mean(axis=0)
    assert (np.diff(clicks) < 0).all()
    # Who looks clicks at the same rate anywhere, and goes on with patience x (1 - clicked and satisfied).
    assert looks.clicked.sum() / looks.examined.sum() == pytest.approx(0.3, abs=0.01)
    assert clicks[1] / clicks[0] == pytest.approx(0.86 * 0.85, abs=0.03)


# --- sizes and refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ShopSettings(users=1, items=32, days=1),
        ShopSettings(users=3, items=33, days=2, page=1, sources=("web",), source_shares=(1.0,)),
        ShopSettings(users=7, items=40, days=3, sessions_per_day=0, repeat_share=0, gift_burst_share=0),
        ShopSettings(users=5, items=40, days=3, newcomer_share=0.6),
        ShopSettings(users=40, items=40, days=4, late_share=1, sensitive_share=1, limited_share=1, anonymous_share=1),
    ],
)
def test_odd_shops_are_whole(settings: ShopSettings, tmp_path: Path) -> None:
    report = simulate(settings, tmp_path / "shop")
    files = sorted((tmp_path / "shop").glob("log/*/*.parquet"))
    assert len(files) == settings.days
    assert sum(pq.read_metadata(path).num_rows for path in files) == report.total


def test_the_cast_shows_one_of_each_segment(report: ShopReport) -> None:
    people = {row["user_id"]: row for row in truth(report, "users").iter_rows(named=True)}
    assert {segment: people[user]["segment"] for segment, user in report.cast.items()} == {
        name: name for name in ("regular", "newcomer", "no_consent", "gift_burst")
    }
    assert people[report.cast["regular"]]["consent"] == "all"
    assert people[report.cast["newcomer"]]["events"] == 3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"users": 0}, "users"),
        ({"users": 2.5}, "users"),
        ({"seed": -1}, "seed"),
        ({"days": True}, "days"),
        ({"items": 31}, "items"),
        ({"anonymous_share": 1.1}, "anonymous_share"),
        ({"drift": float("nan")}, "drift"),
        ({"drift": "much"}, "drift"),
        ({"start": "2026-01-01"}, "start"),
        ({"start": dt.datetime(2026, 1, 1)}, "start"),
        ({"sources": ()}, "sources"),
        ({"sources": ("web", "web"), "source_shares": (0.5, 0.5)}, "sources"),
        ({"sources": ("web", "app")}, "source_shares"),
        ({"source_shares": (1.0, 0.0, 1.0, 1.0)}, "source_shares"),
        ({"newcomer_share": 0.5, "no_consent_share": 0.5}, "newcomer_share"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_with_a_remedy(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ShopSettings(**wrong)  # type: ignore[arg-type]
    assert named in caught.value.message
    assert caught.value.remedy


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        simulate(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_fails_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shop, "users_table", fail)  # the last file but one
    with pytest.raises(OSError, match="disk full"):
        simulate(SMALL, tmp_path / "shop")
    assert not list(tmp_path.iterdir())


def test_the_peak_of_memory_does_not_grow_with_the_days(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from engine.activity.simulator import ShopSettings, simulate;"
        "simulate(ShopSettings(users=10_000, days=int(sys.argv[1]), gift_burst_share=0.0), Path(sys.argv[2]));"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", program, str(days), str(tmp_path / str(days))]))
        for days in (10, 70)
    )
    # Sixty more days are 600,000 events; at 9 columns and 8 bytes each, holding them would take 40 MB at the least.
    assert many - few < 20_000


def test_the_simulator_knows_no_other_room() -> None:
    for path in Path(simulator.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engine"):
                assert re.match(r"engine\.(errors|schema|activity\.simulator(\..*)?)$", node.module or ""), path
