"""Erasing and auditing when processes die, meet, or open a file that an older version wrote."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from engine.consent import Change, Ledger, Vocabulary
from engine.consent.opening import LEDGER_FORMAT
from engine.errors import LedgerUnavailable

# Kills itself right before the n-th statement of an erasure, counted on the driver's own connection.
DYING = """
import os, signal, sys
from sqlalchemy import event
from engine.consent import Ledger, Vocabulary
url, last = sys.argv[1], int(sys.argv[2])
ledger = Ledger.open(url, Vocabulary(sources=("web", "app", "store")))
count = 0
def seen(connection, cursor, statement, *rest):
    global count
    if statement.lstrip().upper().startswith("SELECT"):
        return
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
event.listen(ledger._store.engine, "before_cursor_execute", seen)
event.listen(ledger._store.engine, "commit", lambda connection: seen(connection, None, "COMMIT"))
print(ledger.erase(b"a" * 16, "person", "e").receipt_id, count, flush=True)
"""
WRITER = """
import sys
from engine.consent import Change, Ledger, Vocabulary
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ledger = Ledger.open(url, Vocabulary(sources=("web", "app", "store")))
for n in range(count):
    key = f"{name}{n % 3:015d}".encode()
    ledger.record(key, [Change("profile", "", True)], None, "n", "person", "", None)
    if n % 3 == 0:
        ledger.audit("snapshot_promoted", name, {"turn": n})
    if n % 5 == 0:
        ledger.erase(key, "person", "")
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def test_an_erasure_cut_off_by_kill_9_at_any_statement_is_whole_or_has_not_begun(
    url: str, ledger: Ledger, vocabulary: Vocabulary
) -> None:
    key = b"a" * 16
    kept = ledger.record(key, [Change("profile", "", True)], 2, "n", "person", "r", None)
    before = ledger.standing(key), ledger.changes(key, 0, 9), ledger.audit_head()
    for last in range(1, 40):
        process = python(DYING, url, str(last))
        out, _ = process.communicate(timeout=60)
        if process.returncode != -signal.SIGKILL:
            break
        assert not out
        with closing(Ledger.open(url, vocabulary)) as found:
            assert (found.standing(key), found.changes(key, 0, 9), found.audit_head()) == before, last
            assert found.verify_audit().whole and found.sequence() == kept.sequence
            again = found.record(key, [Change("profile", "", True)], 2, "n", "person", "r", None)
            assert again == kept, "its request id is still known"
    assert last >= 7, "it died at each of them"
    receipt, _ = out.split()
    standing = ledger.standing(key)
    assert process.returncode == 0 and (standing.granted, standing.preference, standing.known) == (0, 0, False)
    assert standing.erased_at and not ledger.changes(key, 0, 9)
    assert ledger.erase(key, "person", "").receipt_id == receipt and ledger.verify_audit().whole


def test_kill_9_right_after_the_answer_loses_no_erasure(url: str, ledger: Ledger, vocabulary: Vocabulary) -> None:
    ledger.record(b"a" * 16, [Change("profile", "", True)], None, "n", "person", "", None)
    process = python(DYING + "os.kill(os.getpid(), signal.SIGKILL)\n", url, "1000")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with closing(Ledger.open(url, vocabulary)) as found:
        assert found.erase(b"a" * 16, "person", "").receipt_id == out.split()[0]
        assert not found.standing(b"a" * 16).granted


