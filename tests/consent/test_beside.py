"""What somebody who may write to the database changes beside the audit log is found, whichever table it is in."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from engine.consent import Ledger, Vocabulary, beside, looking
from engine.consent.beside import Beside
from engine.consent.looking import LedgerView


@pytest.fixture
def held(ledger: Ledger, record: Any, key: Any, grants: Any) -> Ledger:
    """Calls, imports and erasures: of 9 people one erased for good, one who returned, one unknown until the erasure."""
    record(key(1), "+profile/", "-profile/store", preference=3, request_id="r1")  # 1
    record(key(2), "+profile/web")  # 2
    ledger.import_grants(
        grants((key(3), "+profile/", 1.0), (key(3), "-profile/app", 2.0), (key(4), "+train/web", 2.0))
    )  # 3, 4
    record(key(1), "-profile/web", request_id='réponse "1"')  # 5
    record(key(5), preference=2)  # 6
    ledger.erase(key(2), "guardian", "e1")  # 7
    record(key(2), "+profile/app")  # 8
    ledger.erase(key(6), "person", "")  # 9
    ledger.erase(key(6), "person", "")  # 10
    ledger.import_grants(
        grants((key(7), "+profile/web", 3.0), (key(8), "+profile/web", 3.0), (key(9), "-profile/", None))
    )  # 11-13
    record(key(4), "-train/web")  # 14
    ledger.erase(key(7), "person", "")  # 15
    record(key(5), "+profile/web", "+sensitive/web")  # 16
    return ledger


@pytest.fixture
def look(url: str, vocabulary: Vocabulary) -> Callable[[], Beside]:
    def examine() -> Beside:
        with closing(LedgerView.open(url, vocabulary)) as view:
            found = view.examine()
            assert found.chain.whole and found.beside is not None
            return found.beside

    return examine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A few rows and places at a time, so that histories and imports lie across the seams."""
    rows, window = request.param
    monkeypatch.setattr(beside, "_ROWS", rows)
    monkeypatch.setattr(beside, "_WINDOW", window)
    yield


def test_an_empty_ledger_agrees_with_its_log(ledger: Ledger, look: Any) -> None:
    assert look() == Beside()


@pytest.mark.parametrize("small", [(1 << 15, 1 << 22), (1, 1), (2, 3), (3, 12)], indirect=True)
def test_what_the_ledger_wrote_itself_agrees_and_is_counted(held: Ledger, look: Any, small: None) -> None:
    found = look()
    assert found.sound and found.fault == ""
    assert (found.people, found.changes, found.erasures) == (9, 14, 4)
    assert found.receipts == 6 + 4, "six calls that are there, and every tombstone"
    assert (found.imports, found.imports_thinned) == (1, 1)
    assert found.gone == 2, "a call of one who was erased, and a place of an import"


