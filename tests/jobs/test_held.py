"""`bodega consent held`: what a real night left of people is all counted, and of one person all that lies there is told."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.consent import MODEL_BOUND, Change, Ledger, Vocabulary
from engine.identity import UserKeys
from engine.snapshot import Registry
from tests.nights import Ran, SmallShop

SHOP = Vocabulary(sources=("web", "app", "store", "partner"))
DAYS = 20  # that views are retained in the second run


def bodega(*arguments: str, given: str = "") -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "consent", "held", *arguments],
        capture_output=True, text=True, timeout=120, cwd="/", input=given,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Content of every file but SQLite's empty companions, and the time of its folder, by which parts say when they were used."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.parent.stat().st_mtime_ns * (path.parent != folder),
        )
        for path in files
    }


@pytest.fixture(scope="module")
def lived(small_shop: SmallShop, first_night: Ran, tmp_path_factory: pytest.TempPathFactory) -> SmallShop:
    """A copy of the deployment after its night, and another ingest with retention: someone was erased since, and someone has
    changed their mind.
    """
    shop = SmallShop(shutil.copytree(small_shop.out, tmp_path_factory.mktemp("held") / "out", symlinks=True))
    ran = shop.nightly("run=short", f"++data.retention_days.view={DAYS}", module="jobs.ingest")
    assert ran.code == 0, ran.err
    keys = UserKeys.load(shop.out / "keys")
    gone, wavers = people_of(shop)[:2]
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", SHOP)) as ledger:
        ledger.erase(keys.stable.derive(gone), "person", "")
        ledger.record(
            keys.stable.derive(wavers), [Change("profile", "partner", False)], 3, "2026-02", "person", "", None
        )
    return shop


def people_of(shop: SmallShop) -> list[str]:
    """Those whom the served snapshot knows, busiest first."""
    keys = UserKeys.load(shop.out / "keys")
    everybody = pl.read_parquet(shop.out / "shop" / "truth" / "users.parquet").sort("events", descending=True)
    with Registry(shop.out / "snapshots").open_current() as snapshot:
        return [name for name in everybody["user_id"] if snapshot.user(keys.rotating.derive(name)) is not None]


def log_of(shop: SmallShop) -> pl.DataFrame:
    return pl.read_parquet(shop.out / "shop" / "log" / "*" / "*.parquet")


def told(*arguments: str, given: str = "") -> Any:
    done = bodega(*arguments, "--json", given=given)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_every_copy_is_counted_as_it_lies_there_and_none_is_changed(lived: SmallShop) -> None:
    before = state_of(lived.out)
    copies = {each["copy"]: each for each in told("--out", str(lived.out))}
    assert state_of(lived.out) == before
    ledger = copies["consent ledger"]
    with closing(Ledger.open(f"sqlite:///{lived.out}/consent.db", SHOP)) as opened:
        assert ledger["people"] == len(opened.state()[0].key)
    assert "1 people erased" in ledger["note"] and "profile" in ledger["purposes"]
    days = log_of(lived).filter(pl.col("user_id").is_not_null())
    (parts,) = (each for name, each in copies.items() if name.startswith("parts of the log"))
    assert parts["people"] == days.filter(pl.col("event") != "impression")["user_id"].n_unique()
    first = {event[0]: rows["ts"].min() for event, rows in days.group_by("event")}
    assert all(f"{event} {first[event]:%Y-%m-%d}" in parts["oldest"] for event in ("purchase", "view", "like"))
    assert f"view {first['view'] + timedelta(days=DAYS):%Y-%m-%d}" in parts["until"] and "like no end" in parts["until"]
    short = copies["run short: ingest"]
    assert int(short["note"].split()[0].replace(",", "")) > 0 and "somebody removes the named run" in short["until"]
    as_of = days["ts"].max()
    kept = dict(each.split() for each in short["oldest"].split(", "))
    assert kept["view"] >= f"{as_of - timedelta(days=DAYS):%Y-%m-%d}" > f"{first['view']:%Y-%m-%d}"
    run = json.loads(next((lived.out / "runs").glob("night-*/ingest/_stage.json")).read_text())["facts"]
    (ingest,) = (each for name, each in copies.items() if name.startswith("run night-") and name.endswith(": ingest"))
    assert ingest["people"] == run["people"] - run["people_without_grant"] < run["people"]
    with Registry(lived.out / "snapshots").open_current() as snapshot:
        manifest = snapshot.manifest
    served = copies[f"snapshot {manifest.snapshot_id}"]
    assert (served["people"], served["bytes"]) == (
        manifest.counts["users"],
        sum(f.bytes for f in manifest.files.values()),
    )
    assert (
        "profile" in served["purposes"] and "location" not in served["purposes"] and served["until"] == "another serves"
    )
    assert f"purchase {run['oldest']['purchase'][:10]}" in served["oldest"]
    (model,) = (each for name, each in copies.items() if name.startswith("model of run"))
    assert 0 < model["people"] <= ingest["people"] and "1 erased since, a fit without them is due" in model["note"]
    assert {name for name, each in copies.items() if each["people"] is None} == {
        "the log itself",
        "backups",
        "other machines",
    }
    (embed,) = (each for name, each in copies.items() if name.endswith(": embed"))
    assert 0 < embed["people"] <= ingest["people"] and "by place" in embed["note"]


def test_the_table_is_the_same_for_people_to_read(lived: SmallShop) -> None:
    done = bodega("--out", str(lived.out))
    assert done.code == 0, done.err
    assert "consent ledger" in done.out and "not looked into" in done.out


def test_of_one_person_all_that_lies_in_any_copy_is_told_and_nothing_that_names_them(lived: SmallShop) -> None:
    keys = UserKeys.load(lived.out / "keys")
    user = people_of(lived)[1]
    before = state_of(lived.out)
    found = told("--out", str(lived.out), "--user", "-", given=f"{user}\n")
    assert state_of(lived.out) == before
    consent = found["consent"]
    stable, rotating = keys.stable.derive(user), keys.rotating.derive(user)
    with closing(Ledger.open(f"sqlite:///{lived.out}/consent.db", SHOP)) as ledger:
        standing, history = ledger.standing(stable), ledger.changes(stable, 0, 1000)
    assert {(each["purpose"], each["source"]) for each in consent["grants"]} == {
        (each.purpose, each.source) for each in standing.grants
    }
    assert all(each["since"] and each["notice_version"] for each in consent["grants"])
    assert ("profile", "partner") not in {(each["purpose"], each["source"]) for each in consent["grants"]}
    assert (consent["preference"], consent["changes"], consent["last_change"]) == (
        "purchases",
        len(history),
        standing.sequence,
    )
    mine = log_of(lived).filter((pl.col("user_id") == user) & (pl.col("event") != "impression"))
    by_event = {each["event"]: each for each in found["parts"]}
    for event, rows in mine.group_by("event"):
        assert by_event[event[0]]["oldest"] == f"{rows['ts'].min():%Y-%m-%d}"
        assert by_event[event[0]]["rows"] == rows.unique("event_id").height
    with Registry(lived.out / "snapshots").open_current() as snapshot:
        record, name = snapshot.user(rotating), snapshot.manifest.snapshot_id
        assert record is not None
        sizes = {kind: len(getattr(record, kind)) for kind in ("candidates", "seen", "mix", "cadence", "sums")}
    (held,) = found["snapshots"]
    assert held["snapshot"] == name and len(held["sums"]) == sizes.pop("sums") > 0
    assert {kind: sum(row["rows"] for row in held[kind]) for kind in sizes} == sizes
    words = {word for kind in sizes for row in held[kind] for word in row["relies_on"]}
    assert any(word.startswith("profile:") and "(purchase)" in word for word in words)
    assert sorted((each["run"][:5], each["stage"]) for each in found["runs"]) == [
        ("night", "ingest"),
        ("night", "rank"),
        ("short", "ingest"),
    ]
    assert found["models"][0]["events"] > 0 and "cannot be looked into" in found["models"][0]["inside"]
    assert len(found["not_looked_into"]) == 4
    shown = bodega("--out", str(lived.out), "--user", user)
    for text in (shown.out, shown.err, json.dumps(found)):
        assert user not in text and stable.hex() not in text and rotating.hex() not in text
    assert "granted since" in shown.out and "NOT looked into: backups" in shown.out


def test_of_someone_erased_the_tombstone_and_what_is_not_purged_yet_are_told(lived: SmallShop) -> None:
    user = people_of(lived)[0]
    found = told("--out", str(lived.out), "--user", user)
    (erasure,) = found["consent"]["erasures"]
    assert not found["consent"]["grants"] and found["consent"]["changes"] == 0 and not found["consent"]["known"]
    assert found["snapshots"] and found["parts"] and found["runs"], (
        "an erasure does not purge these, and they are not hidden"
    )
    assert any("linked with before its erasure" in each for each in found["not_looked_into"])
    due = pl.Series([found["models"][0]["due"], erasure["at"]]).str.to_datetime(time_zone="UTC")
    assert due[0] - due[1] == MODEL_BOUND


def test_of_a_stranger_nothing_is_found_and_the_rest_is_still_not_claimed(lived: SmallShop) -> None:
    found = told("--out", str(lived.out), "--user", "nobody-at-all")
    assert not any(found[kind] for kind in ("snapshots", "parts", "runs", "models", "replicas"))
    assert len(found["not_looked_into"]) == 4
    shown = bodega("--out", str(lived.out), "--user", "nobody-at-all")
    assert "nothing found in: snapshots, parts, runs, models, replicas" in shown.out


def test_what_cannot_be_read_is_named_and_not_passed_over(lived: SmallShop, tmp_path: Path) -> None:
    shop = SmallShop(shutil.copytree(lived.out, tmp_path / "out", symlinks=True))
    user = people_of(shop)[1]
    parts = sorted(path for path in (shop.out / "activity").iterdir() if path.is_dir() and not path.is_symlink())
    (parts[0] / "part.json").write_text("{")
    (parts[1] / "people-0.arrow").write_bytes(b"")
    name = Registry(shop.out / "snapshots").current()
    for path in (shop.out / "snapshots" / name).glob("users-*.arrow"):
        path.unlink()
    found = told("--out", str(shop.out), "--user", user)
    unseen = " ".join(found["not_looked_into"])
    assert f"part {parts[0].name}" in unseen and f"part {parts[1].name}" in unseen and f"snapshot {name}" in unseen
    copies = told("--out", str(shop.out))
    assert "NOT whole: 2 parts" in next(each["note"] for each in copies if each["copy"].startswith("parts of"))


def test_with_another_rotating_key_a_snapshot_is_not_said_to_hold_nothing(lived: SmallShop, tmp_path: Path) -> None:
    shop = SmallShop(shutil.copytree(lived.out, tmp_path / "out", symlinks=True))
    user = people_of(shop)[1]
    (shop.out / "keys" / "rotating.key").write_text("ab" * 32)
    found = told("--out", str(shop.out), "--user", user)
    assert not found["snapshots"] and any("rotating key" in each for each in found["not_looked_into"])


@pytest.mark.parametrize("user", ["", "e\u0301", "x" * 300])
def test_an_id_that_cannot_be_one_is_refused_and_not_repeated(lived: SmallShop, user: str) -> None:
    done = bodega("--out", str(lived.out), "--user", "-", given=f"{user}\n")
    assert done.code == 1 and "The user id is" in done.err and (not user or user not in done.err)


def test_under_another_stable_key_nobody_is_denied(lived: SmallShop, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    UserKeys.load(keys, create=True)
    done = bodega("--out", str(lived.out), "--user", "somebody", f"store.keys={keys}")
    assert done.code == 4 and "names people by the stable key" in done.err


def test_a_folder_without_a_ledger_is_told_and_stays_empty(tmp_path: Path) -> None:
    for more in ((), ("--user", "ana")):
        done = bodega("--out", str(tmp_path), *more)
        assert done.code == 2 and "There is no ledger" in done.err and not list(tmp_path.iterdir())
