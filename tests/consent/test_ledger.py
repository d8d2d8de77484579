from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.consent import Change, Ledger, Vocabulary
from engine.errors import ConsentError, LedgerUnavailable
from engine.schema import STANDINGS


def test_a_stranger_allows_nothing(ledger: Ledger, key: Any) -> None:
    standing = ledger.standing(key(1))
    assert (standing.granted, standing.grants, standing.preference, standing.sequence) == (0, (), 0, 0)
    assert not standing.known


def test_an_empty_ledger_has_no_standings(ledger: Ledger) -> None:
    for at in (None, 0):
        table, sequence = ledger.standings(at)
        assert sequence == 0 and table.num_rows == 0 and table.schema == STANDINGS


def test_a_grant_is_read_at_once_and_by_name(ledger: Ledger, record: Any, key: Any, vocabulary: Vocabulary) -> None:
    said = record(key(1), "+profile/web", "+sensitive/", preference=3)
    standing = ledger.standing(key(1))
    assert standing.known and standing.sequence == said.sequence == ledger.sequence() == 1
    assert standing.granted == vocabulary.mask("profile", "web") | vocabulary.mask("sensitive")
    assert standing.preference == 3
    assert standing.grants == (
        Change("profile", "web", True),
        Change("sensitive", "app", True),
        Change("sensitive", "store", True),
        Change("sensitive", "web", True),
    )
    assert not ledger.standing(key(2)).known


def test_a_withdrawal_narrows_at_once(ledger: Ledger, record: Any, key: Any, names: Any) -> None:
    record(key(1), "+profile/", "+train/")
    record(key(1), "-profile/app")
    assert names(ledger.standing(key(1)).grants) == {
        "profile/store", "profile/web", "train/app", "train/store", "train/web",
    }  # fmt: skip
    record(key(1), "-profile/", "-train/")
    standing = ledger.standing(key(1))
    assert standing.granted == 0 and standing.known


@pytest.mark.parametrize(
    ("call", "held"),
    [
        (["+profile/web", "-profile/web"], set()),
        (["-profile/web", "+profile/web"], set()),
        (["-profile/", "+profile/"], set()),
        (["-profile/web", "+profile/"], {"profile/app", "profile/store"}),
        (["+profile/", "-profile/web"], {"profile/app", "profile/store"}),
        (["+profile/web", "-profile/"], set()),
        (["-profile/", "+profile/web"], {"profile/web"}),
        (["-profile/", "+profile/web", "-profile/web"], set()),
        (["-train/", "+profile/web"], {"profile/web"}),
    ],
)
def test_a_withdrawal_wins_a_tie(
    call: list[str], held: set[str], ledger: Ledger, record: Any, key: Any, names: Any
) -> None:
    record(key(1), *call)
    assert names(ledger.standing(key(1)).grants) == held


def test_a_preference_alone_is_recorded_and_can_be_unset(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), preference=1)
    assert ledger.standing(key(1)).preference == 1 and ledger.standing(key(1)).known
    record(key(1), "+profile/web")
    assert ledger.standing(key(1)).preference == 1
    record(key(1), preference=0)
    assert ledger.standing(key(1)).preference == 0
    assert ledger.standings()[0].to_pydict()["preference"] == [0]
    assert ledger.standings(at=2)[0].to_pydict()["preference"] == [1]


def test_a_repeated_request_gets_the_first_answer_and_adds_nothing(ledger: Ledger, record: Any, key: Any) -> None:
    first = record(key(1), "+profile/web", "+train/", preference=4, request_id="r")
    record(key(1), "-profile/web", request_id="s")
    assert record(key(1), "+train/", "+profile/web", preference=4, request_id="r") == first
    assert ledger.sequence() == 2
    assert not any(grant.purpose == "profile" for grant in ledger.standing(key(1)).grants)


def test_one_request_id_serves_two_people(ledger: Ledger, record: Any, key: Any) -> None:
    assert record(key(1), "+profile/web", request_id="r") != record(key(2), "+profile/web", request_id="r")
    assert ledger.standing(key(2)).known


def test_a_request_id_used_for_something_else_is_refused_rather_than_acknowledged(
    ledger: Ledger, record: Any, key: Any
) -> None:
    record(key(1), "+profile/web", request_id="r")
    for other in (["-profile/web"], ["+profile/web", "+train/web"]):
        with pytest.raises(ConsentError, match="'r' was used before"):
            record(key(1), *other, request_id="r")
    assert ledger.sequence() == 1


def test_each_call_has_a_receipt_of_its_own(record: Any, key: Any) -> None:
    receipts = {record(key(n % 3), "+profile/web").receipt_id for n in range(7)}
    assert len(receipts) == 7


