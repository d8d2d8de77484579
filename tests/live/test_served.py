"""The log of served lists: what was drawn is told with its chance, nobody is named, and old days go."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.errors import JournalUnavailable
from engine.live import ServedList, ServedLog
from engine.live.served import SERVED
from tests.serving.shop import Shop, allow, ids

DAY_US = 86_400_000_000


def made(number: int = 0, day: int = 20_000) -> ServedList:
    return ServedList(
        recommendation_id=f"list-{number}", made_us=day * DAY_US + number, surface="home", policy="home@1", snapshot_id="s",
        mode="PROFILED", seed=2**64 - 1, items=["a", "b"], lanes=["usual", "popular"], scores=[0.5, 0.25],
        propensities=[1.0, 0.5],
    )  # fmt: skip


def read(place: Path) -> list[dict]:
    return [row for file in sorted(place.rglob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]


def test_lists_come_back_by_day_as_they_were(tmp_path: Path) -> None:
    log = ServedLog(str(tmp_path))
    for number in range(3):
        log.add(made(number, day=20_000 + number // 2))
    assert (log.write(), log.write(), len(log)) == (3, 0, 0)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["date=2024-10-04", "date=2024-10-05"]
    rows = read(tmp_path)
    assert [row["recommendation_id"] for row in rows] == ["list-0", "list-1", "list-2"]
    assert (rows[0]["seed"], rows[0]["propensities"]) == (2**64 - 1, [1.0, 0.5])
    assert {*rows[0]} == {*SERVED.names} and not any("user" in name for name in SERVED.names)


def test_what_cannot_be_written_waits_and_memory_is_bounded(tmp_path: Path) -> None:
    place = tmp_path / "log"
    place.write_text("a file where the folder should be")
    log = ServedLog(str(place), most=5)
    for number in range(7):
        log.add(made(number))
    assert (len(log), log.lost) == (5, 2)
    with pytest.raises(JournalUnavailable):
        log.write()
    assert len(log) == 5
    place.unlink()
    assert log.write() == 5
    assert [row["recommendation_id"] for row in read(place)] == [f"list-{number}" for number in range(2, 7)]


def test_old_days_go_and_nothing_else_does(tmp_path: Path) -> None:
    log = ServedLog(str(tmp_path))
    log.forget(dt.date(2024, 10, 5))  # of a log that is not there yet
    for day in range(3):
        log.add(made(day=20_000 + day))
    log.write()
    (tmp_path / "date=notes").mkdir()
    log.forget(dt.date(2024, 10, 5))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["date=2024-10-05", "date=2024-10-06", "date=notes"]


def test_a_server_logs_what_it_drew_and_nothing_that_was_certain(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "out")
    shop.publish()
    with shop.served() as (_, client):
        allow(client, "ana")
        client.recommend("ana", limit=8)
        drawn = client.recommend("ana", limit=8, seed=7)
    rows = read(tmp_path / "out" / "served")
    assert [row["recommendation_id"] for row in rows] == [drawn.recommendation_id]
    assert rows[0]["items"] == ids(drawn) and rows[0]["surface"] == "home"
    assert rows[0]["propensities"] == pytest.approx([each.propensity for each in drawn.items])
    assert min(rows[0]["propensities"]) < 1 and rows[0]["seed"] == 7
    assert b"ana" not in b"".join(file.read_bytes() for file in (tmp_path / "out" / "served").rglob("*.parquet"))
