"""What happens to the ledger when processes die, meet, or find its file damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from engine.consent import Change, Ledger, Vocabulary
from engine.errors import ConsentError, LedgerUnavailable

# Grants and withdraws in turn, each time for the next person, and prints what was acknowledged.
WRITER = """
import sys
from engine.consent import Change, Ledger, Vocabulary
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ledger = Ledger.open(url, Vocabulary(sources=("web", "app", "store")))
for n in range(count):
    key = f"{name}{n % 7:015d}".encode()
    answer = ledger.record(key, [Change("profile", "web", n % 2 == 0)], None, "n", "person", f"{name}{n}", None)
    print(key.decode(), n, answer.sequence, answer.receipt_id, flush=True)
"""


def start(url: str, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("lines", [1, 18, 61])
def test_kill_9_loses_no_acknowledged_change(lines: int, url: str, vocabulary: Vocabulary) -> None:
    writer = start(url, "a", 1_000_000)
    assert writer.stdout
    acknowledged = [writer.stdout.readline().split() for _ in range(lines)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [line.split() for line in writer.stdout.read().split("\n")[:-1]]
    assert writer.wait() == -signal.SIGKILL
    ledger = Ledger.open(url, vocabulary)
    # One more may have reached the disk before its answer was printed.
    assert len(acknowledged) <= ledger.sequence() <= len(acknowledged) + 1
    for person, number, sequence, receipt in acknowledged:
        history = {line.sequence: line for line in ledger.changes(person.encode(), 0, 10**6)}
        line = history[int(sequence)]
        assert (line.receipt_id, line.request_id) == (receipt, f"a{number}")
        assert line.change == Change("profile", "web", int(number) % 2 == 0)
        last = history[max(history)].change
        assert last and ledger.standing(person.encode()).granted == (0b11 if last.granted else 0)
    assert ledger.standings()[0].equals(ledger.standings(ledger.sequence())[0])
    ledger.close()


def test_two_processes_open_and_write_at_once(url: str, vocabulary: Vocabulary) -> None:
    writers = [start(url, name, 60) for name in "ab"]
    answers = []
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        answers += [line.split() for line in out.splitlines()]
    ledger = Ledger.open(url, vocabulary)
    assert sorted(int(sequence) for _, _, sequence, _ in answers) == list(range(1, 121))
    assert ledger.sequence() == 120 and ledger.standings()[0].num_rows == 14
    assert ledger.standings()[0].equals(ledger.standings(120)[0])
    ledger.close()


def test_many_threads_write_and_read_at_once(ledger: Ledger, key: Any) -> None:
    def work(thread: int) -> list[int]:
        mine = []
        for n in range(15):
            granted = n % 2 == 0
            answer = ledger.record(key(thread), [Change("profile", "", granted)], n % 5, "n", "person", f"{n}", None)
            standing = ledger.standing(key(thread))
            assert (standing.granted, standing.preference) == (ledger.vocabulary.groups if granted else 0, n % 5)
            assert standing.sequence == answer.sequence <= ledger.sequence()
            mine.append(answer.sequence)
        return mine

    with ThreadPoolExecutor(8) as pool:
        sequences = [sequence for mine in pool.map(work, range(8)) for sequence in mine]
    assert sorted(sequences) == list(range(1, 121))


def test_one_request_sent_by_many_threads_is_recorded_once(ledger: Ledger, key: Any) -> None:
    together = threading.Barrier(6)

    def send(_: int) -> Any:
        together.wait()
        return ledger.record(key(1), [Change("profile", "web", True)], None, "n", "person", "same", None)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(send, range(6)))) == 1
    assert ledger.sequence() == 1


def test_a_reader_sees_a_whole_call_or_nothing_of_it(ledger: Ledger, key: Any) -> None:
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for granted in (True, False):
                ledger.record(key(1), [Change(p, "", granted) for p in ("profile", "train")], None, "", "", "", None)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(flip)
        try:
            whole = {0, ledger.vocabulary.mask("profile") | ledger.vocabulary.mask("train")}
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert ledger.standing(key(1)).granted in whole
                table, sequence = ledger.standings()
                assert table.num_rows == 0 or table.column("granted")[0].as_py() == (max(whole) if sequence % 2 else 0)
        finally:
            stop.set()
        writing.result()


@contextmanager
def another_writer(url: str) -> Iterator[None]:
    """Somebody beside the ledger who holds what a writer of it must have first."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with engine.connect() as connection:
        on_file = engine.dialect.name == "sqlite"
        connection.exec_driver_sql("BEGIN IMMEDIATE" if on_file else "SELECT * FROM consent_ledger FOR UPDATE")
        yield
        connection.rollback()


