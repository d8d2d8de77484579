"""From the journal into the log: once each, in the log's contract, without the ids of who granted nothing."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from engine.errors import JournalUnavailable, LedgerUnavailable
from engine.live import Journal, ship
from engine.live.shipping import LOG
from tests.durability import Durability
from tests.today_events import NOON, did

DAY = 86_400_000_000


def everybody(events):
    return [event.user_id for event in events]


def rows(log: Path) -> list[dict]:
    files = sorted(log.rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


@pytest.fixture
def journal(tmp_path):
    made = Journal.open(tmp_path / "live")
    yield made
    made.close()


def test_events_go_to_the_day_on_which_they_happened(journal, tmp_path):
    journal.append([did("ann", "1"), did("ben", "2", at=NOON - DAY, received=NOON)])
    journal.append([did("", "3", event="impression")])
    assert ship(journal, str(tmp_path / "log"), everybody) == 3
    files = sorted((tmp_path / "log").rglob("*.parquet"))
    assert [file.parent.name for file in files] == ["date=2026-09-20", "date=2026-09-21"]
    assert all(pq.read_schema(file).equals(LOG) for file in files)
    told = {row["event_id"]: row for row in rows(tmp_path / "log")}
    assert told["3"]["user_id"] is None and told["1"]["user_id"] == "ann"
    assert told["2"]["ts"].timestamp() * 1e6 == NOON - DAY
    assert pl.scan_parquet(tmp_path / "log", hive_partitioning=True).collect().height == 3


def test_a_category_that_was_dismissed_is_a_flag(journal, tmp_path):
    journal.append([did("ann", "1", item="", event="dismiss_category", category="wine", flags=("by_voice",))])
    ship(journal, str(tmp_path / "log"), everybody)
    (row,) = rows(tmp_path / "log")
    assert row["flags"] == ["by_voice", "category:wine"] and row["item_id"] is None


def test_who_granted_nothing_is_nobody_and_who_was_erased_is_not_there(journal, tmp_path):
    journal.append([did("ann", "1"), did("ben", "2"), did("cleo", "3")])
    ship(journal, str(tmp_path / "log"), lambda events: ["ann", "", None])
    assert [(row["event_id"], row["user_id"]) for row in rows(tmp_path / "log")] == [("1", "ann"), ("2", None)]
    for path in [*(tmp_path / "log").rglob("*"), *journal.folder.rglob("*")]:
        assert not path.is_file() or b"cleo" not in path.read_bytes()


def test_while_the_ledger_is_away_everything_waits(journal, tmp_path):
    journal.append([did("ann", "1")])

    def away(events):
        raise LedgerUnavailable("It does not answer.")

    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            ship(journal, str(tmp_path / "log"), away)
    assert rows_or_none(tmp_path / "log") == []
    assert ship(journal, str(tmp_path / "log"), everybody) == 1


def rows_or_none(log: Path) -> list[dict]:
    return rows(log) if log.exists() else []


def test_shipped_again_after_a_crash_nothing_counts_twice(journal, tmp_path, monkeypatch):
    journal.append([did("ann", str(n)) for n in range(5)])

    def crash(segment) -> None:
        raise JournalUnavailable("The process ended here.", "")

    with monkeypatch.context() as broken:
        broken.setattr(journal, "shipped", crash)
        with pytest.raises(JournalUnavailable):
            ship(journal, str(tmp_path / "log"), everybody)
    before = {file.name: file.read_bytes() for file in (tmp_path / "log").rglob("*.parquet")}
    ship(journal, str(tmp_path / "log"), everybody)
    after = {file.name: file.read_bytes() for file in (tmp_path / "log").rglob("*.parquet")}
    assert before == after
    assert sorted(row["event_id"] for row in rows(tmp_path / "log")) == [str(n) for n in range(5)]
    assert ship(journal, str(tmp_path / "log"), everybody) == 0


def test_an_event_that_two_calls_brought_at_once_is_shipped_once(journal, tmp_path):
    journal.append([did("ann", "1")])
    journal.append([did("ann", "1"), did("ben", "1")])
    ship(journal, str(tmp_path / "log"), everybody)
    assert sorted(row["user_id"] for row in rows(tmp_path / "log")) == ["ann", "ben"]


def test_a_file_of_the_log_outlives_a_loss_of_power(journal, tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    durability = Durability(monkeypatch)
    journal.append([did("ann", "1")])
    ship(journal, str(tmp_path / "log"), everybody)
    (file,) = (tmp_path / "log").rglob("*.parquet")
    assert durability.survives(file, tmp_path / "log")


def test_a_log_that_does_not_answer_is_told_without_losing_anything(journal, tmp_path):
    journal.append([did("ann", "1")])
    (tmp_path / "log").write_text("a file where the folder should be")
    with pytest.raises(JournalUnavailable) as told:
        ship(journal, str(tmp_path / "log"), everybody)
    assert "live.log" in told.value.remedy
    (tmp_path / "log").unlink()
    assert ship(journal, str(tmp_path / "log"), everybody) == 1
