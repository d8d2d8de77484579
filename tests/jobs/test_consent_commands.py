"""`bodega consent erase` and `bodega consent audit`, on a real server and a real ledger."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from engine.consent import Change, Ledger
from engine.snapshot import About, Manifest, Registry, read_manifest
from tests.nights import ROOT, Ran
from tests.postgres_server import PostgresServer
from tests.serving.shop import VOCABULARY, Shop, allow
from tests.snapshot_builder import build_snapshot

KEYS = [bytes([n]) * 16 for n in range(1, 5)]


def bodega(*arguments: str) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, timeout=120, cwd="/"
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def grant_to(ledger: Ledger, *keys: bytes) -> None:
    for key in keys:
        ledger.record(key, [Change("profile", "", True)], None, "n", "person", "", None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder whose audit log has six rows; the fourth and the last move no consent."""
    with closing(Ledger.open(f"sqlite:///{tmp_path}/consent.db", VOCABULARY)) as ledger:
        grant_to(ledger, *KEYS[:3])
        ledger.audit("snapshot_promoted", "operator", {"snapshot": "20260131-000000000000"})
        ledger.erase(KEYS[0], "guardian", "")
        ledger.audit("snapshot_rolled_back", "operator", {"snapshot": "20260130-000000000000", "because": "clicks"})
    return tmp_path


def recorded(out: Path, head: str, seed: int) -> str:
    """Publish a snapshot whose manifest records a head."""
    staged = out / "staged"
    build_snapshot(staged, users={b"a" * 16: {}}, seed=seed)
    manifest = read_manifest(staged)
    about = About(**{each.name: getattr(manifest, each.name) for each in fields(About)})
    lineage = replace(about.lineage, audit_head=head)
    made = Manifest.of(replace(about, lineage=lineage), manifest.files, manifest.counts)
    (staged / "manifest.json").write_text(made.to_json())
    Registry(out / "snapshots").publish(staged)
    shutil.rmtree(staged, ignore_errors=True)
    return made.snapshot_id


def test_nobody_is_erased_without_saying_so_twice(shop: Shop) -> None:
    shop.publish()
    with shop.served() as (server, client):
        allow(client, "ana")
        at = ("--address", f"127.0.0.1:{server.port}")
        refused = bodega("consent", "erase", "ana", *at)
        assert refused.code == 2 and "cannot be undone" in refused.err and "--yes" in refused.err
        assert client.get_consent("ana").grants
        done = bodega("consent", "erase", "ana", "--yes", *at)
        assert done.code == 0, done.err
        assert not client.get_consent("ana").grants
        assert client.erase_user("ana").receipt_id in done.out
        assert "serving" in done.out and "done" in done.out and "Not purged by this version" in done.out
        again = json.loads(bodega("consent", "erase", "ana", "--yes", "--json", *at).out)
        assert again["receipt_id"] in done.out and len(again["deadlines"]) == 7


def test_ids_are_linked_and_taken_apart_by_command(shop: Shop) -> None:
    shop.publish()
    with shop.served() as (server, client):
        at = ("--address", f"127.0.0.1:{server.port}")
        done = bodega("consent", "link", "ana", "ana-app", "--notice-version", "n9", *at)
        assert done.code == 0 and "consent token" in done.out, done.err
        assert client.get_consent("ana").linked_ids == 1
        assert {each.notice_version for each in client.consent_changes("ana").changes} == {"n9"}
        refused = bodega("consent", "link", "ana", *at)
        assert refused.code != 0 and "expected 2..16" in refused.err
        done = bodega("consent", "unlink", "ana-app", *at)
        assert done.code == 0 and client.get_consent("ana").linked_ids == 0, done.err


