"""Nights of ingest over a small log, in this process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from engine.activity.mapping import DataSettings
from engine.consent import Ledger, Vocabulary
from engine.schema import CATALOGUE
from jobs.cluster import Cluster
from jobs.import_consent import import_declared
from jobs.ingest import ingest
from jobs.night import Night, digests
from jobs.settings import ConsentSettings, Settings, StoreSettings
from tests.activity.logs import Row, row, write

PEOPLE = [f"customer-{number:08d}" for number in range(20)]


class InProcess:
    """What ingest asks of a cluster, without Ray, which has tests of its own."""

    cpus = 1

    def share(self, thing: Any) -> Any:
        return thing

    def each(self, function: Callable[..., Any], items: Iterable[Any], *shared: Any, label: str) -> list[Any]:
        return [function(item, *shared) for item in items]


def add(folder: Path, rows: list[Row], name: str) -> None:
    """Files of the log, one for each day of the rows."""
    for day in {each["ts"].date() for each in rows}:
        of_day = [each for each in rows if each["ts"].date() == day]
        write(folder / "shop" / "log" / f"date={day}" / f"{name}.parquet", of_day)


def stock(folder: Path, items: str) -> None:
    write(folder / "shop" / "catalogue.parquet", [{"item_id": name, "title": name} for name in items], CATALOGUE)


def night(folder: Path, rows: list[Row], **data: Any) -> Night:
    """A night over a log of one file a day, with consent of everybody."""
    add(folder, rows, "part")
    stock(folder, "abcd")
    chosen = Settings(
        out=str(folder),
        data=DataSettings(path=str(folder / "shop"), **data),
        store=StoreSettings(
            ledger=f"sqlite:///{folder}/consent.db",
            keys=str(folder / "keys"),
            parts=str(folder / "activity"),
            make_keys=True,
        ),
        consent=ConsentSettings(sources=["web", "store"]),
    )
    chosen.data.grants.everyone, chosen.data.grants.notice_version = ["profile", "train"], "test"
    import_declared(chosen)
    ledger = Ledger.open(chosen.store.ledger, Vocabulary(sources=("web", "store")))
    sequence = ledger.sequence()
    ledger.close()
    return Night(chosen, folder / "run", digests(chosen) | {"ledger": str(sequence)}, sequence, 0.0)


def run(this: Night) -> Any:
    return ingest(this, cast(Cluster, InProcess()))


def log() -> list[Row]:
    return [row("abcd"[at % 4], "purchase", at % 9, user_id=name) for at, name in enumerate(PEOPLE)]


def checksums(this: Night) -> dict[str, str]:
    stage = json.loads((this.folder / "ingest" / "_stage.json").read_text())
    return {path: about["sha256"] for path, about in stage["files"].items()}


def night_again(folder: Path, store: str, number: int, **data: Any) -> Night:
    """A night over what lies there; with the store "fresh" nothing is known beforehand."""
    parts = folder / (store if store == "kept" else f"{store}-{number}")
    chosen = Settings(
        out=str(folder),
        data=DataSettings(path=str(folder / "shop"), **data),
        store=StoreSettings(ledger=f"sqlite:///{folder}/consent.db", keys=str(folder / "keys"), parts=str(parts)),
        consent=ConsentSettings(sources=["web", "store"]),
    )
    with contextlib.closing(Ledger.open(chosen.store.ledger, Vocabulary(sources=("web", "store")))) as ledger:
        sequence = ledger.sequence()
    return Night(chosen, folder / f"run-{store}", digests(chosen), sequence, 0.0)
