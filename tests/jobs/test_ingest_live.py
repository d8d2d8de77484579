"""What servers took by day is read beside the team's own log, by the contract, and what both tell counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import jobs.settings
from engine.activity.columns import AT_DEPTH
from engine.activity.files import LIVE, live_files
from engine.activity.mapping import DataSettings, EventRule
from engine.activity.parts import partitions
from engine.errors import DataError, QuarantineError, SettingsError
from engine.schema import CATALOGUE, EVENTS, PURCHASE
from jobs.ingest import popularity
from jobs.launch import typed
from jobs.night import Night, digests, table
from tests.activity.logs import Row, micros, row, write
from tests.jobs.ingest_nights import PEOPLE, checksums, log, night, run

# A log that looks otherwise in everything: names, a time of whole seconds, events and a source for all of it.
THEIRS = pa.schema(
    [("who", pa.string()), ("what", pa.string()), ("did", pa.string()), ("at", pa.int64()), ("no", pa.string())]
)
MAPPED: dict[str, Any] = {
    "columns": {"user_id": "who", "item_id": "what", "event": "did", "ts": "at", "event_id": "no"},
    "constants": {"source": "store"},
    "time_unit": "s",
    "events": {"sold": EventRule(means="purchase")},
}


def ship(folder: Path, rows: list[Row], name: str = "live-one-1") -> None:
    """Events as a server leaves them, under the dates of their times."""
    for day in {each["ts"].date() for each in rows}:
        write(
            folder / "events" / f"date={day}" / f"{name}.parquet", [each for each in rows if each["ts"].date() == day]
        )


def beside(folder: Path, rows: list[Row], **data: Any) -> Night:
    """A night on a log of the contract and what was shipped."""
    return night(folder, rows, live=str(folder / "events"), **data)


def theirs(folder: Path, rows: list[tuple[str, str, float, str]], **data: Any) -> Night:
    """A night on a log that is mapped: person, item, day and number of a sale."""
    this = night(folder, [], live=str(folder / "events"), **MAPPED | data)
    told = [
        {"who": who, "what": what, "did": "sold", "at": micros(day) // 10**6, "no": number}
        for who, what, day, number in rows
    ]
    write(folder / "shop" / "log" / "sales.parquet", told, THEIRS)
    this.inputs |= digests(this.settings)
    return this


def kept(this: Night) -> list[tuple[str, str, str]]:
    """Item, event and source of what is left, in the order of the shards."""
    names = finished_buckets(this)
    shards = pa.concat_tables([table(this.folder / "ingest" / f"activity-{name}.arrow") for name in names])
    return sorted(
        ("abcd"[each["item"]], EVENTS[each["event"]], ("web", "store")[each["source"]]) for each in shards.to_pylist()
    )


def finished_buckets(this: Night) -> list[str]:
    return sorted(
        path.stem.removeprefix("activity-") for path in (this.folder / "ingest").glob("activity-bucket-*.arrow")
    )


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """A deployment whose people are known, with a mapped log of three sales."""
    run(night(tmp_path, log()))
    for path in (tmp_path / "shop" / "log").rglob("*.parquet"):
        path.unlink()
    return tmp_path


SALES = [(PEOPLE[0], "a", 1.0, "s1"), (PEOPLE[1], "b", 2.0, "s2"), (PEOPLE[2], "c", 3.0, "s3")]


def test_live_events_are_read_by_the_contract_whatever_the_team_s_own_log_looks_like(mapped: Path) -> None:
    write(mapped / "shop" / "log" / "sales.parquet", [], THEIRS)
    ship(
        mapped,
        [row("d", "view", 2, user_id=PEOPLE[0], event_id="l1"), row("a", "like", 4, user_id=PEOPLE[1], event_id="l2")],
    )
    this = theirs(mapped, SALES)
    facts = run(this).facts
    assert (facts["rows"], facts["events"], facts["as_of"]) == (5, 5, micros(4))
    assert kept(this) == [
        ("a", "like", "web"), ("a", "purchase", "store"), ("b", "purchase", "store"), ("c", "purchase", "store"),
        ("d", "view", "web"),
    ]  # fmt: skip


def test_an_event_that_the_team_logs_as_well_counts_once(mapped: Path) -> None:
    write(mapped / "shop" / "log" / "sales.parquet", [], THEIRS)
    live = [
        row("a", "purchase", 1, user_id=PEOPLE[0], event_id="s1", source="store"),
        row("b", "purchase", 2, user_id=PEOPLE[3], event_id="s2", source="store"),  # somebody else's
        row("c", "purchase", 3, user_id=None, event_id="s3", source="store"),  # nobody's
    ]
    ship(mapped, live)
    ship(mapped, live, "live-two-1")  # a segment that was shipped again
    this = theirs(mapped, SALES)
    facts = run(this).facts
    assert facts["counts"]["-duplicate"] == 4
    assert (facts["events"], facts["counts"]["-anonymous"]) == (4, 1)
    assert popularity(this, "full")["people"].to_pylist() == [1, 2, 1]


def test_the_same_date_in_both_is_two_partitions_and_either_is_read_again_alone(tmp_path: Path) -> None:
    ship(tmp_path, [row("d", "view", 3, user_id=PEOPLE[1], event_id="l1")])
    first = run(beside(tmp_path, log())).facts
    assert first["partitions"] == {"read": 10, "reused": 0}
    assert "live:/date=2026-01-04/live-one-1.parquet" in digests(beside(tmp_path, []).settings)
    ship(tmp_path, [row("d", "click", 3.5, user_id=PEOPLE[1], event_id="l2")], "live-two-1")
    late = run(beside(tmp_path, [])).facts
    assert late["partitions"] == {"read": 1, "reused": 9}
    assert (late["late"], late["events"]) == ([LIVE + "date=2026-01-04"], 22)
    again = run(beside(tmp_path, [row("a", "view", 3.6, user_id=PEOPLE[1]), *log()[3::9]])).facts
    assert again["partitions"] == {"read": 1, "reused": 9}


def test_in_which_folder_an_event_lies_changes_nothing_of_what_comes_of_it(tmp_path: Path) -> None:
    rows = [each | {"event_id": f"e{at}"} for at, each in enumerate(log())]
    this = beside(tmp_path, rows)
    run(this)
    before = checksums(this)
    for path in (tmp_path / "shop" / "log").rglob("*.parquet"):
        path.unlink()
    ship(tmp_path, rows[1::2])
    this = beside(tmp_path, rows[::2])
    run(this)
    assert checksums(this) == before
    ship(tmp_path, rows, "live-two-1")
    this = beside(tmp_path, rows)
    run(this)
    assert checksums(this) == before


def test_the_night_s_time_is_the_last_event_of_both_and_a_new_file_is_another_run(tmp_path: Path) -> None:
    this = beside(tmp_path, log())
    assert run(this).facts["as_of"] == micros(8)
    before = digests(this.settings)
    ship(tmp_path, [row("a", "view", 8.5, user_id=PEOPLE[0], event_id="l")])
    assert digests(this.settings) != before
    after = run(beside(tmp_path, [])).facts
    assert after["as_of"] == micros(8.5)


@pytest.mark.parametrize("how", ["absent", "empty", "off"])
def test_without_live_events_a_night_is_what_it_was(tmp_path: Path, how: str) -> None:
    plain = night(tmp_path, log())
    run(plain)
    before = checksums(plain)
    if how == "empty":
        (tmp_path / "events").mkdir()
    if how == "off":
        ship(tmp_path, [row("a", "view", 8.5, user_id=PEOPLE[0])])
    this = night(tmp_path, [], live="" if how == "off" else str(tmp_path / "events"))
    assert digests(this.settings) == digests(plain.settings)
    run(this)
    assert checksums(this) == before


def test_a_log_with_an_order_in_place_of_times_refuses_live_events_until_they_are_left_out(mapped: Path) -> None:
    data = {"columns": {name: theirs for name, theirs in MAPPED["columns"].items() if name != "ts"}, "order": "at"}
    plain = DataSettings(path=str(mapped / "shop"), live=str(mapped / "events"), **MAPPED | data | {"time_unit": ""})
    plain.check()
    assert live_files(plain) == []
    ship(mapped, [row("a", event_id="l")])
    with pytest.raises(SettingsError, match=r"data\.order .* have times"):
        live_files(plain)
    plain.live = ""
    assert live_files(plain) == []


def test_a_folder_of_the_team_s_cannot_pass_for_live_events(tmp_path: Path) -> None:
    this = beside(tmp_path, log())
    write(tmp_path / "shop" / "live:" / "date=2026-01-01" / "x.parquet", [row()])
    this.settings.data.log = ["log", "live:"]
    with pytest.raises(DataError, match="another name"):
        digests(this.settings)


def test_bad_rows_and_files_of_servers_are_told_by_name_and_count_in_the_shares(tmp_path: Path) -> None:
    ship(tmp_path, [row("gone", "view", 3, user_id=PEOPLE[1], event_id="l1")])
    broken = tmp_path / "events" / "date=2026-01-05" / "live-one-2.parquet"
    write(broken, [row("a")])
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "events" / "date=2026-01-05" / ".live-one-3.parquet").write_bytes(b"being written")
    facts = run(beside(tmp_path, log(), bad_rows_allowed=0.1, bad_files_allowed=0.1)).facts
    assert (facts["files"], list(facts["refused"])) == (11, ["live:/date=2026-01-05/live-one-2.parquet"])
    assert facts["bad_rows"] == {"live:/date=2026-01-04/live-one-1.parquet": 1}
    with pytest.raises(QuarantineError, match="unknown_item 1"):
        run(beside(tmp_path, [], bad_files_allowed=0.1))


def test_partitions_of_both_are_told_apart_and_know_their_day(tmp_path: Path) -> None:
    ship(tmp_path, [row(day=1), row(day=2)])
    found = partitions(live_files(DataSettings(path=str(tmp_path), live=str(tmp_path / "events"))))
    assert [(part.name, str(part.day), part.live) for part in found] == [
        (f"live:/date={day}", day, True) for day in ("2026-01-02", "2026-01-03")
    ]


def test_a_dismissed_category_and_a_gift_of_a_server_reach_the_night(tmp_path: Path) -> None:
    this = beside(tmp_path, log())
    paths = [{"item_id": name, "title": name, "categories": ["all", name]} for name in "abcd"]
    write(tmp_path / "shop" / "catalogue.parquet", paths, CATALOGUE)
    dismiss = row(None, "dismiss_category", 8.2, user_id=PEOPLE[0], event_id="l1", flags=["category:c"])
    ship(tmp_path, [dismiss, row("a", "gift", 8.3, user_id=PEOPLE[0], event_id="l2")])
    this.inputs |= digests(this.settings)
    facts = run(this).facts
    assert facts["by_event"]["dismiss_category"] == 1
    key = this.keys.rotating.derive(PEOPLE[0])
    shards = pa.concat_tables([table(this.folder / "ingest" / f"activity-{name}.arrow") for name in facts["buckets"]])
    mine = shards.filter(pc.equal(shards["user_key"], pa.scalar(key, pa.binary(16)))).to_pylist()
    assert [(each["item"], each["event"], each["weight"]) for each in mine] == [
        (0, PURCHASE, 0.0), (2, AT_DEPTH + 2, 0.0), (0, EVENTS.index("gift"), 0.0),
    ]  # fmt: skip


def test_the_recipe_reads_what_the_server_ships_by_default() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.merge(OmegaConf.structured(jobs.settings.Settings), {"out": "somewhere"})
    assert typed(config, jobs.settings.Settings).data.live == "somewhere/events"


def test_no_raw_id_of_a_live_event_is_left_behind(tmp_path: Path) -> None:
    ship(
        tmp_path,
        [row("d", "view", 3, user_id="a person of the day", event_id="l1"), row("x", user_id="another of the day")],
    )
    run(beside(tmp_path, log(), bad_rows_allowed=0.5))
    for path in [*(tmp_path / "run").rglob("*"), *(tmp_path / "activity").rglob("*")]:
        content = path.read_bytes() if path.is_file() else b""
        content += str(pq.read_table(path).to_pydict()).encode() if path.suffix == ".parquet" else b""
        assert b"of the day" not in content, path
