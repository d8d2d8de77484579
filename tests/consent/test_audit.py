"""The audit log: what gets a row, what a row tells, and what cannot be done to the log without being found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from engine.consent import Ledger
from engine.consent.audit import digest
from engine.errors import ConsentError


@pytest.fixture
def six(ledger: Ledger, record: Any, key: Any, grants: Any) -> Ledger:
    """Six rows; the third and the last move no consent."""
    record(key(1), "+profile/", "+train/web")
    record(key(2), "+profile/web", preference=3)
    ledger.audit("snapshot_promoted", "operator", {"snapshot": "a", "turn": 1})
    ledger.import_grants(grants((key(3), "+profile/", 1.0), (key(4), "+profile/web", 2.0)))
    ledger.erase(key(1), "guardian", "")
    ledger.audit("snapshot_rolled_back", "operator", {"because": "clicks fell"})
    return ledger


def test_each_change_import_and_erasure_has_a_row_at_its_place_in_the_ledger(six: Ledger) -> None:
    rows = six.audit_rows(9)
    assert [(row.number, row.action, row.actor, row.sequence) for row in rows] == [
        (1, "consent_changed", "person", 1),
        (2, "consent_changed", "person", 2),
        (3, "snapshot_promoted", "operator", None),
        (4, "consent_imported", "operator", 4),
        (5, "person_erased", "guardian", 5),
        (6, "snapshot_rolled_back", "operator", None),
    ]
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    check = six.verify_audit()
    assert check.whole and check.rows == 6 and check.head == rows[-1].hash == six.audit_head()
    assert [row.number for row in six.audit_rows(2)] == [5, 6] and not six.audit_rows(0)


def test_what_records_nothing_adds_no_row(ledger: Ledger, record: Any, key: Any, grants: Any) -> None:
    assert ledger.audit_head() == "" and ledger.verify_audit().whole
    record(key(1), "+profile/web", request_id="r")
    ledger.erase(key(2), "person", "e")
    table = grants((key(3), "+profile/web", 1.0))
    ledger.import_grants(table)
    head = ledger.audit_head()
    record(key(1), "+profile/web", request_id="r")
    ledger.erase(key(2), "person", "e")
    ledger.import_grants(table)
    for wrong in (["+profil/web"], ["-profile/web"]):
        with pytest.raises(ConsentError):
            record(key(1), *wrong, request_id="r")
    assert ledger.audit_head() == head


def test_whoever_holds_a_receipt_finds_its_row(ledger: Ledger, record: Any, key: Any) -> None:
    receipts = [record(key(1), "+profile/web").receipt_id, ledger.erase(key(1), "person", "").receipt_id]
    told = [json.loads(row.detail)["receipt"] for row in ledger.audit_rows(2)]
    assert told == [digest(receipt) for receipt in receipts]


def test_receipts_of_the_same_decision_differ_by_more_than_its_place_and_time(record: Any, key: Any) -> None:
    salts = {record(key(1), "+profile/web").receipt_id[:16] for _ in range(20)}
    assert len(salts) == 20


def test_an_imports_row_says_what_it_brought_and_another_file_gives_another_digest(
    ledger: Ledger, key: Any, grants: Any
) -> None:
    for seconds in (1.0, 2.0):
        ledger.import_grants(grants((key(3), "+profile/", seconds), (key(4), "+profile/web", seconds)))
    first, second = (json.loads(row.detail) for row in ledger.audit_rows(2))
    assert (first["people"], first["changes"]) == (second["people"], second["changes"]) == (2, 2)
    assert first["sha256"] != second["sha256"]


COLUMNS = {"at": 5, "actor": "nobody", "action": "nothing", "sequence": 99, "detail": "{}", "previous": "0" * 64}


@pytest.mark.parametrize("number", [1, 4, 6])
@pytest.mark.parametrize("column", [*COLUMNS, "hash"])
def test_an_edited_row_is_found(six: Ledger, sql: Any, column: str, number: int) -> None:
    value = COLUMNS.get(column, "f" * 64)
    sql(f"UPDATE consent_audit SET {column} = :value WHERE number = :number", value=value, number=number)
    check = six.verify_audit()
    assert not check.whole and check.fault and check.rows == number - 1


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", [*COLUMNS, "hash"])
def test_a_value_that_is_no_text_and_no_number_is_found_as_well(six: Ledger, sql: Any, column: str) -> None:
    sql(f"UPDATE consent_audit SET {column} = :value WHERE number = 4", value=b"\xff")
    assert six.verify_audit().rows == 3 and "row 4" in six.verify_audit().fault


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_removed_row_is_found(six: Ledger, sql: Any, number: int) -> None:
    sql("DELETE FROM consent_audit WHERE number = :number", number=number)
    assert six.verify_audit().rows == number - 1 and six.verify_audit().fault


def test_rows_moved_up_to_close_the_gap_are_found(six: Ledger, sql: Any) -> None:
    sql("DELETE FROM consent_audit WHERE number = 3")
    for number in (4, 5, 6):
        sql("UPDATE consent_audit SET number = :to WHERE number = :number", to=number - 1, number=number)
    sql("UPDATE consent_ledger SET audited = 5")
    assert six.verify_audit().rows == 2


def test_rows_that_changed_places_are_found(six: Ledger, sql: Any) -> None:
    for was, now in ((3, -1), (6, 3), (-1, 6)):
        sql("UPDATE consent_audit SET number = :now WHERE number = :was", now=now, was=was)
    assert six.verify_audit().rows == 2


def rehashed(sql: Any, start: int) -> None:
    """Every hash from a row on, made anew, as somebody does who knows how."""
    columns = "number, at, actor, action, sequence, detail, previous"
    rows = sql("SELECT hash FROM consent_audit WHERE number = :before", before=start - 1)
    last = rows[0][0] if rows else ""
    for found in sql(f"SELECT {columns} FROM consent_audit WHERE number >= :start ORDER BY 1", start=start):
        made = hashlib.sha256(json.dumps((*found[:-1], last), separators=(",", ":")).encode()).hexdigest()
        change = "UPDATE consent_audit SET previous = :last, hash = :made WHERE number = :number"
        sql(change, last=last, made=made, number=found[0])
        last = made
    sql("UPDATE consent_ledger SET audit_head = :last", last=last)


def edit(sql: Any) -> None:
    sql("UPDATE consent_audit SET actor = 'nobody' WHERE number = 2")
    rehashed(sql, 2)


def cut(sql: Any) -> None:
    sql("DELETE FROM consent_audit WHERE number > 2")
    last = sql("SELECT hash FROM consent_audit WHERE number = 2")[0][0]
    sql("UPDATE consent_ledger SET sequence = 2, audited = 2, audit_head = :last", last=last)


@pytest.mark.parametrize("forgery", [edit, cut])
def test_a_log_written_anew_is_found_by_a_head_recorded_elsewhere_alone(
    six: Ledger, sql: Any, forgery: Callable[[Any], None]
) -> None:
    kept, lost = six.audit_head(1), six.audit_head(5)
    assert six.verify_audit([kept, lost, ""]).whole
    forgery(sql)
    assert six.verify_audit([kept]).whole
    check = six.verify_audit([kept, lost])
    assert not check.whole and (check.fault, check.missing) == ("", (lost,))


def test_a_log_cut_off_is_found_by_the_ledger_itself_as_well(six: Ledger, sql: Any) -> None:
    sql("DELETE FROM consent_audit WHERE number = 6")
    assert "cut off" in six.verify_audit().fault
    sql("DELETE FROM consent_audit WHERE number = 5")
    head = sql("SELECT hash FROM consent_audit WHERE number = 4")[0][0]
    sql("UPDATE consent_ledger SET audited = 4, audit_head = :head", head=head)
    assert "up to 4, the ledger stands at 5" in six.verify_audit().fault


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_process_of_the_format_before_that_still_runs_is_refused_its_writes(six: Ledger, sql: Any) -> None:
    with pytest.raises(IntegrityError, match="an older version of Bodega"):
        sql("UPDATE consent_ledger SET sequence = 6")  # all that a change of consent did to this row
    assert six.sequence() == 5 and six.verify_audit().whole


def test_a_head_at_a_sequence_is_the_same_whatever_comes_later(six: Ledger, record: Any, key: Any) -> None:
    by_sequence = {row.sequence: row.hash for row in six.audit_rows(9) if row.sequence}
    expected = ["", by_sequence[1], by_sequence[2], by_sequence[2], by_sequence[4], by_sequence[5]]
    for _ in range(2):
        assert [six.audit_head(sequence) for sequence in range(6)] == expected
        six.audit("publish_forced", "operator", {})
        record(key(1), "+profile/web")
        six.erase(key(2), "person", "")


@pytest.mark.parametrize(
    ("action", "actor", "detail"),
    [
        ("", "operator", {}),
        ("Snapshot promoted", "operator", {}),
        ("snapshot_promoted", "", {}),
        ("snapshot_promoted", " ", {}),
        ("snapshot_promoted", "a\nb", {}),
        ("snapshot_promoted", "\ud800", {}),
        ("snapshot_promoted", "operator", {"key": b"raw"}),
        ("snapshot_promoted", "operator", {"share": float("nan")}),
        ("snapshot_promoted", "operator", {"reason": "x" * 70_000}),
    ],
)
def test_what_is_no_row_is_refused_and_leaves_none(ledger: Ledger, action: str, actor: str, detail: Any) -> None:
    with pytest.raises(ConsentError, match="audit log"):
        ledger.audit(action, actor, detail)
    assert not ledger.audit_rows(1)


def test_whatever_a_detail_holds_is_read_back(ledger: Ledger) -> None:
    detail = {"z": [1, 2.5, None, True], "a": {"b": '\u00fc\u2028\U0001f600 " \\ \0'}, "lone": "\ud800"}
    ledger.audit("snapshot_promoted", "J\u00f6rg", detail)
    (row,) = ledger.audit_rows(1)
    assert json.loads(row.detail) == detail and row.actor == "J\u00f6rg" and ledger.verify_audit().whole