def test_an_unknown_purpose_names_the_near_miss_and_nothing_is_recorded(ledger: Ledger, record: Any, key: Any) -> None:
    with pytest.raises(ConsentError, match="Did you mean 'measure'"):
        record(key(1), "+profile/web", "+mesure/web")
    assert ledger.sequence() == 0 and not ledger.standing(key(1)).known


@pytest.mark.parametrize("preference", [-1, 5])
def test_a_preference_off_the_dial_is_refused(preference: int, record: Any, key: Any) -> None:
    with pytest.raises(ConsentError, match="preference"):
        record(key(1), preference=preference)


def test_what_cannot_be_recorded_is_refused(ledger: Ledger, key: Any) -> None:
    change = [Change("profile", "web", True)]
    with pytest.raises(ConsentError, match="nothing to record"):
        ledger.record(key(1), [], None, "", "", "", None)
    with pytest.raises(ConsentError, match="time zone"):
        ledger.record(key(1), change, None, "", "", "", datetime(2026, 1, 1))
    with pytest.raises(ConsentError, match="Unicode"):
        ledger.record(key(1), change, None, "\ud800", "", "", None)
    for place in range(3):
        texts = ["a", "b", "c"]
        texts[place] += "\0"
        with pytest.raises(ConsentError, match="NUL"):
            ledger.record(key(1), change, None, *texts, None)
    for short in (b"", b"x" * 15, b"x" * 17):
        with pytest.raises(ConsentError, match=f"16 bytes, found {len(short)}"):
            ledger.record(short, change, None, "", "", "", None)
        with pytest.raises(ConsentError, match="16 bytes"):
            ledger.standing(short)


def test_the_history_says_who_when_and_on_which_notice(ledger: Ledger, key: Any) -> None:
    when = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
    before = datetime.now(UTC)
    said = ledger.record(key(1), [Change("train", "", True)], 2, "v7", "guardian", "r", when)
    one, two = ledger.changes(key(1), after=0, limit=10)
    assert (one.change, one.preference) == (Change("train", "", True), None)
    assert (two.change, two.preference) == (None, 2)
    for line in (one, two):
        assert (line.sequence, line.receipt_id) == (said.sequence, said.receipt_id)
        assert (line.notice_version, line.actor, line.request_id) == ("v7", "guardian", "r")
        assert line.occurred_at == when and line.occurred_at.tzinfo is UTC
        assert before - timedelta(seconds=1) < line.recorded_at <= datetime.now(UTC) and not line.imported


def test_pages_of_the_history_hold_whole_calls_and_lose_nothing(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(2), "+profile/web")
    record(key(1), "+profile/web", "+profile/app", "+profile/store", "+train/web", "+train/app")
    record(key(1), "-profile/web")
    record(key(1), "-profile/app", "-train/app")
    for limit in (1, 2, 3, 4, 100):
        pages, after = [], 0
        while page := ledger.changes(key(1), after, limit):
            assert len(page) <= limit or len({line.sequence for line in page}) == 1
            pages += page
            after = page[-1].sequence
        assert [line.sequence for line in pages] == [2] * 5 + [3] + [4] * 2
    with pytest.raises(ConsentError, match="at least 1"):
        ledger.changes(key(1), 0, 0)


def test_standings_are_sorted_and_agree_with_each_look_up(ledger: Ledger, record: Any, key: Any) -> None:
    for n in range(23):
        record(key(n), "+profile/web", *(["+train/", "-train/app"] if n % 2 else []), preference=n % 5)
    record(key(4), "-profile/")
    table, sequence = ledger.standings()
    assert sequence == 24 and table.schema == STANDINGS
    keys = table.column("user_key").to_pylist()
    assert keys == sorted(key(n) for n in range(23))
    for row in table.to_pylist():
        standing = ledger.standing(row["user_key"])
        assert (row["granted"], row["preference"]) == (standing.granted, standing.preference)


def test_standings_of_a_sequence_that_never_was_are_refused(ledger: Ledger, record: Any, key: Any) -> None:
    record(key(1), "+profile/web")
    for at in (-1, 2):
        with pytest.raises(ConsentError, match=f"stands at 1, asked was {at}"):
            ledger.standings(at)


def test_a_source_added_later_is_granted_by_nobody(url: str, ledger: Ledger, record: Any, key: Any, names: Any) -> None:
    record(key(1), "+profile/")
    grown = Ledger.open(url, Vocabulary(sources=("partner", "web", "app", "store")))
    standing = grown.standing(key(1))
    assert names(standing.grants) == {"profile/web", "profile/app", "profile/store"}
    assert standing.granted == grown.vocabulary.groups & ~grown.vocabulary.mask("profile", "partner")
    assert grown.standings(1)[0].equals(grown.standings()[0])
    grown.record(key(1), [Change("profile", "partner", True)], None, "", "", "", None)
    record(key(1), "-profile/")
    assert grown.standing(key(1)).granted == 0 == grown.standings(3)[0].column("granted")[0].as_py()
    grown.close()


