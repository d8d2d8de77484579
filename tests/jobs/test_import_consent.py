"""A team's grants come in whole or not at all, by stable key, and nothing is read into them."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.consent import Change, Ledger, Standing, Vocabulary
from engine.errors import ConsentError, ContractError, DataError
from engine.identity import UserKeys
from jobs.import_consent import import_declared, import_file
from jobs.night import opened_ledger
from jobs.settings import ConsentSettings, Settings, StoreSettings
from tests.postgres_server import PostgresServer

SOURCES = Vocabulary(sources=("web", "store"))


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return Settings(
        out=str(tmp_path),
        store=StoreSettings(ledger=f"sqlite:///{tmp_path}/consent.db", keys=str(tmp_path / "keys"), make_keys=True),
        consent=ConsentSettings(sources=["web", "store"]),
    )


def grants(folder: Path, **columns: Any) -> str:
    rows = len(next(iter(columns.values())))
    plain = {"user_id": ["ann"] * rows, "purpose": ["profile"] * rows, "granted": [True] * rows}
    pq.write_table(
        pa.table({name: each for name, each in (plain | columns).items() if each is not None}), folder / "g.pq"
    )
    return str(folder / "g.pq")


def standing(chosen: Settings, user_id: str) -> Standing:
    key = UserKeys.load(chosen.store.keys, create=True).stable.derive(user_id)
    with contextlib.closing(Ledger.open(chosen.store.ledger, SOURCES)) as ledger:
        return ledger.standing(key)


def test_grants_are_recorded_by_person_and_source(chosen: Settings, tmp_path: Path) -> None:
    path = grants(tmp_path, user_id=["ann", "bob", "ann"], source=["web", None, "store"], granted=[True, True, False])
    done = import_file(chosen, path)
    assert (done.people, done.changes, done.skipped) == (2, 3, 0)
    assert standing(chosen, "ann").granted == SOURCES.mask("profile", "web")
    assert standing(chosen, "bob").granted == SOURCES.mask("profile", "")
    assert not standing(chosen, "eve").known
    assert import_file(chosen, path).skipped == 3


def test_a_ledger_on_postgresql_serves_the_night_as_a_file_does(
    chosen: Settings, tmp_path: Path, postgres: PostgresServer
) -> None:
    path = grants(tmp_path, user_id=["ann", "bob", "ann"], source=["web", None, "store"], granted=[True, True, False])
    assert import_file(chosen, path).changes == 3
    with opened_ledger(chosen) as (ledger, _):
        in_file = ledger.standings()[0]
    chosen.store.ledger = postgres.url(postgres.schema())
    assert import_file(chosen, path).changes == 3
    with opened_ledger(chosen) as (ledger, keys):
        assert ledger.standings()[0].equals(in_file) and ledger.standings(2)[0].equals(in_file)
        ledger.record(keys.stable.derive("ann"), [Change("profile", "web", False)], None, "n", "person", "", None)
        assert ledger.standings(2)[0].equals(in_file) and not ledger.standings()[0].equals(in_file)


def test_encodings_are_no_fault_and_an_empty_file_changes_nothing(chosen: Settings, tmp_path: Path) -> None:
    path = grants(
        tmp_path,
        user_id=pa.array(["ann"]).dictionary_encode(),
        purpose=pa.array(["profile"], pa.large_string()),
        source=pa.nulls(1),
        occurred_at=pa.array([dt.datetime(2026, 1, 1, 1, 2, 3)], pa.timestamp("ns")),
    )
    assert import_file(chosen, path).changes == 1
    nothing = grants(
        tmp_path, user_id=pa.array([], pa.string()), purpose=pa.array([], pa.string()), granted=pa.array([], pa.bool_())
    )
    assert import_file(chosen, nothing).changes == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"user_id": [1]}, "column 'user_id': expected string, found int64"),
        ({"granted": [1]}, "column 'granted': expected boolean, found int64"),
        ({"granted": ["no"]}, "column 'granted': expected boolean, found string"),
        ({"Purpose": ["profile"], "purpose": None}, r"column 'purpose'.*no such column .near: 'Purpose'"),
        ({"occurred_at": [1]}, "column 'occurred_at': expected timestamp, found int64"),
    ],
)
def test_what_is_mistyped_is_never_taken_for_a_grant(
    chosen: Settings, tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(ContractError, match=said):
        import_file(chosen, grants(tmp_path, **columns))
    assert not (tmp_path / "consent.db").exists()


@pytest.mark.parametrize("user_id", ["", None, "e\u0301", "a\0"])
def test_a_faulty_id_stops_the_import(chosen: Settings, tmp_path: Path, user_id: str | None) -> None:
    with pytest.raises(DataError, match="user_id"):
        import_file(chosen, grants(tmp_path, user_id=pa.array(["ann", user_id], pa.string())))
    assert not standing(chosen, "ann").known


@pytest.mark.parametrize(
    "columns", [{"purpose": ["profil"]}, {"source": ["fax"]}, {"granted": pa.array([None], pa.bool_())}]
)
def test_an_unknown_name_or_an_open_answer_stops_the_import(
    chosen: Settings, tmp_path: Path, columns: dict[str, Any]
) -> None:
    with pytest.raises(ConsentError):
        import_file(chosen, grants(tmp_path, **columns))
    assert not standing(chosen, "ann").known


def test_a_file_that_is_none_is_named(chosen: Settings, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pq is missing"):
        import_file(chosen, str(tmp_path / "gone.pq"))


def test_declared_grants_reach_those_alone_whom_the_ledger_does_not_know(chosen: Settings, tmp_path: Path) -> None:
    import_file(chosen, grants(tmp_path, user_id=["ann"], granted=[False]))
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"user_id": ["ann", "bob", None, "bob", "e\u0301"]}), tmp_path / "log" / "a.parquet")
    chosen.data.path = str(tmp_path)
    import_declared(chosen)
    assert not standing(chosen, "bob").known  # nothing was declared
    chosen.data.grants.everyone, chosen.data.grants.notice_version = ["profile", "train"], "research"
    for _ in range(2):
        import_declared(chosen)
        assert standing(chosen, "bob").granted == SOURCES.mask("profile", "") | SOURCES.mask("train", "")
        assert standing(chosen, "ann").granted == 0


def test_declared_grants_do_not_reach_somebody_erased(chosen: Settings, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"user_id": ["ann", "bob"]}), tmp_path / "log" / "a.parquet")
    chosen.data.path = str(tmp_path)
    chosen.data.grants.everyone, chosen.data.grants.notice_version = ["profile"], "research"
    key = UserKeys.load(chosen.store.keys, create=True).stable.derive("ann")
    with contextlib.closing(Ledger.open(chosen.store.ledger, SOURCES)) as ledger:
        ledger.erase(key, "person", "")
    import_declared(chosen)
    assert standing(chosen, "ann").granted == 0 and standing(chosen, "bob").granted


def test_a_log_of_nobody_in_particular_declares_nothing(chosen: Settings, tmp_path: Path) -> None:
    chosen.data.path, chosen.data.columns = str(tmp_path), {"item_id": "i", "event": "e", "ts": "t", "source": "s"}
    chosen.data.grants.everyone, chosen.data.grants.notice_version = ["profile"], "research"
    import_declared(chosen)
    assert not (tmp_path / "consent.db").exists()
