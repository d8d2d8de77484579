"""A night after an erasure and a link: nothing of whom was erased is in what it makes, and linked ids are one person."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import polars as pl

from engine.consent import Change, Ledger, Vocabulary
from engine.identity import UserKeys
from engine.snapshot import Registry
from tests.nights import Ran, SmallShop

SHOP = Vocabulary(sources=("web", "app", "store", "partner"))


def test_the_night_after_knows_nobody_who_was_erased_though_they_returned_and_linked_ids_as_one(
    small_shop: SmallShop, first_night: Ran, tmp_path: Path
) -> None:
    shop = SmallShop(shutil.copytree(small_shop.out, tmp_path / "out", symlinks=True))
    keys = UserKeys.load(shop.out / "keys")
    with Registry(shop.out / "snapshots").open_current() as snapshot:
        before = snapshot.manifest.snapshot_id
        everybody = pl.read_parquet(shop.out / "shop" / "truth" / "users.parquet").sort("events", descending=True)
        known = [name for name in everybody["user_id"] if snapshot.user(keys.rotating.derive(name)) is not None]
        gone, stays, *linked = known[:4]
        sizes = [len(snapshot.user(keys.rotating.derive(name)).seen) for name in linked]
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", SHOP)) as ledger:
        ledger.erase(keys.stable.derive(gone), "person", "")
        for purpose in ("profile", "train"):
            ledger.record(keys.stable.derive(gone), [Change(purpose, "", True)], None, "n", "person", "", None)
        ledger.links.link([*map(keys.stable.derive, linked), keys.stable.derive("new-app")], "n", "person", "", None)
        head, person = ledger.audit_head(), ledger.standing(keys.stable.derive("new-app")).person
    after = shop.nightly()
    assert after.code == 0, after.err
    with Registry(shop.out / "snapshots").open_current() as snapshot:
        assert snapshot.manifest.snapshot_id == after.last_line["snapshot"] != before
        assert snapshot.user(keys.rotating.derive(gone)) is None
        assert snapshot.user(keys.rotating.derive(stays)) is not None
        assert all(snapshot.user(keys.rotating.derive(name)) is None for name in linked)
        together = snapshot.user(keys.rotating.of_person(person))
        assert len(together.seen) > max(sizes) and len(together.candidates)
        assert snapshot.manifest.lineage.audit_head == head
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", SHOP)) as ledger:
        assert ledger.verify_audit([head]).whole
        ledger.audit("snapshot_promoted", "operator", {})
    again = shop.nightly()
    assert again.code == 0 and again.last_line["snapshot"] == after.last_line["snapshot"], again.err