def test_a_retired_source_allows_nothing_and_comes_back_with_its_grants(
    url: str, ledger: Ledger, record: Any, key: Any
) -> None:
    record(key(1), "+profile/store", "+profile/web")
    smaller = Ledger.open(url, Vocabulary(sources=("web",)))
    assert smaller.standing(key(1)).granted == 0b11
    assert smaller.standings(1)[0].column("granted").to_pylist() == [0b11]
    smaller.close()
    assert ledger.standing(key(1)).granted == 0b110011


def test_the_file_is_for_its_owner_alone(tmp_path: Path, vocabulary: Vocabulary, key: Any) -> None:
    old = os.umask(0)
    try:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/new/folder/consent.db", vocabulary)
        ledger.record(key(1), [Change("profile", "web", True)], None, "", "", "", None)
        files = list((tmp_path / "new/folder").iterdir())
        assert {file.name for file in files} >= {"consent.db", "consent.db-wal"}
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        ledger.close()
    finally:
        os.umask(old)


def test_what_was_recorded_is_there_when_opened_again(
    url: str, ledger: Ledger, record: Any, key: Any, vocabulary: Vocabulary
) -> None:
    record(key(1), "+profile/web")
    ledger.close()
    again = Ledger.open(url, vocabulary)
    assert again.standing(key(1)).granted == 0b11 and again.sequence() == 1
    again.close()


def test_a_closed_ledger_is_unavailable(ledger: Ledger, record: Any, key: Any, grants: Any) -> None:
    ledger.standing(key(1))
    ledger.close()
    ledger.close()
    for use in (
        lambda: ledger.standing(key(1)),
        ledger.sequence,
        ledger.standings,
        lambda: ledger.changes(key(1), 0, 1),
        lambda: record(key(1), "+profile/web"),
        lambda: ledger.import_grants(grants((key(1), "+profile/web", 1))),
    ):
        with pytest.raises(LedgerUnavailable, match="closed"):
            use()


@pytest.mark.parametrize(
    "address",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:hidden@h/db",
        "postgresql+psycopg2://u:hidden@h/db",
        "postgresql://u:x@hidden@h/db",
        "postgresql://u:hidden@h:port/db",
        "nonsense",
    ],
)
def test_an_address_of_another_kind_is_refused_with_both_forms_and_without_its_password(
    address: str, vocabulary: Vocabulary
) -> None:
    with pytest.raises(LedgerUnavailable, match=r"sqlite:////absolute.*postgresql://user@host") as caught:
        Ledger.open(address, vocabulary)
    assert "hidden" not in str(caught.value)


def test_a_ledger_of_a_newer_format_is_refused(url: str, ledger: Ledger, vocabulary: Vocabulary, sql: Any) -> None:
    sql("UPDATE consent_ledger SET format = 99")
    with pytest.raises(LedgerUnavailable, match="format 99"):
        Ledger.open(url, vocabulary)


@pytest.mark.benchmark
def test_a_look_up_takes_less_than_a_tenth_of_a_millisecond_among_many(ledger: Ledger) -> None:
    people, rng = 200_000, np.random.default_rng(5)
    keys = rng.integers(0, 256, (people, 16), dtype=np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), people, [None, pa.py_buffer(keys.tobytes())])
    same = {"purpose": "profile", "source": "", "granted": True, "notice_version": "n", "actor": "person"}
    table = pa.table({"user_key": column} | {name: pa.repeat(value, people) for name, value in same.items()})
    table = table.append_column("occurred_at", pa.repeat(pa.scalar(0, pa.timestamp("us", tz="UTC")), people))
    ledger.import_grants(table)
    started = time.perf_counter()
    assert ledger.standings()[0].num_rows == people
    bulk = time.perf_counter() - started
    times = []
    for row in keys[rng.integers(0, people, 20_000)]:
        person = row.tobytes()
        started = time.perf_counter()
        ledger.standing(person)
        times.append(time.perf_counter() - started)
    median, slow = statistics.median(times) * 1e6, statistics.quantiles(times, n=100)[98] * 1e6
    each = bulk / people * 1e6
    sys.stdout.write(
        f"standing: median {median:.0f} us, 99th percentile {slow:.0f} us; standings: {each:.1f} us each\n"
    )
    assert median < 100


def test_a_ledger_is_tied_to_the_key_that_first_used_it(url: str, vocabulary: Vocabulary) -> None:
    with contextlib.closing(Ledger.open(url, vocabulary)) as ledger:
        ledger.bind("aaaaaaaa")
    with contextlib.closing(Ledger.open(url, vocabulary)) as ledger:
        ledger.bind("aaaaaaaa")
        with pytest.raises(LedgerUnavailable, match=r"aaaaaaaa, not by bbbbbbbb.*stable.key"):
            ledger.bind("bbbbbbbb")