def test_what_is_promoted_by_hand_stands_in_the_log_of_a_ledger_on_a_server(
    shop: Shop, postgres: PostgresServer
) -> None:
    first, _ = shop.publish(0).snapshot_id, shop.publish(1)
    url = postgres.url(postgres.schema())
    with closing(Ledger.open(url, VOCABULARY)):
        pass
    done = bodega("snapshot", "promote", first, "--out", str(shop.out), "--ledger", url, "--reason", "clicks")
    assert done.code == 0, done.err
    with closing(Ledger.open(url, VOCABULARY)) as ledger:
        (row,) = ledger.audit_rows(9)
    assert row.action == "snapshot_promoted" and json.loads(row.detail) == {"snapshot": first, "because": "clicks"}
    missing = f"sqlite:///{shop.out}/elsewhere.db"
    refused = bodega("snapshot", "rollback", "--out", str(shop.out), "--ledger", missing)
    assert refused.code != 0 and "There is no ledger" in refused.err and not (shop.out / "elsewhere.db").exists()


def test_a_whole_log_is_told_with_its_last_rows(out: Path) -> None:
    done = bodega("consent", "audit", "--out", str(out), "--last", "2")
    assert done.code == 0, done.err
    *rows, summary, beside, gone = done.out.splitlines()
    assert [row.split()[0] for row in rows] == ["5", "6"]
    assert "guardian person_erased -> 4" in rows[0] and "because" in rows[1]
    assert summary.startswith("audit log: 6 rows, head ") and summary.endswith(", whole")
    told = json.loads(bodega("consent", "audit", "--out", str(out), "--last", "1", "--json").out)
    assert (told["whole"], told["rows"], told["fault"]) == (True, 6, "")
    assert told["last"][0]["detail"] == {"snapshot": "20260130-000000000000", "because": "clicks"}
    assert beside == (
        "ledger: agrees with the log; people 3, changes 2, erasures 1, receipts 3, imports 0, imports thinned 0, gone 1"
    )
    assert gone.startswith("ledger: of 1 changes nothing is left")
    assert told["ledger"]["sound"] and (told["ledger"]["people"], told["ledger"]["gone"]) == (3, 1)
    assert told["head"] == told["last"][0]["hash"] and told["head"] in summary
    for key in KEYS:
        assert key.hex() not in done.out


def edited(database: sqlite3.Connection) -> None:
    database.execute("UPDATE consent_audit SET actor = 'nobody' WHERE number = 3")


