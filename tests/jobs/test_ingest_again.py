"""Night after night: what is new is read, and what comes of it is what one reading of everything comes to."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine.activity.split as split_module
import jobs.ingest as ingest_module
from engine.activity.parts import PartStore
from engine.consent import Change, Ledger, Vocabulary
from engine.errors import QuarantineError
from jobs.ingest import popularity
from jobs.night import Night, digests
from jobs.publish import forget_runs
from jobs.read_log import LogReader
from tests.activity.logs import START, row
from tests.jobs.ingest_nights import PEOPLE, add, checksums, log, night, night_again, run, stock
from tests.nights import ROOT


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


# What may happen between two nights: rows arrive, late or not; a day's files are replaced, or vanish; people decide; items
# come and go.
HAPPENS = st.one_of(
    st.tuples(st.just("arrive"), st.lists(DEEDS, max_size=12)),
    st.tuples(st.just("replace"), st.lists(DEEDS, min_size=1, max_size=3)),
    st.tuples(st.just("vanish"), st.integers(0, 11)),
    st.tuples(st.just("withdraw"), st.sampled_from(PEOPLE[:4])),
    st.tuples(st.just("erase"), st.sampled_from(PEOPLE[:4])),
    st.tuples(st.just("stock"), st.sampled_from(["abcd", "abcdx", "bcd"])),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights=st.lists(st.lists(HAPPENS, min_size=1, max_size=3), min_size=2, max_size=4))
def test_night_after_night_comes_to_what_one_full_reading_does(
    tmp_path_factory: pytest.TempPathFactory, nights: list[list[tuple[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("nights")
    rules: dict[str, Any] = {"retention_days": {"view": 3.0, "click": 0.5}, "bad_rows_allowed": 1.0}
    this = night(folder, [row("b", "purchase", 13.0)], **rules)
    for number, happened in enumerate(nights):
        for place, (what, how) in enumerate(happened):
            happen(this, what, how, f"{number}-{place}")
        found = []
        for name in ("kept", "fresh"):
            this = night_again(folder, name, number, **rules)
            facts = run(this).facts
            assert facts["rows"] == facts["events"] + sum(facts["counts"].values())
            found.append(checksums(this))
        assert found[0] == found[1]


def happen(this: Night, what: str, how: Any, name: str) -> None:
    folder = Path(this.settings.out)
    if what == "arrive":
        add(folder, how, f"arrival-{name}")
    elif what == "stock":
        stock(folder, how)
    elif what in ("replace", "vanish"):
        days = {each["ts"].date() for each in how} if what == "replace" else {START.date() + dt.timedelta(days=how)}
        for day in days:
            shutil.rmtree(folder / "shop" / "log" / f"date={day}", ignore_errors=True)
        add(folder, how if what == "replace" else [], f"instead-{name}")
    else:
        with contextlib.closing(
            Ledger.open(this.settings.store.ledger, Vocabulary(sources=("web", "store")))
        ) as ledger:
            key = this.keys.stable.derive(how)
            if what == "erase":
                ledger.erase(key, "person", "")
            else:
                ledger.record(key, [Change("train", "", False)], None, "test", "person", "", None)


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


SWEEPER = """
import sys
from pathlib import Path
from engine.activity.parts import PartStore
store, gone = PartStore(Path(sys.argv[1])), 0
print("at it", flush=True)
while not Path(sys.argv[2]).exists():
    gone += store.sweep(set())
print(gone)
"""


def test_a_sweep_beside_a_night_takes_nothing_that_the_night_uses(tmp_path: Path) -> None:
    this = night(tmp_path, log())
    run(this)
    expected, read = checksums(this), 0
    store, ends = tmp_path / "activity", tmp_path / "ends"
    sweeper = subprocess.Popen(
        [sys.executable, "-c", SWEEPER, str(store), str(ends)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert sweeper.stdout and sweeper.stdout.readline() == "at it\n"
        for number in range(25):
            two_days_ago = time.time() - 2 * 86_400
            for part in store.glob("*.*"):
                with contextlib.suppress(FileNotFoundError):  # it was at once
                    os.utime(part, (two_days_ago, two_days_ago))
            again = Night(this.settings, tmp_path / f"night-{number}", this.inputs, this.ledger_sequence, 0.0)
            read += run(again).facts["partitions"]["read"]
            assert checksums(again) == expected
        ends.touch()
        gone = int(sweeper.communicate(timeout=60)[0])
    finally:
        sweeper.kill()
        sweeper.wait()
    assert gone == read > 0  # what was taken before the night looked was read anew, and nothing else


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