def test_a_writer_that_waited_in_vain_says_so_and_recorded_nothing(url: str, vocabulary: Vocabulary, key: Any) -> None:
    ledger = Ledger.open(url, vocabulary, patience=0.5)
    with another_writer(url):
        with pytest.raises(LedgerUnavailable, match="locked"):
            ledger.record(key(1), [Change("profile", "web", True)], None, "", "", "", None)
        assert not ledger.standing(key(1)).known  # readers do not wait
    assert ledger.record(key(1), [Change("profile", "web", True)], None, "", "", "", None).sequence == 1
    ledger.close()


def filled(url: str, vocabulary: Vocabulary, grants: Any, key: Any) -> None:
    ledger = Ledger.open(url, vocabulary)
    ledger.import_grants(grants(*((key(n), "+profile/", 1.0) for n in range(500))))
    ledger.close()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("damage", ["text", "header", "cut", "folder"])
def test_a_damaged_file_cannot_be_opened(
    damage: str, tmp_path: Path, url: str, vocabulary: Vocabulary, grants: Any, key: Any
) -> None:
    path = tmp_path / "consent.db"
    if damage == "folder":
        path.mkdir()
    else:
        filled(url, vocabulary, grants, key)
        content = path.read_bytes()
        path.write_bytes(
            {"text": b"no database" * 999, "header": b"\0" * 4096 + content[4096:], "cut": content[:5000]}[damage]
        )
    with pytest.raises(LedgerUnavailable) as caught:
        ledger = Ledger.open(url, vocabulary)
        ledger.standing(key(1))
    assert "restore" in caught.value.remedy and key(1).hex() not in str(caught.value)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_damaged_pages_never_turn_into_consent(
    tmp_path: Path, url: str, vocabulary: Vocabulary, grants: Any, key: Any
) -> None:
    filled(url, vocabulary, grants, key)
    path = tmp_path / "consent.db"
    content = path.read_bytes()
    path.write_bytes(content[: 4096 * 2] + b"\xa5" * (len(content) - 4096 * 2))
    with pytest.raises(LedgerUnavailable):
        ledger = Ledger.open(url, vocabulary)
        for n in range(500):
            assert not ledger.standing(key(n)).granted
    with pytest.raises(LedgerUnavailable):
        Ledger.open(url, vocabulary).standings()


@pytest.mark.parametrize("state", ["profile", "profile/web/x", "a/b/c profile/web"])
def test_a_state_that_makes_no_sense_is_unreadable_and_not_empty(
    state: str, ledger: Ledger, record: Any, key: Any, sql: Any
) -> None:
    record(key(1), "+profile/web")
    sql("UPDATE consent_current SET granted = :state", state=state)
    for use in (lambda: ledger.standing(key(1)), ledger.standings):
        with pytest.raises(LedgerUnavailable, match="read"):
            use()


def test_a_missing_table_is_told_by_every_call(ledger: Ledger, record: Any, key: Any, grants: Any, sql: Any) -> None:
    record(key(1), "+profile/web")
    for table in ("consent_changes", "consent_current", "consent_ledger"):
        sql(f"DROP TABLE {table}")
    for use in (
        lambda: ledger.standing(key(1)),
        ledger.sequence,
        ledger.standings,
        lambda: ledger.changes(key(1), 0, 1),
        lambda: record(key(1), "+profile/web"),
        lambda: ledger.import_grants(grants((key(1), "+profile/web", 1.0))),
    ):
        with pytest.raises(LedgerUnavailable):
            use()


def test_a_failed_call_leaves_no_trace(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/web", request_id="r")
    with pytest.raises(ConsentError):
        record(key(1), "-profile/web", request_id="r")
    assert record(key(1), "-profile/web", request_id="s").sequence == 2
