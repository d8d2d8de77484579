"""A night after an erasure: nothing of the person up to it is in what the night makes, whatever the log still holds."""

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


def test_the_night_after_an_erasure_knows_nobody_who_was_erased_though_they_returned(
    small_shop: SmallShop, first_night: Ran, tmp_path: Path
) -> None:
    shop = SmallShop(shutil.copytree(small_shop.out, tmp_path / "out", symlinks=True))
    keys = UserKeys.load(shop.out / "keys")
    with Registry(shop.out / "snapshots").open_current() as snapshot:
        before = snapshot.manifest.snapshot_id
        everybody = pl.read_parquet(shop.out / "shop" / "truth" / "users.parquet").sort("events", descending=True)
        gone, stays = [name for name in everybody["user_id"] if snapshot.user(keys.rotating.derive(name)) is not None][
            :2
        ]
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", SHOP)) as ledger:
        ledger.erase(keys.stable.derive(gone), "person", "")
        for purpose in ("profile", "train"):
            ledger.record(keys.stable.derive(gone), [Change(purpose, "", True)], None, "n", "person", "", None)
        head = ledger.audit_head()
    after = shop.nightly()
    assert after.code == 0, after.err
    with Registry(shop.out / "snapshots").open_current() as snapshot:
        assert snapshot.manifest.snapshot_id == after.last_line["snapshot"] != before
        assert snapshot.user(keys.rotating.derive(gone)) is None
        assert snapshot.user(keys.rotating.derive(stays)) is not None
        assert snapshot.manifest.lineage.audit_head == head
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", SHOP)) as ledger:
        assert ledger.verify_audit([head]).whole
        ledger.audit("snapshot_promoted", "operator", {})
    again = shop.nightly()
    assert again.code == 0 and again.last_line["snapshot"] == after.last_line["snapshot"], again.err
