"""What an erasure takes away, what it leaves, and what comes after it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.consent import Change, Imported, Ledger
from engine.errors import ConsentError


def test_nothing_of_what_was_decided_is_left_and_others_keep_theirs(ledger: Ledger, record: Any, key: Any) -> None:
    for n in (1, 2):
        record(key(n), "+profile/", "+train/web", preference=3)
    others = ledger.standing(key(2)), ledger.changes(key(2), 0, 9)
    before = datetime.now(UTC)
    erasure = ledger.erase(key(1), "guardian", "e")
    assert erasure.sequence == ledger.sequence() == 3
    assert before <= erasure.erased_at <= datetime.now(UTC)
    standing = ledger.standing(key(1))
    assert (standing.granted, standing.grants, standing.preference, standing.known) == (0, (), 0, False)
    assert standing.sequence == standing.erasure == 3
    assert datetime.fromtimestamp(standing.erased_at / 1e6, UTC) - erasure.erased_at < timedelta(microseconds=2)
    assert not ledger.changes(key(1), 0, 9)
    assert (ledger.standing(key(2)), ledger.changes(key(2), 0, 9)) == others


def test_someone_unknown_leaves_and_gets_the_same(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/", preference=3, request_id="r")
    known, unknown = (ledger.erase(key(n), "person", "") for n in (1, 2))
    assert len(known.receipt_id) == len(unknown.receipt_id) and known.receipt_id != unknown.receipt_id
    one, two = (ledger.standing(key(n)) for n in (1, 2))
    assert [getattr(one, name) for name in ("granted", "grants", "preference", "known")] == [
        getattr(two, name) for name in ("granted", "grants", "preference", "known")
    ]
    details = [row.detail for row in ledger.audit_rows(2)]
    assert len(details[0]) == len(details[1])


def test_erasing_again_gives_the_same_receipt_and_moves_the_tombstone_up(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/")
    first = ledger.erase(key(1), "person", "one")
    then = ledger.standing(key(1))
    time.sleep(0.01)
    assert ledger.erase(key(1), "operator", "two") == ledger.erase(key(1), "operator", "") == first
    now = ledger.standing(key(1))
    # What happened between the two wishes is to be forgotten as well.
    assert now.erased_at > then.erased_at and now.erasure == 4 > then.erasure
    assert ledger.standings()[0]["erased_at"].to_pylist() == [now.erased_at]


def test_an_erasure_sent_again_takes_nothing_that_was_granted_since(ledger: Ledger, record: Any, key: Any) -> None:
    answers = [ledger.erase(key(1), "person", name) for name in ("one", "two")]
    record(key(1), "+profile/web")
    before = ledger.standing(key(1)), ledger.sequence()
    assert [ledger.erase(key(1), "person", name) for name in ("one", "two")] == answers
    assert (ledger.standing(key(1)), ledger.sequence()) == before


def test_one_who_returns_starts_anew_and_can_be_erased_anew(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/", "+train/", preference=2)
    first = ledger.erase(key(1), "person", "")
    record(key(1), "+profile/web")
    standing = ledger.standing(key(1))
    assert (standing.granted, standing.preference, standing.known) == (0b11, 0, True)
    assert (standing.sequence, standing.erasure) == (3, 2) and standing.erased_at
    assert [line.sequence for line in ledger.changes(key(1), 0, 9)] == [3]
    again = ledger.erase(key(1), "person", "")
    assert again.receipt_id != first.receipt_id and again.erased_at > first.erased_at
    assert not ledger.standing(key(1)).granted


def test_a_request_of_before_the_erasure_is_refused_and_a_new_one_is_not(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/web", request_id="r")
    ledger.erase(key(1), "person", "")
    for said in ("+profile/web", "-profile/web"):
        with pytest.raises(ConsentError, match="'r' was used before this person was erased"):
            record(key(1), said, request_id="r")
    assert not ledger.standing(key(1)).known and ledger.sequence() == 2
    record(key(1), "+profile/web", request_id="s")
    record(key(2), "+profile/web", request_id="r")
    assert ledger.standing(key(1)).granted == ledger.standing(key(2)).granted == 0b11


def test_old_rows_imported_again_bring_nothing_back(ledger: Ledger, key: Any, grants: Any) -> None:
    people = [key(n) for n in range(4)]
    rows = [(each, said, at) for each in people for said, at in (("+profile/", None), ("+train/web", 5.0))]
    table = grants(*rows, *((each, "-profile/app", at) for each in people for at in (None, 6.0)))
    ledger.import_grants(table)
    ledger.erase(people[0], "person", "")
    head = ledger.audit_head()
    assert ledger.import_grants(table) == Imported(0, 0, table.num_rows)
    other = grants(*rows, notice_version="another")
    ledger.import_grants(other)
    assert not ledger.standing(people[0]).known and not ledger.changes(people[0], 0, 9)
    assert ledger.audit_head() != head, "the others' rows came in"


def test_a_grant_imported_of_after_the_erasure_comes_in(ledger: Ledger, record: Any, key: Any, grants: Any) -> None:
    record(key(1), "+profile/")
    before = time.time()
    time.sleep(0.01)
    ledger.erase(key(1), "person", "")
    time.sleep(0.01)
    after = time.time()
    rows = [(key(1), "+profile/web", before), (key(1), "+profile/app", after), (key(1), "-train/", before)]
    assert ledger.import_grants(grants(*rows)) == Imported(1, 1, 2)
    assert ledger.standing(key(1)).grants == (Change("profile", "app", True),)


def test_an_import_at_the_very_moment_of_the_erasure_is_of_before_it(ledger: Ledger, key: Any, grants: Any) -> None:
    erasure = ledger.erase(key(1), "person", "")
    table = grants((key(1), "+profile/web", 1.0)).to_pylist()
    moments = [erasure.erased_at + timedelta(microseconds=late) for late in (0, 1)]
    import pyarrow as pa

    counts = []
    for moment in moments:
        table[0]["occurred_at"] = moment
        counts.append(ledger.import_grants(pa.Table.from_pylist(table, schema=grants().schema)).changes)
    assert counts == [0, 1]


def test_an_undated_withdrawal_counts_where_there_is_something_to_withdraw(
    ledger: Ledger, record: Any, key: Any, grants: Any
) -> None:
    ledger.erase(key(1), "person", "")
    ledger.erase(key(2), "person", "")
    record(key(1), "+profile/")
    rows = [(key(n), "-profile/web", None) for n in (1, 2)]
    assert ledger.import_grants(grants(*rows)) == Imported(1, 1, 1)
    assert ledger.standing(key(1)).granted == 0b111100
    assert not ledger.standing(key(2)).known and not ledger.changes(key(2), 0, 9)


def test_standings_tell_of_erasures_at_every_sequence(ledger: Ledger, record: Any, key: Any) -> None:
    for n in (1, 2, 3):
        record(key(n), "+profile/web", preference=n)
    ledger.erase(key(2), "person", "")
    ledger.erase(key(4), "person", "")
    record(key(2), "+train/web")
    for at in (None, *range(7)):
        rows = {row["user_key"]: row for row in ledger.standings(at)[0].to_pylist()}
        assert {key(2), key(4)} <= set(rows)
        for n in (2, 4):
            assert rows[key(n)]["erased_at"] == ledger.standing(key(n)).erased_at
            assert rows[key(n)]["granted"] & ledger.vocabulary.groups == rows[key(n)]["preference"] == 0
        assert all(row["erased_at"] == 0 for each, row in rows.items() if each not in (key(2), key(4)))
    assert ledger.standings(6)[0].equals(ledger.standings()[0])


def test_a_clock_that_was_set_back_leaves_nothing_after_the_tombstone(
    ledger: Ledger, record: Any, key: Any, sql: Any
) -> None:
    record(key(1), "+profile/")
    ahead = int(time.time() * 1e6) + 3_600_000_000
    sql("UPDATE consent_changes SET recorded_at = :ahead", ahead=ahead)
    ledger.erase(key(1), "person", "")
    assert ledger.standing(key(1)).erased_at == ahead
    ledger.erase(key(1), "person", "")
    assert ledger.standing(key(1)).erased_at == ahead


def test_one_request_sent_by_many_threads_erases_once(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/")
    with ThreadPoolExecutor(6) as pool:
        answers = set(pool.map(lambda _: ledger.erase(key(1), "person", "same"), range(6)))
    assert len(answers) == 1 and ledger.sequence() == 2


def test_what_cannot_be_erased_is_refused(ledger: Ledger, key: Any) -> None:
    with pytest.raises(ConsentError, match="16 bytes"):
        ledger.erase(b"short", "person", "")
    with pytest.raises(ConsentError, match="Unicode"):
        ledger.erase(key(1), "person", "\ud800")
    with pytest.raises(ConsentError, match="NUL"):
        ledger.erase(key(1), "person", "a\0")
    assert ledger.sequence() == 0
