"""A ledger that is looked at stays what it is; and what a person allowed at any moment of the past, as far as it can be known."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.consent import Ledger, Vocabulary
from engine.consent.changes import Held, micros
from engine.consent.looking import LedgerView
from engine.errors import ConsentError, LedgerUnavailable


@pytest.fixture
def view(ledger: Ledger, url: str, vocabulary: Vocabulary) -> Iterator[LedgerView]:
    with closing(LedgerView.open(url, vocabulary)) as opened:
        yield opened


def test_the_past_of_everybody_at_every_moment_is_what_the_ledger_said_then(
    ledger: Ledger, view: LedgerView, record: Any, key: Any, grants: Any
) -> None:
    chance, people = random.Random(11), [key(number) for number in range(5)]
    pairs = [f"{purpose}/{source}" for purpose in ("profile", "train") for source in ("", "web", "app", "store")]
    then: dict[int, dict[bytes, Held]] = {}
    for turn in range(60):
        who = chance.choice(people)
        if turn % 7 == 3:
            ledger.import_grants(grants((who, chance.choice("+-") + chance.choice(pairs), float(turn))))
        else:
            record(who, chance.choice("+-") + chance.choice(pairs), preference=chance.choice((None, None, 2, 4)))
        standings = {each: ledger.standing(each) for each in people}
        then[ledger.sequence()] = {
            each: Held(each, s.granted, s.preference, s.sequence, s.erased_at, s.erasure)
            for each, s in standings.items()
        }
    for sequence, everybody in then.items():
        for person, held in everybody.items():
            past = view.standing_at(person, sequence)
            assert past.held == held
            if held.sequence:  # a reply knows the person's own last change alone
                assert view.standing_at(person, held.sequence).held == held
            later = [at for at in sorted(then) if at > sequence and then[at][person].sequence == at]
            assert past.next == (later[0] if later else 0) and (past.next_at is None) == (not later)


def test_somebody_unknown_allowed_nothing(view: LedgerView, record: Any, key: Any) -> None:
    record(key(1), "+profile/web")
    assert view.standing_at(key(2), 1).held == view.standing_at(key(2), 0).held == Held(key(2), 0, 0, 0, 0, 0)
    early = view.standing_at(key(1), 0)
    assert (early.held, early.next) == (Held(key(1), 0, 0, 0, 0, 0), 1)


def test_an_erased_past_is_gone_but_for_the_moments_of_the_erasures(
    ledger: Ledger, view: LedgerView, record: Any, key: Any
) -> None:
    record(key(1), "+profile/web")  # 1
    first = ledger.erase(key(1), "person", "")  # 2
    record(key(1), "+profile/app")  # 3
    second = ledger.erase(key(1), "person", "")  # 4
    record(key(1), "+profile/store", preference=3)  # 5
    for gone, erasure in ((1, 2), (3, 4)):
        with pytest.raises(ConsentError, match=f"at {gone} was erased at {erasure}") as caught:
            view.standing_at(key(1), gone)
        assert key(1).hex() not in str(caught.value)
    assert view.standing_at(key(1), 0).next == 2
    assert view.standing_at(key(1), 2).held == Held(key(1), 0, 0, 2, micros(first.erased_at), 2)
    assert view.standing_at(key(1), 4).held == Held(key(1), 0, 0, 4, micros(second.erased_at), 4)
    now = view.standing_at(key(1), 5).held
    assert (now.granted, now.preference, now.erasure) == (ledger.standing(key(1)).granted, 3, 4)
    assert view.erasures(key(1)) == [(2, first.erased_at), (4, second.erased_at)]
    assert view.erased_since(0) == (1, first.erased_at) and view.erased_since(4) == (0, None)


@pytest.mark.parametrize("sequence", [-1, 2])
def test_a_sequence_that_never_was_is_refused(view: LedgerView, record: Any, key: Any, sequence: int) -> None:
    record(key(1), "+profile/web")
    with pytest.raises(ConsentError, match="stands at 1, asked was"):
        view.standing_at(key(1), sequence)


def test_it_shows_what_was_recorded_while_it_is_open(ledger: Ledger, view: LedgerView, record: Any, key: Any) -> None:
    for number in range(1, 4):
        record(key(number), "+profile/web")
        assert view.sequence() == number and view.standing(key(number)).known
    assert view.amount().people == 3 and view.amount().granting == {"profile": 3} and view.amount().bytes > 0


def test_the_key_of_its_people_is_checked_and_never_set(ledger: Ledger, view: LedgerView) -> None:
    view.check_key("aaaaaaaa")
    assert view.stable_key() == ""
    ledger.bind("aaaaaaaa")
    view.check_key("aaaaaaaa")
    with pytest.raises(LedgerUnavailable, match="stable key aaaaaaaa, not by bbbbbbbb"):
        view.check_key("bbbbbbbb")


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_nothing_can_be_recorded_through_it(view: LedgerView, ledger: Ledger, key: Any) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be written"):
        view.erase(key(1), "person", "")
    assert ledger.sequence() == 0


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("formed", [1, 2, 99])
def test_a_file_of_another_format_stays_byte_for_byte_what_it_is(
    tmp_path: Path, url: str, vocabulary: Vocabulary, formed: int, store: str, key: Any
) -> None:
    file = tmp_path / "consent.db"
    if formed == 1:
        with closing(sqlite3.connect(file)) as database:
            database.executescript((Path(__file__).parent / "format_1.sql").read_text())
    else:
        with closing(Ledger.open(url, vocabulary)) as ledger:
            ledger.erase(key(1), "person", "")
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("DROP INDEX consent_moves")  # which 2 did not have
            database.execute("UPDATE consent_ledger SET format = ?", (formed,))
    before = file.read_bytes()
    if formed == 2:
        with closing(LedgerView.open(url, vocabulary)) as view:
            found = view.examine()
            assert found.chain.whole and found.beside is not None and found.beside.sound and found.beside.erasures == 1
    else:
        with pytest.raises(LedgerUnavailable, match="has format") as caught:
            LedgerView.open(url, vocabulary)
        assert caught.value.remedy
    assert file.read_bytes() == before


def test_where_there_is_none_none_is_made(new_url: Any, vocabulary: Vocabulary, store: str, tmp_path: Path) -> None:
    url = new_url() if store == "postgresql" else f"sqlite:///{tmp_path}/consent.db"
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="There is no consent ledger"):
            LedgerView.open(url, vocabulary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_writer_that_was_killed_leaves_a_log_that_is_read_and_stays(
    tmp_path: Path, url: str, ledger: Ledger, record: Any, key: Any, vocabulary: Vocabulary
) -> None:
    record(key(1), "+profile/web")
    copy = tmp_path / "copy"
    copy.mkdir()
    for end in ("", "-wal"):  # as kill -9 leaves them: the change is in the second file alone
        (copy / f"consent.db{end}").write_bytes((tmp_path / f"consent.db{end}").read_bytes())
    files = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert len(files["consent.db-wal"]) > 0
    with closing(LedgerView.open(f"sqlite:///{copy}/consent.db", vocabulary)) as view:
        assert view.standing(key(1)).known and view.examine().chain.whole
    assert {name: (copy / name).read_bytes() for name in files} == files