def removed(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM consent_audit WHERE number = 3")


def reordered(database: sqlite3.Connection) -> None:
    for was, now in ((3, 99), (4, 3), (99, 4)):
        database.execute("UPDATE consent_audit SET number = ? WHERE number = ?", (now, was))


def cut(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM consent_audit WHERE number > 3")


def garbled(database: sqlite3.Connection) -> None:
    database.execute("UPDATE consent_audit SET detail = '{' WHERE number = 6")


@pytest.mark.parametrize(("damage", "sound"), [(edited, 2), (removed, 2), (reordered, 2), (cut, 3), (garbled, 5)])
def test_what_was_done_to_the_log_is_found_and_named(
    out: Path, damage: Callable[[sqlite3.Connection], None], sound: int
) -> None:
    with closing(sqlite3.connect(out / "consent.db")) as database, database:
        damage(database)
    done = bodega("consent", "audit", "--out", str(out))
    assert (done.code, done.err) == (4, "") and f"{sound} rows" in done.out and "BROKEN" in done.out
    told = json.loads(bodega("consent", "audit", "--out", str(out), "--json").out)
    assert not told["whole"] and told["rows"] == sound and told["fault"]


def test_a_log_cut_off_with_all_that_tells_of_it_is_found_by_the_snapshots_of_the_store(out: Path) -> None:
    with closing(Ledger.open(f"sqlite:///{out}/consent.db", VOCABULARY)) as ledger:
        early, late = ledger.audit_head(1), ledger.audit_head(4)
    names = {at: recorded(out, head, seed) for seed, (at, head) in enumerate({"early": early, "late": late}.items())}
    without = recorded(out, "", 2)
    assert bodega("consent", "audit", "--out", str(out)).code == 0
    with closing(sqlite3.connect(out / "consent.db")) as database, database:
        database.execute("DELETE FROM consent_audit WHERE number > 3")
        head = database.execute("SELECT hash FROM consent_audit WHERE number = 3").fetchone()[0]
        database.execute("UPDATE consent_ledger SET sequence = 3, audited = 3, audit_head = ?", (head,))
        erased = database.execute("DELETE FROM consent_tombstones RETURNING user_key").fetchone()[0]
        database.execute("DELETE FROM consent_current WHERE user_key = ?", erased and (erased,))
        database.execute("DELETE FROM consent_changes WHERE sequence = 1")
    nowhere = bodega("consent", "audit", "--out", str(out), "--store", str(out / "nothing"))
    assert nowhere.code == 4 and "no erasure came after it" in nowhere.out and "audit log: 3 rows" in nowhere.out
    done = bodega("consent", "audit", "--out", str(out))
    assert done.code == 4
    verdicts = {line.split()[1].rstrip(":"): line for line in done.out.splitlines() if line.startswith("snapshot ")}
    assert verdicts[names["early"]].endswith("in the log") and "NOT" not in verdicts[names["early"]]
    assert verdicts[names["late"]].endswith("NOT in the log")
    assert verdicts[without].endswith("was made without an audit log")
    told = json.loads(bodega("consent", "audit", "--out", str(out), "--json").out)["snapshots"]
    assert {name: each["in_log"] for name, each in told.items()} == {
        names["early"]: True,
        names["late"]: False,
        without: False,
    }


def test_a_manifest_that_cannot_be_read_is_named_and_no_agreement_claimed(out: Path) -> None:
    with closing(Ledger.open(f"sqlite:///{out}/consent.db", VOCABULARY)) as ledger:
        name = recorded(out, ledger.audit_head(1), 0)
    (out / "snapshots" / name / "manifest.json").write_text("{")
    done = bodega("consent", "audit", "--out", str(out))
    assert done.code == 4 and f"snapshot {name}: NOT compared" in done.out


def test_a_ledger_of_an_older_format_is_told_so_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "consent.db"
    with closing(sqlite3.connect(file)) as database:
        database.executescript((ROOT / "tests" / "consent" / "format_1.sql").read_text())
    file.chmod(0o400)
    before = file.read_bytes()
    done = bodega("consent", "audit", "--out", str(tmp_path))
    assert done.code == 4 and "has format 1" in done.err and "raises it in place" in done.err
    assert file.read_bytes() == before


def test_what_was_changed_beside_the_log_is_found_though_the_log_is_whole(out: Path) -> None:
    with closing(sqlite3.connect(out / "consent.db")) as database, database:
        database.execute("UPDATE consent_current SET granted = 'profile/web train/web' WHERE sequence = 2")
    before = (out / "consent.db").read_bytes()
    done = bodega("consent", "audit", "--out", str(out))
    assert done.code == 4 and "1 FAULTS, the first at 2: what a standing grants" in done.out
    assert "6 rows" in done.out and ", whole" in done.out
    assert (out / "consent.db").read_bytes() == before
    told = json.loads(bodega("consent", "audit", "--out", str(out), "--json").out)
    assert (told["whole"], told["fault"], told["ledger"]["faults"]) == (False, "", 1)


def test_a_folder_without_a_ledger_gets_none_by_being_looked_at(tmp_path: Path) -> None:
    done = bodega("consent", "audit", "--out", str(tmp_path))
    assert done.code == 2 and "There is no ledger" in done.err and not list(tmp_path.iterdir())


def test_a_snapshot_that_is_not_there_is_named(out: Path) -> None:
    done = bodega("consent", "audit", "--out", str(out), "--against", "20990101-000000000000")
    assert done.code == 7 and "20990101-000000000000" in done.err


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "out")


def test_a_ledger_on_postgresql_is_audited_as_one_in_a_file(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.url(postgres.schema())
    with closing(Ledger.open(url, VOCABULARY)) as ledger:
        grant_to(ledger, *KEYS)
        ledger.erase(KEYS[0], "person", "")
    done = bodega("consent", "audit", "--out", str(tmp_path), "--json", f"store.ledger='{url}'")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["whole"] and told["rows"] == 5 and told["ledger"]["receipts"] == 4 and not list(tmp_path.iterdir())
