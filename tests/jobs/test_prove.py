"""The proving ground: people who react, a server that is asked for their lists, and the same people without one."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from bodega.client import grant
from bodega.v1 import ranking_pb2

from engine.activity.simulator import LiveShop, ShopSettings, Visitor, simulate
from engine.errors import BodegaError, SettingsError
from engine.schema import GRANTS
from jobs.lists import BestSellers, ServerLists, tell_consent
from jobs.processes import _ended, run_night
from jobs.prove import check
from jobs.settings import ProveChoice, ProveSettings
from tests.nights import SMALL, command
from tests.serving.shop import Shop

TINY = (
    "gates.beat_popularity=false",
    "shop.users=300",
    "shop.items=120",
    "shop.seed=3",
    "shop.sessions_per_day=0.4",
    "prove.warm_up=21",
)
HEAD = ["date", "visits", "lists", "clicks/list", "satisfied", "bought", "tail", "new", "personal", "left"]


def table_of(out: str) -> list[list[str]]:
    """The lines of days, without the head and the JSON at the end."""
    head, *days, _ = (line.split() for line in out.splitlines())
    assert head == HEAD
    return days


def quarantined(out: Path) -> dict[str, int]:
    """Rows by reason, of all nights."""
    counts: dict[str, int] = {}
    for path in out.glob("runs/*/ingest/_stage.json"):
        counts |= json.loads(path.read_text())["facts"]["counts"]
    return {name: count for name, count in counts.items() if count and not name.startswith("-")}


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_server_is_proved_on_people_who_react(tmp_path: Path) -> None:
    ran = command("jobs.prove", f"out={tmp_path / 'out'}", *TINY, *SMALL, "prove.days=3", "prove.nightly=false")
    assert ran.code == 0, ran.err
    days, told = table_of(ran.out), ran.last_line
    assert [line[0] for line in days] == ["2026-01-22", "2026-01-23", "2026-01-24"]
    assert told["lists"] == "server"
    assert told["days"] == 3
    assert told["visits"] == sum(int(line[1]) for line in days)
    assert told["list_visits"] == sum(int(line[2]) for line in days) > 50
    assert 0.3 < told["personal_share"] < 1  # most have granted, not all
    assert told["clicks_per_visit"] > 0
    assert told["dead_share"] < 0.05  # what is not sold that day in that region is hardly offered
    assert set(told["by_group"]) == {"large", "middle", "small"}
    assert sum(group["visits"] for group in told["by_group"].values()) == told["list_visits"]
    assert len(told["snapshots"]) == 1
    assert not quarantined(tmp_path / "out")  # what the warm-up wrote keeps the contract
    assert "were refused" not in ran.err
    at_work = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert not at_work
    # Whoever changed their mind meanwhile did so on the ledger.
    days_of = pl.read_parquet(tmp_path / "out" / "shop" / "grants.parquet").filter(
        pl.col("occurred_at") >= dt.datetime(2026, 1, 22, tzinfo=dt.UTC)
    )
    assert len(days_of) > 0


@pytest.mark.slow
def test_nights_go_on_over_what_the_days_left(tmp_path: Path) -> None:
    ran = command(
        "jobs.prove", f"out={tmp_path / 'out'}", *TINY, *SMALL, "prove.days=3", "prove.every=1", timeout=900
    )  # fmt: skip
    assert ran.code == 0, ran.err
    snapshots = ran.last_line["snapshots"]
    assert len(snapshots) == len(set(snapshots)) == 3
    assert [name[:8] for name in snapshots] == ["20260121", "20260122", "20260123"]
    assert not quarantined(tmp_path / "out")


def test_popular_lists_need_no_night_and_give_the_same_again(tmp_path: Path) -> None:
    ran = [
        command("jobs.prove", f"out={tmp_path / name}", *TINY, "prove.days=4", "prove.lists=popular")
        for name in ("one", "two")
    ]
    assert ran[0].code == 0, ran[0].err
    told = ran[0].last_line
    assert len(table_of(ran[0].out)) == told["days"] == 4
    assert told["personal_share"] == 0
    assert told["snapshots"] == []
    assert ran[0].out.rpartition('"seconds"')[0] == ran[1].out.rpartition('"seconds"')[0]


def test_a_trial_stops_when_its_time_is_over(tmp_path: Path) -> None:
    ran = command(
        "jobs.prove", f"out={tmp_path / 'out'}", *TINY, "prove.days=4", "prove.lists=popular", "prove.minutes=0.0001"
    )
    assert ran.code == 0, ran.err
    assert "prove.minutes=0.0001 are over: 0 of 4 days were lived" in ran.err
    assert ran.last_line["days"] == 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lists": "best"}, "prove.lists"),
        ({"days": 0}, "prove.days"),
        ({"warm_up": 0}, "prove.warm_up"),
        ({"every": 0}, "prove.every"),
        ({"minutes": 0.0}, "prove.minutes"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        check(ProveSettings(prove=ProveChoice(**wrong)))
    assert caught.value.remedy


def test_a_trial_in_days_to_come_is_refused_before_any_work(tmp_path: Path) -> None:
    ran = command("jobs.prove", f"out={tmp_path / 'out'}", "shop.start=2199-01-01")
    assert ran.code == 2
    assert "which is to come" in ran.err
    assert "remedy: Set shop.start" in ran.err
    assert not (tmp_path / "out").exists()


# --- lists ------------------------------------------------------------------------------------------------------------


class Recorder:
    """A client that answers with the user's own id as the only item, and refuses one of them."""

    def __init__(self, refused: str = "") -> None:
        self.batches: list[list[Any]] = []
        self.changes: list[tuple[str, list[Any], dict[str, Any]]] = []
        self._refused = refused

    def batch_recommend(self, requests: list[Any], timeout: float) -> list[ranking_pb2.BatchRecommendResult]:
        self.batches.append(requests)
        return [self._result(request.user_id) for request in requests]

    def set_consent(self, user: str, changes: list[Any], **recorded: Any) -> None:
        self.changes.append((user, changes, recorded))

    def _result(self, user: str) -> ranking_pb2.BatchRecommendResult:
        result = ranking_pb2.BatchRecommendResult()
        if user == self._refused:
            result.problem.message = "no such person"
        else:
            result.response.items.add(item_id=user)
            result.response.provenance.mode = ranking_pb2.Provenance.MODE_PROFILED
        return result