HERE = "user_key = (SELECT user_key FROM consent_changes WHERE sequence = 1 AND position = 0)"
TAMPERED = {
    # the projection
    "UPDATE consent_current SET granted = 'profile/web' WHERE sequence = 16": "at 16: what a standing grants",
    "UPDATE consent_current SET granted = 'sensitive/web profile/web' WHERE sequence = 16": "at 16: what a standing grants",
    "UPDATE consent_current SET granted = 'profile/web retired/web sensitive/web' WHERE sequence = 16": "at 16: what a standing",
    "UPDATE consent_current SET granted = 'profile' WHERE sequence = 16": "at 0: something there is of a kind",
    "UPDATE consent_current SET preference = 4 WHERE sequence = 5": "at 5: a standing's preference",
    "UPDATE consent_current SET sequence = 6 WHERE sequence = 5": "at 6: a standing's place",
    "UPDATE consent_current SET erased_at = 1 WHERE sequence = 4": "at 4: a standing's time of erasure",
    "UPDATE consent_current SET erased_at = 0, erasure = 0 WHERE sequence = 8": "at 8: a standing's time of erasure",
    "DELETE FROM consent_current WHERE sequence = 4": "at 4: a person has rows and no standing",
    "DELETE FROM consent_current WHERE sequence = 10": "at 10: a person has rows and no standing",
    "INSERT INTO consent_current (user_key, granted, preference, sequence) SELECT receipt_key, 'profile/web', 0, 16 FROM "
    "(SELECT CAST('0123456789abcdef' AS {blob}) AS receipt_key) AS made": "at 16: a standing is of somebody",
    # histories
    "UPDATE consent_changes SET granted = NOT granted WHERE sequence = 5": "at 5: a row is not what its receipt",
    "UPDATE consent_changes SET notice_version = 'n' WHERE sequence = 1": "at 1: a row is not what its receipt",
    "UPDATE consent_changes SET notice_version = 'n' WHERE sequence = 1 AND position = 2": "at 1: a row is not what its receipt",
    "UPDATE consent_changes SET occurred_at = 5 WHERE sequence = 8": "at 8: a row is not what its receipt",
    "UPDATE consent_changes SET recorded_at = recorded_at - 1 WHERE sequence = 8": "at 8: a row was recorded at another time",
    "UPDATE consent_changes SET actor = 'operator' WHERE sequence = 14": "at 14: a row is not what its receipt",
    "UPDATE consent_changes SET covers = 'web' WHERE sequence = 1 AND position = 1": "at 1: a row is not what its receipt",
    "UPDATE consent_changes SET receipt_id = 'ff' WHERE sequence = 14": "at 14: a receipt is not the one",
    "UPDATE consent_changes SET receipt_id = NULL WHERE sequence = 14": "at 14: a receipt is not the one",
    "UPDATE consent_changes SET imported = NOT imported WHERE sequence = 14": "at 14: a row and the log disagree",
    "UPDATE consent_changes SET imported = NOT imported WHERE sequence = 4": "at 3: an import's rows are not those",
    "UPDATE consent_changes SET request_id = NULL WHERE sequence = 5": "at 5: a row is not what its receipt",
    "UPDATE consent_changes SET source = 'store' WHERE sequence = 4": "at 3: an import's rows are not those",
    "UPDATE consent_changes SET occurred_at = 9 WHERE sequence = 4 AND position = 1": "at 3: an import's rows are not those",
    "DELETE FROM consent_changes WHERE sequence = 4 AND position = 1": "at 3: an import has another number of rows",
    "DELETE FROM consent_changes WHERE sequence = 1 AND position = 2": "at 1: a call has another number of lines",
    "DELETE FROM consent_changes WHERE sequence = 16": "at 16: the log tells of a change that is not there",
    "DELETE FROM consent_changes WHERE sequence = 14": "at 14: a standing's place is not what",  # an erasure came after it
    f"UPDATE consent_changes SET {HERE} WHERE sequence = 16": "at 5: a row is not what its receipt",
    "UPDATE consent_changes SET sequence = 17 WHERE sequence = 16": "at 16: a row lies beyond the ledger",
    "UPDATE consent_changes SET sequence = 9 WHERE sequence = 8": "at 8: a standing's place is not",
    # tombstones
    "DELETE FROM consent_tombstones WHERE sequence = 9": "at 9: the log tells of an erasure that has no tombstone",
    "UPDATE consent_tombstones SET erased_at = erased_at + 1 WHERE sequence = 7": "at 7: a tombstone is not what its receipt",
    "UPDATE consent_tombstones SET receipt_id = 'ff' WHERE sequence = 10": "at 10: a tombstone is not the one",
    "UPDATE consent_tombstones SET actor = 'operator' WHERE sequence = 10": "at 10: a tombstone names another actor",
    "INSERT INTO consent_tombstones SELECT user_key, 2, erased_at, receipt_id, actor, request_id FROM consent_tombstones WHERE "
    "sequence = 7": "at 2: a tombstone",
    "UPDATE consent_tombstones SET sequence = 99 WHERE sequence = 15": "at 15: the log tells of an erasure that has no tombstone",
}  # fmt: skip


