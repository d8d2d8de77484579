"""A team's grants come in whole or not at all, by stable key, and nothing is read into them."""

from __future__ import annotations

import contextlib
import datetime as dt
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.consent import Change, Ledger, Standing, Vocabulary
from engine.errors import ConsentError, ContractError, DataError
from engine.identity import UserKeys
from jobs.import_consent import LinksImported, import_declared, import_file, import_links
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


def test_links_are_recorded_once_and_with_their_proof(chosen: Settings, tmp_path: Path) -> None:
    rows = {"user_id": ["ann", "bob"], "linked_user_id": ["ann-app", "ann"], "notice_version": ["n4", None]}
    pq.write_table(pa.table(rows), tmp_path / "l.pq")
    assert import_links(chosen, str(tmp_path / "l.pq")) == LinksImported(2, 0, 0)
    keys = UserKeys.load(chosen.store.keys)
    ann, app, bob = (keys.stable.derive(name) for name in ("ann", "ann-app", "bob"))
    with contextlib.closing(Ledger.open(chosen.store.ledger, chosen.consent.vocabulary())) as ledger:
        assert ledger.links.others(ann) == sorted([app, bob])
        assert ledger.changes(app, 0, 9)[0].notice_version == "n4"
        ledger.links.unlink(bob, "n", "person", "", None)
    assert import_links(chosen, str(tmp_path / "l.pq")) == LinksImported(0, 1, 1), "sent again, it overrules nobody"
    with contextlib.closing(Ledger.open(chosen.store.ledger, chosen.consent.vocabulary())) as ledger:
        assert ledger.links.others(ann) == [app]
    pq.write_table(pa.table({"user_id": ["ann"], "linked_user_id": ["e\u0301"]}), tmp_path / "l.pq")
    with pytest.raises(DataError, match="Row 1 of the links: its linked_user_id is not NFC"):
        import_links(chosen, str(tmp_path / "l.pq"))


def links(folder: Path, **columns: list[Any]) -> str:
    pq.write_table(pa.table(columns), folder / "l.pq")
    return str(folder / "l.pq")


def test_a_file_of_links_overrules_no_erasure_and_no_withdrawal_that_came_after(
    chosen: Settings, tmp_path: Path
) -> None:
    then = [datetime(2020, 1, 1, tzinfo=UTC)] * 3
    path = links(
        tmp_path, user_id=["ann", "cat", "dan"], linked_user_id=["bob", "cat-app", "dan-app"], occurred_at=then
    )
    vocabulary = chosen.consent.vocabulary()
    keys = UserKeys.load(chosen.store.keys, create=True).stable
    ann, cat, dan = (keys.derive(name) for name in ("ann", "cat", "dan"))
    with contextlib.closing(Ledger.open(chosen.store.ledger, vocabulary)) as ledger:
        for key in (ann, cat):
            ledger.record(key, [Change("train", "web", True)], None, "n", "person", "", None)
        ledger.erase(ann, "person", "")
        ledger.record(cat, [Change("cross_source", "", False)], None, "n", "person", "", None)
    assert import_links(chosen, path) == LinksImported(1, 0, 2)
    with contextlib.closing(Ledger.open(chosen.store.ledger, vocabulary)) as ledger:
        assert not ledger.links.others(ann) and not ledger.links.others(cat) and ledger.links.others(dan)
        ledger.erase(dan, "person", "")
    # Erased in between, it is no obstacle to the others of the file.
    more = [*then, datetime(2020, 1, 2, tzinfo=UTC)]
    path = links(tmp_path, user_id=["ann", "cat", "dan", "eve"], linked_user_id=["bob", "cat-app", "dan-app", "eve-app"],
                 occurred_at=more)  # fmt: skip
    assert import_links(chosen, path) == LinksImported(1, 0, 3)
    undated = links(tmp_path, user_id=["ann"], linked_user_id=["bob"])
    assert import_links(chosen, undated) == LinksImported(0, 0, 1), "without a time it is older than all"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"user_id": ["a", "b"], "linked_user_id": ["c", "b"]}, "Row 2 of the links: it links an id with itself"),
        ({"user_id": ["a"], "linked_user_id": ["c"], "occurred_at": [datetime(2999, 1, 1, tzinfo=UTC)]}, "Row 1.*future"),
        ({"user_id": ["a"], "linked_user_id": ["c"], "actor": ["x" * 300]}, "Row 1.*actor is longer than 256"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_and_nothing_is_imported(
    chosen: Settings, tmp_path: Path, columns: dict[str, list[Any]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        import_links(chosen, links(tmp_path, **columns))
    with contextlib.closing(Ledger.open(chosen.store.ledger, chosen.consent.vocabulary())) as ledger:
        assert ledger.sequence() == 0


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
