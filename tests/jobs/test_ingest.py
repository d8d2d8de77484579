"""Ingest leaves the shards, the quarantine beside them, and not one raw id."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine.activity.split as split_module
import jobs.ingest as ingest_module
from engine.activity.mapping import DataSettings
from engine.activity.parts import PartStore
from engine.consent import Change, Ledger, Vocabulary
from engine.errors import DataError, QuarantineError
from engine.schema import CATALOGUE
from jobs.cluster import Cluster
from jobs.import_consent import import_declared
from jobs.ingest import dry_run, ingest, popularity
from jobs.night import HOLDOUT, Night, digests, table
from jobs.publish import forget_runs
from jobs.read_log import LogReader
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


def checksums(this: Night) -> dict[str, str]:
    stage = json.loads((this.folder / "ingest" / "_stage.json").read_text())
    return {path: about["sha256"] for path, about in stage["files"].items()}


# --- night after night ------------------------------------------------------------------------------------------------


def test_a_night_reads_a_day_and_takes_the_rest_from_the_store(tmp_path: Path) -> None:
    assert run(night(tmp_path, log())).facts["partitions"] == {"read": 9, "reused": 0}
    facts = run(night(tmp_path, [row("b", day=9)])).facts
    assert facts["partitions"] == {"read": 1, "reused": 9}
    assert (facts["rows"], facts["late"]) == (21, [])


def test_a_late_file_opens_its_own_day_again_and_is_told(tmp_path: Path) -> None:
    run(night(tmp_path, log()))
    add(tmp_path, [row("d", "purchase", 2.5, user_id=PEOPLE[3])], "late")
    facts = run(night(tmp_path, [])).facts
    assert facts["partitions"] == {"read": 1, "reused": 8}
    assert facts["late"] == ["log/date=2026-01-03"]
    assert facts["events"] == 21


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    run(night(tmp_path, log()))
    add(tmp_path, [row("d", "purchase", 2.5)], "part")
    facts = run(night(tmp_path, [])).facts
    assert (facts["partitions"]["read"], facts["rows"]) == (1, 20 - len(log()[2::9]) + 1)


def test_an_item_that_joins_or_leaves_the_catalogue_is_judged_anew(tmp_path: Path) -> None:
    rows = [*log(), row("e", "purchase", 3)]
    first = run(night(tmp_path, rows, bad_rows_allowed=0.5)).facts
    assert (first["events"], first["counts"]["unknown_item"]) == (20, 1)
    stock(tmp_path, "abcde")
    this = night(tmp_path, [], bad_rows_allowed=0.5)
    stock(tmp_path, "abcde")
    this.inputs |= digests(this.settings)
    joined = run(this).facts
    assert joined["partitions"] == {"read": 1, "reused": 8}
    assert (joined["events"], joined["counts"].get("unknown_item", 0)) == (21, 0)
    stock(tmp_path, "bcde")
    this.inputs |= digests(this.settings)
    left = run(this).facts
    assert left["partitions"]["read"] == 0
    assert (left["events"], left["counts"]["unknown_item"]) == (16, 5)


def test_a_catalogue_that_was_cut_off_stops_the_night_though_nothing_is_read_anew(tmp_path: Path) -> None:
    this = night(tmp_path, log())
    run(this)
    stock(tmp_path, "a")
    this.inputs |= digests(this.settings)
    with pytest.raises(QuarantineError, match="unknown_item 15"):
        run(this)


def test_a_grant_or_its_withdrawal_counts_without_a_row_read_again(tmp_path: Path) -> None:
    this = night(tmp_path, log())
    assert run(this).facts["people_without_grant"] == 0
    with contextlib.closing(Ledger.open(this.settings.store.ledger, Vocabulary(sources=("web", "store")))) as ledger:
        key = this.keys.stable.derive(PEOPLE[0])
        withdrawn = [Change(purpose, "", False) for purpose in ("profile", "train")]
        ledger.record(key, withdrawn, None, "test", "person", "", None)
        again = Night(this.settings, this.folder, this.inputs | {"ledger": "later"}, ledger.sequence(), 0.0)
    facts = run(again).facts
    assert (facts["people_without_grant"], facts["events"], facts["partitions"]["read"]) == (1, 19, 0)


DEEDS = st.builds(
    row,
    item=st.sampled_from("abcdx"),
    event=st.sampled_from(["purchase", "view", "return", "click", "dismiss"]),
    day=st.floats(0, 12).map(lambda day: round(day, 1)),
    user_id=st.sampled_from([*PEOPLE[:4], None]),
    value=st.sampled_from([None, 1.0, 2.0]),
    source=st.sampled_from(["web", "store"]),
    event_id=st.sampled_from([None, "e1", "e2", "e3", "e4"]),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=st.lists(st.lists(DEEDS, max_size=12), min_size=2, max_size=4), catalogues=st.data())
def test_night_after_night_comes_to_what_one_full_reading_does(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[list[Row]], catalogues: Any
) -> None:
    folder = tmp_path_factory.mktemp("nights")
    rules: dict[str, Any] = {"retention_days": {"view": 3.0, "click": 0.5}, "bad_rows_allowed": 1.0}
    night(folder, [row("b", "purchase", 12.0)], **rules)
    for number, rows in enumerate(arrivals):
        add(folder, rows, f"arrival-{number}")
        stock(folder, catalogues.draw(st.sampled_from(["abcd", "abcdx", "bcd"])))
        found = []
        for name in ("kept", "fresh"):
            this = night_again(folder, name, number, **rules)
            run(this)
            found.append(checksums(this))
        assert found[0] == found[1]


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


def test_a_future_row_is_taken_when_its_time_has_come_however_coarse_times_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = night(tmp_path, [*log(), row("a", "purchase", 30.1)], bad_rows_allowed=0.5)
    first.settings.data.coarsen.time = "day"
    clock = [int(row(day=29.05)["ts"].timestamp() * 1e9)]
    monkeypatch.setattr(ingest_module.time, "time_ns", lambda: clock[0])
    assert run(first).facts["counts"]["time_out_of_range"] == 1
    clock[0] += 2 * 86_400 * 10**9
    later = Night(first.settings, tmp_path / "later", first.inputs, first.ledger_sequence, 0.0)
    assert run(later).facts["events"] == 21


def test_of_two_rows_of_one_event_id_the_one_counts_that_tonight_s_catalogue_knows(tmp_path: Path) -> None:
    rows = [row("a", "purchase", 1, event_id="e"), row("d", "purchase", 1.5, event_id="e"), row("b", "purchase", 2)]
    this = night(tmp_path, rows, bad_rows_allowed=0.9)
    assert run(this).facts["events"] == 2
    stock(tmp_path, "abc")
    this.inputs |= digests(this.settings)
    facts = run(this).facts
    assert (facts["events"], facts["partitions"]["read"]) == (2, 0)
    assert popularity(this, "full")["item"].to_pylist() == [0, 1]


def test_a_scheduler_that_says_the_time_each_night_has_the_store_forget_too(tmp_path: Path) -> None:
    rows = [row("a", "view", day) for day in range(10)]
    this = night(tmp_path, rows, retention_days={"view": 3.0}, as_of="2026-01-05")
    run(this)
    this.settings.data.as_of = "2026-01-10"
    facts = run(this).facts
    assert facts["expired"]["view"] == facts["counts"]["-past_retention"] == 6
    store = PartStore(tmp_path / "activity")
    left = [store.newest(link.name) for link in store.root.iterdir() if link.is_symlink()]
    assert sum(each.events for each in left if each) <= 4 + 1  # and what is a day past it at the most


def test_a_night_that_dies_while_it_forgets_is_whole_and_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*log(), row("a", "view", 1), row("b", "view", 12)]
    this = night(tmp_path, rows, retention_days={"view": 2.0})

    def dies(store: PartStore, key: str, since: Any) -> None:
        forget(store, key, since)
        raise KeyboardInterrupt

    forget = PartStore.forget
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LogReader, "surely_past", lambda _: None)  # so that there is something to forget
        patch.setattr(PartStore, "forget", dies)
        run(this)
    for again in (this, Night(this.settings, tmp_path / "other", this.inputs, this.ledger_sequence, 0.0)):
        facts = run(again).facts
        assert facts["expired"] == {"view": 1}
        assert facts["rows"] == facts["events"] + sum(facts["counts"].values())


def test_a_store_is_swept_by_nights_that_know_of_no_parts_too(tmp_path: Path) -> None:
    """The manifest of a version before there were parts names none."""
    this = night(tmp_path, log())
    this.folder = tmp_path / "runs" / "new"
    run(this)
    old = tmp_path / "runs" / "old" / "ingest"
    old.mkdir(parents=True)
    (old / "_stage.json").write_text('{"facts": {}}')
    forget_runs(this)
    assert run(Night(this.settings, tmp_path / "runs" / "next", this.inputs, this.ledger_sequence, 0.0)).facts[
        "partitions"
    ] == {"read": 0, "reused": 9}


def test_many_bad_files_in_one_folder_are_read_twice_and_no_more(tmp_path: Path) -> None:
    this = night(tmp_path, log(), bad_files_allowed=1.0)
    good = next((tmp_path / "shop" / "log").rglob("*.parquet"))
    for number in range(40):
        (good.parent / f"bad-{number}.parquet").write_bytes(good.read_bytes()[: 100 + number])
    this.inputs |= digests(this.settings)
    opened: list[str] = []
    real = split_module.read_rows

    def counted(filesystem: Any, path: str, *rest: Any) -> Any:
        opened.append(path)
        return real(filesystem, path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "read_rows", counted)
        facts = run(this).facts
    assert len(facts["refused"]) == 40
    assert max(Counter(opened).values()) == 2


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
