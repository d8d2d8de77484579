"""Ingest leaves the shards, the quarantine beside them, and not one raw id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow.parquet as pq
import pytest

from engine.activity.mapping import DataSettings
from engine.consent import Ledger, Vocabulary
from engine.errors import DataError, QuarantineError
from engine.schema import CATALOGUE
from jobs.cluster import Cluster
from jobs.import_consent import import_declared
from jobs.ingest import ingest, popularity
from jobs.night import HOLDOUT, Night, table
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


def night(folder: Path, rows: list[Row], **data: Any) -> Night:
    """A night over a log of one file a day, with consent of everybody."""
    for day in {each["ts"].date() for each in rows}:
        of_day = [each for each in rows if each["ts"].date() == day]
        write(folder / "shop" / "log" / f"date={day}" / "part.parquet", of_day)
    write(folder / "shop" / "catalogue.parquet", [{"item_id": name, "title": name} for name in "abcd"], CATALOGUE)
    chosen = Settings(
        out=str(folder),
        data=DataSettings(path=str(folder / "shop"), **data),
        store=StoreSettings(ledger=f"sqlite:///{folder}/consent.db", keys=str(folder / "keys"), make_keys=True),
        consent=ConsentSettings(sources=["web", "store"]),
    )
    chosen.data.grants.everyone, chosen.data.grants.notice_version = ["profile", "train"], "test"
    import_declared(chosen)
    ledger = Ledger.open(chosen.store.ledger, Vocabulary(sources=("web", "store")))
    sequence = ledger.sequence()
    ledger.close()
    return Night(chosen, folder / "run", {"log": "as it is"}, sequence, 0.0)


def run(this: Night) -> Any:
    return ingest(this, cast(Cluster, InProcess()))


def log() -> list[Row]:
    return [row("abcd"[at % 4], "purchase", at % 9, user_id=name) for at, name in enumerate(PEOPLE)]


def test_a_night_leaves_shards_counts_and_popularity(tmp_path: Path) -> None:
    this = night(tmp_path, [*log(), row("a", "purchase", 8, user_id=None)])
    facts = run(this).facts
    assert (facts["rows"], facts["events"], facts["items"]) == (21, 20, 4)
    assert facts["counts"]["-no_grant_or_anonymous"] == 1
    shards = [table(tmp_path / "run" / "ingest" / f"activity-{name}.arrow") for name in facts["buckets"]]
    assert sum(each.num_rows for each in shards) == 20
    assert popularity(this, "full")["people"].to_pylist() == [5, 5, 5, 5]
    assert sum(popularity(this, HOLDOUT)["people"].to_pylist()) < 20


def test_more_buckets_than_people_are_no_fault(tmp_path: Path) -> None:
    this = night(tmp_path, [row()])
    this.settings.buckets = 5
    assert run(this).facts["events"] == 1


def test_the_quarantine_outlives_the_night_and_names_nobody(tmp_path: Path) -> None:
    bad = [row(user_id=PEOPLE[0] * 20), row(user_id=PEOPLE[1], item="gone")]
    facts = run(night(tmp_path, [*log(), *bad], bad_rows_allowed=0.5)).facts
    assert facts["counts"]["bad_user_id"] == facts["counts"]["unknown_item"] == 1
    left = sorted((tmp_path / "run" / "ingest" / "quarantine").glob("*.parquet"))
    reasons = pl.concat([pl.read_parquet(path) for path in left])
    assert sorted(reasons["reason"]) == ["bad_user_id", "unknown_item"]
    assert not (tmp_path / "run" / "ingest" / "split").exists()
    for path in (tmp_path / "run").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        content += str(pq.read_table(path).to_pydict()).encode() if path.suffix == ".parquet" else b""
        assert not [name for name in PEOPLE if name.encode() in content], path


def test_too_many_bad_rows_stop_the_night_with_the_near_miss_and_the_place(tmp_path: Path) -> None:
    this = night(tmp_path, [*log(), row(event="Purchase")])
    with pytest.raises(QuarantineError, match="unknown_event 1.*Did you mean 'purchase' by 'Purchase'"):
        run(this)
    assert list((tmp_path / "run" / "ingest" / "quarantine").glob("*.parquet"))
    assert not (tmp_path / "run" / "ingest" / "_stage.json").exists()


def test_a_log_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No usable event in 1 rows"):
        run(night(tmp_path, [row(item="gone")], bad_rows_allowed=1.0))


def test_the_night_s_time_may_be_said(tmp_path: Path) -> None:
    facts = run(night(tmp_path, log(), as_of="2026-01-04")).facts
    assert facts["as_of"] == 1_767_484_800_000_000
    assert facts["events"] == sum(at % 9 <= 3 for at in range(20))


def test_the_same_night_leaves_the_same_checksums(tmp_path: Path) -> None:
    found: list[dict[str, str]] = []
    for name, rows in (("one", log()), ("two", log()[::-1] + log())):
        folder = tmp_path / name
        this = night(folder, rows)
        if found:  # the same deployment
            for secret in (tmp_path / "one" / "keys").iterdir():
                (folder / "keys" / secret.name).write_bytes(secret.read_bytes())
            (folder / "consent.db").unlink()
            this = night(folder, rows)
        run(this)
        stage = json.loads((folder / "run" / "ingest" / "_stage.json").read_text())
        found.append({path: about["sha256"] for path, about in stage["files"].items()})
    assert found[0] == found[1]
    assert len(found[0]) == 1 + 3 * 4