@pytest.mark.parametrize("statement", TAMPERED)
def test_what_was_changed_beside_the_log_is_found_and_its_place_named(
    held: Ledger, look: Any, sql: Any, store: str, key: Any, statement: str
) -> None:
    sql(statement.replace("{blob}", "BYTEA" if store == "postgresql" else "BLOB"))
    found = look()
    place, what = TAMPERED[statement].split(": ")
    assert not found.sound and found.fault.startswith(f"{place}: ") and found.faults == sum(found.kinds.values())
    assert any(kind.startswith(what) for kind in found.kinds), found.kinds
    assert not any(key(number).hex() in repr(found) for number in range(1, 10)), "a fault names nobody"


@pytest.mark.parametrize("small", [(1, 1), (2, 3)], indirect=True)
def test_a_fault_is_found_across_the_seams_as_well(held: Ledger, look: Any, sql: Any, small: None) -> None:
    sql("UPDATE consent_changes SET occurred_at = 9 WHERE sequence = 4")
    assert "at 3: an import's rows are not those" in look().fault
    sql("UPDATE consent_current SET preference = 4 WHERE sequence = 5")
    assert look().faults == 2


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", ["sequence", "actor", "recorded_at", "purpose", "user_key"])
def test_a_value_of_another_type_is_a_fault_and_no_crash(held: Ledger, look: Any, sql: Any, column: str) -> None:
    sql(
        f"UPDATE consent_changes SET {column} = :value WHERE sequence = 5",
        value=b"\xff" if column != "user_key" else b"short",
    )
    assert not look().sound


@pytest.mark.parametrize("seed", range(3))
def test_after_any_history_all_agrees_and_any_edit_of_a_standing_is_found(
    ledger: Ledger, record: Any, key: Any, grants: Any, look: Any, sql: Any, seed: int
) -> None:
    chance = random.Random(seed)
    pairs = [
        f"{purpose}/{source}" for purpose in ("profile", "train", "measure") for source in ("", "web", "app", "store")
    ]
    for turn in range(120):
        who = key(chance.randrange(12))
        match chance.randrange(10):
            case 0:
                ledger.erase(who, "person", "")
            case 1 | 2:
                rows = [
                    (
                        key(chance.randrange(12)),
                        chance.choice("+-") + chance.choice(pairs),
                        chance.choice((None, 1.0, 9.0)),
                    )
                ]
                ledger.import_grants(grants(*rows, (who, f"+{chance.choice(pairs)}", float(turn))))
            case _:
                said = [chance.choice("+-") + each for each in chance.sample(pairs, chance.randrange(1, 4))]
                record(
                    who, *said, preference=chance.choice((None, None, 0, 3)), request_id=chance.choice(("", f"r{turn}"))
                )
    found = look()
    assert found.sound, found.fault
    assert found.changes == sql("SELECT count(*) FROM consent_changes")[0][0]
    for place, state in sql("SELECT sequence, granted FROM consent_current"):
        other = "profile/web" if state != "profile/web" else ""
        sql("UPDATE consent_current SET granted = :other WHERE sequence = :place", other=other, place=place)
        assert f"at {place}: what a standing grants" in look().fault
        sql("UPDATE consent_current SET granted = :state WHERE sequence = :place", state=state, place=place)


def test_a_broken_log_is_not_held_against_anything(held: Ledger, url: str, vocabulary: Vocabulary, sql: Any) -> None:
    sql("UPDATE consent_audit SET actor = 'nobody' WHERE number = 3")
    with closing(looking.LedgerView.open(url, vocabulary)) as view:
        found = view.examine(last=2)
    assert found.chain.rows == 2 and found.beside is None and len(found.rows) == 2


def test_the_digest_of_an_import_is_that_of_its_rows(held: Ledger, sql: Any) -> None:
    """The figure that the log holds is not the checker's own invention."""
    from engine.consent.contents import import_text

    rows = [
        tuple(row) for row in sql("SELECT * FROM consent_changes WHERE sequence IN (3, 4) ORDER BY sequence, position")
    ]
    names = [
        row[0] for row in sql("SELECT detail FROM consent_audit WHERE action = 'consent_imported' ORDER BY number")
    ]
    assert hashlib.sha256(import_text(rows)).hexdigest() in names[0]