def visitors(count: int) -> list[Visitor]:
    return [Visitor(f"user-{place:05d}", "FR-IDF", place == 3) for place in range(count)]


def test_the_server_is_asked_in_batches_and_told_region_and_age() -> None:
    client = Recorder()
    lists = ServerLists(client, 12)  # type: ignore[arg-type]
    assert lists(visitors(250), 0) == [[each.user_id] for each in visitors(250)]
    assert [len(batch) for batch in client.batches] == [100, 100, 50]
    first = client.batches[0]
    assert {request.context.region for request in first} == {"FR-IDF"}
    assert [place for place, request in enumerate(first) if request.context.minor] == [3]
    assert {request.limit for request in first} == {12}
    assert lists.share_today == 1
    assert lists([], 1) == []
    assert (lists.asked, lists.profiled) == (250, 250)


def test_a_refused_list_is_empty_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    lists = ServerLists(Recorder(refused="user-00001"), 12)  # type: ignore[arg-type]
    assert lists(visitors(3), 0) == [["user-00000"], [], ["user-00002"]]
    assert "1 of 3 lists were refused, such as: no such person" in capsys.readouterr().err
    assert lists.share_today == pytest.approx(2 / 3)


def test_best_sellers_are_what_sold_before_that_day_and_is_sold_there(tmp_path: Path) -> None:
    settings = ShopSettings(users=300, items=90, days=12, limited_share=0.7, ended_share=0.2)
    simulate(settings, tmp_path / "shop")
    day = 10
    lists = BestSellers(tmp_path / "shop", settings)
    first, again, elsewhere = lists(
        [Visitor("ana", "FR-IDF", False), Visitor("ben", "FR-IDF", False), Visitor("cleo", "AT-9", True)], day
    )
    assert first == again != elsewhere
    assert len(first) == len(set(first)) == settings.page
    files = sorted((tmp_path / "shop" / "log").glob("*/*.parquet"))[:day]
    bought = pl.concat([pl.read_parquet(path) for path in files]).filter(event="purchase").group_by("item_id").len()
    items = pl.read_parquet(tmp_path / "shop" / "catalogue.parquet")
    sold = items.filter(
        (pl.col("regions").list.len() == 0) | pl.col("regions").list.contains("FR-IDF"),
        pl.col("available_until").is_null() | (pl.col("available_until") > dt.datetime(2026, 1, 11, tzinfo=dt.UTC)),
    )
    expected = bought.join(sold, on="item_id").sort(["len", "item_id"], descending=[True, False])
    assert first == expected["item_id"].head(settings.page).to_list()
    assert set(first) != set(bought.sort(["len", "item_id"], descending=[True, False])["item_id"].head(settings.page))


