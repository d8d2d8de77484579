"""Ingest leaves the shards, the quarantine beside them, and not one raw id."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

import jobs.ingest as ingest_module
from engine.activity.mapping import DataSettings
from engine.consent import Change, Ledger, Vocabulary
from engine.errors import DataError, QuarantineError
from jobs.ingest import dry_run, popularity
from jobs.night import HOLDOUT, Night, digests, table
from jobs.settings import ConsentSettings, Settings, StoreSettings
from tests.activity.logs import row
from tests.jobs.ingest_nights import PEOPLE, InProcess, add, log, night, run, stock


def test_a_night_leaves_shards_counts_and_popularity(tmp_path: Path) -> None:
    this = night(tmp_path, [*log(), row("a", "purchase", 8, user_id=None)])
    facts = run(this).facts
    assert (facts["rows"], facts["events"], facts["items"]) == (21, 20, 4)
    assert (facts["counts"]["-anonymous"], facts["people"], facts["people_without_grant"]) == (1, 20, 0)
    shards = [table(tmp_path / "run" / "ingest" / f"activity-{name}.arrow") for name in facts["buckets"]]
    assert sum(each.num_rows for each in shards) == 20
    assert popularity(this, "full")["people"].to_pylist() == [5, 5, 5, 5]
    assert sum(popularity(this, HOLDOUT)["people"].to_pylist()) < 20


def test_every_row_of_the_log_is_accounted_for_night_after_night(tmp_path: Path) -> None:
    rows = [
        *log(),
        *log()[:3],
        row("a", "impression", 3),
        row("a", "view", 1),
        row("b", "return", 8, user_id=PEOPLE[1]),
        row("gone", day=2),
        row("c", "purchase", 8, user_id=None),
        row("d", "purchase", 8, user_id="nobody the ledger knows"),
    ]
    this = night(tmp_path, rows, retention_days={"view": 2.0}, bad_rows_allowed=0.5)
    with contextlib.closing(Ledger.open(this.settings.store.ledger, Vocabulary(sources=("web", "store")))) as ledger:
        withdrawn = [Change(purpose, "", False) for purpose in ("profile", "train")]
        ledger.record(this.keys.stable.derive("nobody the ledger knows"), withdrawn, None, "test", "person", "", None)
        sequence = ledger.sequence()
    first = run(Night(this.settings, this.folder, this.inputs, sequence, 0.0)).facts
    add(tmp_path, [row("a", "purchase", 12)], "more")
    later = Night(this.settings, this.folder, digests(this.settings), sequence, 0.0)
    for facts, total in ((first, 29), (run(later).facts, 30)):
        assert facts["rows"] == total == facts["events"] + sum(facts["counts"].values())
        assert facts["expired"] == {"view": 1}
    assert {reason: count for reason, count in first["counts"].items() if count} == {
        "-anonymous": 1, "-counted_only": 1, "-duplicate": 3, "-no_grant": 1, "-past_retention": 1,
        "-undone_or_undoing": 2, "unknown_item": 1,
    }  # fmt: skip


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
    for path in [*(tmp_path / "run").rglob("*"), *(tmp_path / "activity").rglob("*")]:
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


# --- a look before -----------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_table_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, [*log(), row(event="Purchase", day=3), row("a", "impression", 4, source="store")], "part")
    stock(tmp_path, "abcd")
    monkeypatch.setattr(ingest_module, "connected", lambda _: contextlib.nullcontext(InProcess()))
    chosen = Settings(
        out=str(tmp_path / "out"),
        data=DataSettings(path=str(tmp_path / "shop"), bad_rows_allowed=0.5),
        store=StoreSettings(parts=str(tmp_path / "out" / "activity"), keys=str(tmp_path / "out" / "keys")),
        consent=ConsentSettings(sources=["web", "store"]),
    )
    before = sorted(tmp_path.rglob("*"))
    dry_run(chosen)
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().err
    for words in (
        "9 files, 22 rows",
        "unknown_event",
        "impression",
        "store",
        "2026-01-05",
        "date=2026-01-04/part.parquet",
    ):
        assert words in shown
    chosen.data.bad_rows_allowed = 0.0
    with pytest.raises(QuarantineError, match="Did you mean 'purchase'"):
        dry_run(chosen)


def test_a_file_that_cannot_be_read_is_quarantined_by_name_and_the_night_goes_on(tmp_path: Path) -> None:
    this = night(tmp_path, log(), bad_files_allowed=0.2)
    broken = tmp_path / "shop" / "log" / "date=2026-01-05" / "part.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    this.inputs |= digests(this.settings)
    facts = run(this).facts
    name = "log/date=2026-01-05/part.parquet"
    assert (list(facts["refused"]), facts["refused"][name]["why"]) == ([name], "bad_footer")
    assert facts["rows"] == 18
    assert any("2026-01-05 is empty" in each for each in facts["warnings"])
    assert name in (this.folder / "ingest" / "report.txt").read_text()
    this.inputs |= {"again": "1"}  # it may have been the network: a refused file is tried again each night
    assert run(this).facts["partitions"] == {"read": 1, "reused": 8}
    this.settings.data.bad_files_allowed = 0.1
    this.inputs |= {"again": "2"}
    with pytest.raises(QuarantineError, match="1 of 9 files"):
        run(this)