def test_processes_that_write_at_once_keep_one_chain(url: str, ledger: Ledger) -> None:
    writers = [python(WRITER, url, name, "45") for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        assert ledger.verify_audit().whole  # at every moment
    assert [writer.wait() for writer in writers] == [0, 0]
    check = ledger.verify_audit()
    assert check.whole and check.rows == 2 * (45 + 15 + 9) and ledger.sequence() == 2 * (45 + 9)
    rows = ledger.audit_rows(check.rows)
    assert {row.actor for row in rows} == {"person", "a", "b"}
    assert [row.sequence for row in rows if row.sequence] == list(range(1, ledger.sequence() + 1))
    turns = [json.loads(row.detail)["turn"] for row in rows if row.actor == "a"]
    assert turns == sorted(turns)


@pytest.fixture
def of_format_1(tmp_path: Path) -> Path:
    path = tmp_path / "consent.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript((Path(__file__).parent / "format_1.sql").read_text())
        assert raw.execute("SELECT format FROM consent_ledger").fetchone() == (1,)
    return path


def contents(path: Path) -> dict[str, list[Any]]:
    columns = {"consent_changes": "*", "consent_current": "user_key, granted, preference, sequence"}
    with closing(sqlite3.connect(path)) as raw:
        return {table: raw.execute(f"SELECT {what} FROM {table}").fetchall() for table, what in columns.items()}


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_file_of_the_format_before_is_raised_in_place_and_loses_nothing(
    of_format_1: Path, url: str, vocabulary: Vocabulary
) -> None:
    before = contents(of_format_1)
    with closing(sqlite3.connect(of_format_1)) as raw:
        sequence, stable = raw.execute("SELECT sequence, stable_key FROM consent_ledger").fetchone()
    keys = [row[0] for row in before["consent_current"]]
    with closing(Ledger.open(url, vocabulary)) as ledger:
        assert ledger.sequence() == sequence and contents(of_format_1) == before
        ledger.bind(stable)
        now = ledger.standings()[0]
        assert ledger.standings(sequence)[0].equals(now) and set(now["erased_at"].to_pylist()) == {0}
        assert now["user_key"].to_pylist() == sorted(keys)
        assert [row.action for row in ledger.audit_rows(9)] == ["format_raised"] and ledger.verify_audit().whole
        receipt = ledger.erase(keys[0], "person", "").receipt_id
    with closing(Ledger.open(url, vocabulary)) as ledger:  # once more: raised once
        assert ledger.erase(keys[0], "person", "").receipt_id == receipt
        assert not ledger.changes(keys[0], 0, 9) and ledger.changes(keys[1], 0, 9)
        actions = [row.action for row in ledger.audit_rows(9)]
        assert actions == ["format_raised", "person_erased", "person_erased"] and ledger.verify_audit().whole


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_raising_a_format_is_whole_or_has_not_begun(of_format_1: Path, url: str, vocabulary: Vocabulary) -> None:
    before = contents(of_format_1)
    with closing(sqlite3.connect(of_format_1)) as raw, raw:  # what a half-raised file would hold
        raw.execute("CREATE TABLE consent_tombstones (odd INTEGER)")
        raw.execute("ALTER TABLE consent_current ADD COLUMN erased_at BIGINT NOT NULL DEFAULT 0")
    with pytest.raises(LedgerUnavailable):
        Ledger.open(url, vocabulary)
    with closing(sqlite3.connect(of_format_1)) as raw:
        assert raw.execute("SELECT format FROM consent_ledger").fetchone() == (1,)
        tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_master")}
    assert "consent_audit" not in tables and contents(of_format_1) == before


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_two_processes_raise_one_file_at_once(of_format_1: Path, url: str, vocabulary: Vocabulary) -> None:
    opened = "import sys\nfrom engine.consent import Ledger, Vocabulary\nLedger.open(sys.argv[1], Vocabulary(sources=('web',)))"
    both = [python(opened, url) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    with closing(Ledger.open(url, vocabulary)) as ledger:
        assert [row.action for row in ledger.audit_rows(9)] == ["format_raised"]


@pytest.mark.parametrize("older", [2, 3])
def test_a_ledger_of_an_older_format_is_raised_once_and_its_log_goes_on(
    url: str, vocabulary: Vocabulary, key: Any, sql: Any, older: int
) -> None:
    with closing(Ledger.open(url, vocabulary)) as ledger:
        for n in range(3):
            ledger.record(key(n), [Change("profile", "", True)], None, "n", "person", "", None)
        before = ledger.standings()[0]
    sql("DROP INDEX consent_persons", "ALTER TABLE consent_current DROP COLUMN person")
    if older == 2:
        sql("DROP INDEX consent_moves")
    sql(f"UPDATE consent_ledger SET format = {older}")
    with ThreadPoolExecutor(4) as pool:
        ledgers = list(pool.map(lambda _: Ledger.open(url, vocabulary), range(4)))
    assert sql("SELECT format FROM consent_ledger")[0][0] == LEDGER_FORMAT
    with pytest.raises(DBAPIError, match="consent_moves"):
        sql("CREATE INDEX consent_moves ON consent_current (sequence)")  # it is there
    for ledger in ledgers:
        assert ledger.standings()[0].equals(before) and ledger.verify_audit().whole
        assert [row.action for row in ledger.audit_rows(9)] == ["consent_changed"] * 3 + ["format_raised"]
    ledgers[0].links.link([key(0), key(1)], "n", "person", "", None)
    assert ledgers[1].links.others(key(0)) == [key(1)]
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_nothing_of_an_erased_persons_history_is_left_in_the_file(
    tmp_path: Path, url: str, vocabulary: Vocabulary
) -> None:
    with closing(Ledger.open(url, vocabulary)) as ledger:
        for n in range(30):
            ledger.record(
                b"a" * 16, [Change("profile", "", n % 2 == 0)], None, f"marked-{n}", "person", f"id-{n}", None
            )
        ledger.record(b"b" * 16, [Change("profile", "", True)], None, "other", "person", "kept-id", None)
        ledger.erase(b"a" * 16, "person", "")
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"marked-" not in held and b"id-1" not in held and b"kept-id" in held


def test_a_row_of_the_audit_log_leads_to_nobody(ledger: Ledger, record: Any, key: Any) -> None:
    receipts = [
        record(key(1), "+profile/web", request_id="secret-id").receipt_id,
        ledger.erase(key(1), "person", "").receipt_id,
    ]
    for row in ledger.audit_rows(9):
        for trace in (key(1).hex(), "secret-id", "profile", *receipts):
            assert trace not in row.detail