def test_on_the_first_day_nothing_has_sold_yet(tmp_path: Path) -> None:
    settings = ShopSettings(users=50, items=40, days=2)
    shop = LiveShop(settings, tmp_path / "shop")
    shop.write_books()
    report = shop.step(0, BestSellers(tmp_path / "shop", settings))
    assert report.slots.total == 0


# --- consent ----------------------------------------------------------------------------------------------------------


def test_what_people_decide_reaches_the_server_in_its_order(tmp_path: Path) -> None:
    settings = ShopSettings(users=400, items=60, days=20, wavering_share=0.5)
    grants = LiveShop(settings, tmp_path / "shop").grants
    client, changes = Recorder(), grants.of(11)
    tell_consent(client, changes)  # type: ignore[arg-type]
    times = [recorded["occurred_at"] for _, _, recorded in client.changes]
    assert times == sorted(times)
    assert {time.date() for time in times} == {dt.date(2026, 1, 12)}
    said = sorted((user, each.purpose, each.source, each.granted) for user, told, _ in client.changes for each in told)
    rows = changes.select(["user_id", "purpose", "source", "granted"]).to_pylist()
    assert said == sorted(tuple(row.values()) for row in rows)
    assert {recorded["actor"] for _, _, recorded in client.changes} <= {"person", "guardian"}
    tell_consent(client, GRANTS.empty_table())  # type: ignore[arg-type]


def test_a_withdrawal_binds_the_next_list_of_a_real_server(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.publish()
    with shop.served() as (_, client):
        client.set_consent("ana", [grant("profile")])
        lists = ServerLists(client, 5)
        known = lists([Visitor("ana", "", False)], 0)
        assert lists.share_today == 1
        row = {"user_id": "ana", "purpose": "profile", "source": "", "granted": False, "notice_version": "2026-01"}
        row |= {"actor": "person", "occurred_at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}
        tell_consent(client, GRANTS.empty_table().from_pylist([row], schema=GRANTS))
        assert lists([Visitor("ana", "", False)], 1) != known
        assert lists.share_today == 0


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_night_that_fails_says_its_code(tmp_path: Path) -> None:
    with pytest.raises(BodegaError, match="code 2"):
        run_night(tmp_path, ["no_such_setting=1"])


def test_a_night_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(BodegaError, match="longer than"):
        run_night(tmp_path, timeout=0.05)
    alive = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert not alive


def test_a_process_that_will_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.processes._STOP_SECONDS", 0.3)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
    began = time.monotonic()
    with pytest.raises(ValueError, match="body"), _ended(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "deaf\n"
        raise ValueError("body")
    assert process.returncode == -9
    assert time.monotonic() - began < 20
