"""A partition becomes a part: pseudonyms for ids, runs in order, and what was wrong beside it."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import fs

from engine.activity.files import LogFile
from engine.activity.parts import Partition, PartStore, partitions
from engine.activity.people import People
from engine.activity.settle import settle_bucket
from engine.activity.split import read_partition
from engine.identity import KEY_BYTES
from tests.activity.logs import ALL, KEYS, PROFILE, SENSITIVE, TRAIN, Parts, Row, Shop, micros, row, write


def listed(path: Path, root: Path) -> LogFile:
    return LogFile(str(path), path.relative_to(root).as_posix(), path.stat().st_size, 0)


def people_of(parts: Parts) -> list[bytes]:
    return [key for run in parts.all_runs() for key in run.keys.tolist()]


# --- partitions and runs ----------------------------------------------------------------------------------------------


def test_files_of_one_date_are_one_partition_and_files_without_a_date_one_each() -> None:
    names = [
        "log/date=2026-01-02/b.parquet",
        "log/date=2026-01-01/a.parquet",
        "log/date=2026-01-02/a.parquet",
        "x/1.parquet",
        "x/2.parquet",
    ]
    found = partitions(LogFile(f"/{name}", name, 1, 0) for name in names)
    assert [(part.name, len(part.files)) for part in found] == [
        ("log/date=2026-01-01", 1), ("log/date=2026-01-02", 2), ("x/1.parquet", 1), ("x/2.parquet", 1),
    ]  # fmt: skip
    assert [str(part.day) for part in found] == ["2026-01-01", "2026-01-02", "None", "None"]


@pytest.mark.parametrize(
    "name", ["log/date=2026-13-45", "log/date=", "log/date=today", "date=__HIVE_DEFAULT_PARTITION__"]
)
def test_a_folder_named_by_no_date_is_a_partition_all_the_same(name: str) -> None:
    (found,) = partitions([LogFile(f"/{name}/a.parquet", f"{name}/a.parquet", 1, 0)])
    assert (found.name, found.day) == (name, None)


@pytest.mark.parametrize("run", [1, 3, 1000])
def test_a_run_is_sorted_by_person_and_time_with_the_anonymous_behind(shop: Shop, run: int) -> None:
    draw = random.Random(3)
    rows = [row(draw.choice("abcd"), user_id=draw.choice(["ann", "bob", None]), day=draw.random()) for _ in range(40)]
    parts = shop.split(rows[:25], rows[25:], together=True, run=run)
    (about,) = parts.abouts
    runs = parts.all_runs()
    assert (about.rows, about.events, about.runs) == (40, 40, len(runs))
    assert (len(runs) > 1) == (run < 25)
    for each in runs:
        keys = each.keys.tolist()
        assert keys == sorted(set(keys)) and len(keys) == len(each.ends)
        start = 0
        for end in each.ends.tolist():
            assert end > start and (np.diff(each.column("ts")[start:end]) >= 0).all()
            start = end
        assert (np.diff(each.column("mark")[start:].astype(np.float64)) >= 0).all()


@pytest.mark.parametrize("buckets", [1, 3, 7, 65_536, 100_000])
def test_a_person_s_rows_lie_in_one_bucket_and_buckets_are_ranges_of_keys(shop: Shop, buckets: int) -> None:
    people = [f"person {number}" for number in range(20)]
    shop.granted = dict.fromkeys(people, ALL)
    parts = shop.split([row(user_id=name) for name in people], [row(user_id=name, day=1) for name in people])
    tonight = shop.tonight(parts, 59, (59,), 30)
    keys = sorted(KEYS.rotating.derive_many(people))
    asked = sorted({int.from_bytes(key[:2]) * buckets // 65_536 for key in keys} | {0, buckets - 1})
    found = [settle_bucket(bucket, buckets, tonight).activity["user_key"].to_pylist() for bucket in asked]
    assert [key for bucket in found for key in bucket] == [key for key in keys for _ in range(2)]


@pytest.mark.parametrize("buckets", [1, 3, 8])
def test_each_anonymous_row_lies_in_one_bucket(shop: Shop, buckets: int) -> None:
    shop.buckets = buckets
    found = shop.settle([row(item, user_id=None, day=day) for item in "abcd" for day in range(10)])
    assert sum(each.counts["-anonymous"] for each in found) == 40
    assert all(each.activity.num_rows == 0 for each in found)


def test_a_person_is_named_by_the_rotating_key_and_the_ledger_s_is_sealed(shop: Shop) -> None:
    parts = shop.split([row(user_id="ann"), row(user_id="bob", day=1), row(user_id="ann", day=2)])
    assert people_of(parts) == sorted(KEYS.rotating.derive_many(["ann", "bob"]))
    (run,) = parts.all_runs()
    stable = KEYS.unsealed(run.keys.tobytes(), run.seals.tobytes())
    order = sorted(["ann", "bob"], key=KEYS.rotating.derive)
    assert stable == b"".join(KEYS.stable.derive_many(order))
    written = b"".join(path.read_bytes() for path in parts.store.root.rglob("*") if path.is_file())
    assert not [key for key in KEYS.stable.derive_many(["ann", "bob"]) if key in written]


@pytest.mark.parametrize("twice", [False, True])
def test_a_flood_from_one_person_is_cut_and_nobody_else_loses_an_event(shop: Shop, twice: bool) -> None:
    shop.data.events_per_user = 5
    flood = [row("abcd"[at % 4], "view", at / 1000, source="web") for at in range(1000)]
    rest = [row("a", "purchase", 0, source="store"), *(row(day=day, user_id="bob") for day in range(30))]
    parts = shop.split(flood + rest, *([flood] if twice else []), run=10_000)
    (run, *_) = parts.all_runs()
    assert len(run.column("ts")) == 50 + 31
    settled = settle_bucket(0, 1, shop.tonight(parts, 59, (59,), 30))
    kept = Counter(settled.activity["user_key"].to_pylist())
    assert kept == {KEYS.rotating.derive("ann"): 5, KEYS.rotating.derive("bob"): 5}
    latest = max(each.as_py() for each in settled.activity["ts"])
    assert latest.timestamp() * 1e6 == micros(29)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_the_part_says_what_it_read_by_source_event_and_day(shop: Shop) -> None:
    rows = [
        row(day=3),
        row(item="gone"),
        row(event="vew"),
        row(day=5),
        row(item="gone"),
        row(source="Store"),
        row(day=5),
    ]
    about = shop.split(rows[:3], [], rows[3:], together=True).abouts[0]
    bad = {"unknown_event": 1, "unknown_item": 2, "unknown_source": 1}
    assert (about.rows, about.counts) == (7, {"-duplicate": 1} | bad)
    assert about.near == {"vew": "view", "Store": "store"}
    assert about.latest == {"0": micros(5)}
    day = micros(0) // 86_400_000_000
    assert about.tally == [[day, 0, 0, 2], [day + 3, 0, 0, 1], [day + 5, 0, 0, 2]]  # an unknown item is a sound row
    assert about.bad == {"000.parquet": 2, "002.parquet": 2}


def test_the_quarantine_names_file_line_and_reason(shop: Shop) -> None:
    parts = shop.split([row(), row(item="gone")], [row(item=None)], together=True)
    found = pl.read_parquet(parts.store.root / parts.keys[0] / "quarantine.parquet")
    assert found.rows() == [("000.parquet", 1, "unknown_item"), ("001.parquet", 0, "no_item_id")]


def test_a_file_that_breaks_off_is_quarantined_whole_and_the_others_are_read(shop: Shop) -> None:
    folder = shop.fresh("log")
    paths = [write(folder / f"{name}.parquet", [row(day=at)] * (at + 1)) for at, name in enumerate("abc")]
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    files = tuple(listed(path, folder) for path in paths)
    store = PartStore(shop.fresh("store"))
    with store.draft("key") as place:
        about = read_partition(Partition("p", files), fs.LocalFileSystem(), shop.rules(), People(KEYS), place)
    assert list(about.refused) == ["b.parquet"]
    assert about.refused["b.parquet"]["why"] == "bad_footer"
    assert (about.rows, about.events) == (4, 2)  # whole-row duplicates count once
    assert pl.read_parquet(store.root / "key" / "quarantine.parquet").rows() == [("b.parquet", None, "bad_footer")]


def test_a_log_without_a_usable_row_leaves_nothing_but_the_report(shop: Shop) -> None:
    for rows in ([], [row(item="gone")]):
        parts = shop.split(rows)
        (about,) = parts.abouts
        assert (about.rows, about.events, about.runs) == (len(rows), 0, 0)
        assert not list(parts.store.root.rglob("*.arrow"))


# --- consent ----------------------------------------------------------------------------------------------------------


def purposes(shop: Shop, rows: list[Row]) -> list[tuple[int, bool, bool]]:
    """Source, trainable and profilable of each event kept."""
    (settled,) = shop.settle(rows)
    return sorted(
        tuple(each.values()) for each in settled.activity.select(["source", "trainable", "profilable"]).to_pylist()
    )


@pytest.mark.parametrize(
    ("granted", "web", "store"),
    [
        (ALL, (True, True), (True, True)),
        (TRAIN[0], (True, False), (False, False)),
        (PROFILE[1], (False, False), (False, True)),
        (TRAIN[0] | PROFILE[0], (True, True), (False, False)),
        (0, (False, False), (False, False)),
    ],
)
def test_a_row_may_be_used_for_what_its_own_source_was_granted(
    shop: Shop, granted: int, web: tuple[bool, bool], store: tuple[bool, bool]
) -> None:
    shop.granted = {"ann": granted}
    expected = [(source, *may) for source, may in ((0, web), (1, store)) if any(may)]
    assert purposes(shop, [row(source="web"), row(source="store")]) == expected


def test_nothing_is_assumed_of_somebody_whom_the_ledger_does_not_know(shop: Shop) -> None:
    for granted in ({}, {"bob": ALL}):
        shop.granted = granted
        assert purposes(shop, [row()]) == []


def test_a_purpose_that_needs_several_grants_needs_them_all(shop: Shop) -> None:
    wide = 2**63 | 2**40
    for granted, allowed in ((2**63, False), (2**40, False), (wide, True)):
        shop.granted = {"ann": granted}
        tonight = shop.tonight(shop.split([row()]), 59, (59,), 30)
        object.__setattr__(tonight, "profilable", (wide, wide))
        assert settle_bucket(0, 1, tonight).activity["profilable"].to_pylist() == [True] * allowed


def test_events_of_sensitive_items_ask_for_a_grant_of_their_own(shop: Shop) -> None:
    """Item b is sensitive; ann lets every source use that too, bob does not."""
    shop.sensitive = ("b",)
    shop.granted = {"ann": ALL | SENSITIVE, "bob": ALL}
    (settled,) = shop.settle([row(item, user_id=name) for name in ("ann", "bob") for item in "ab"])
    found = {(each["user_key"], each["item"]) for each in settled.activity.to_pylist() if each["trainable"]}
    ann, bob = KEYS.rotating.derive_many(["ann", "bob"])
    assert found == {(ann, 0), (ann, 1), (bob, 0)}


# --- privacy ----------------------------------------------------------------------------------------------------------


def test_no_raw_id_is_in_anything_that_is_written(shop: Shop) -> None:
    draw = random.Random(11)
    people = ["".join(draw.choices(string.ascii_letters + string.digits, k=16)) for _ in range(60)]
    shop.granted = dict.fromkeys(people[:30], ALL)
    rows = [row(draw.choice("abcd"), user_id=name, day=draw.random() * 50) for name in people for _ in range(5)]
    rows += [row(user_id=name, event_id=f"{name}-1", session_id=name) for name in people]
    rows += [
        row(user_id=name) | bad for name in people for bad in ({"item_id": name}, {"event": name}, {"source": name})
    ]
    rows += [row(user_id=name * 17) for name in people]
    parts = shop.split(rows[::2], rows[1::2])
    assert not any(about.near for about in parts.abouts)
    written = [path for path in parts.store.root.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".arrow", ".parquet", ".json"}
    for path in written:
        if path.suffix == ".json":
            shown = json.dumps(json.loads(path.read_text())).encode()
        else:
            table = pl.read_ipc(path) if path.suffix == ".arrow" else pl.read_parquet(path)
            shown = str(table.to_dict(as_series=False)).encode()  # what compression hides from a search of the bytes
        assert not [name for name in people if name.encode() in shown or name.encode() in path.read_bytes()], path


def test_pseudonyms_are_derived_alike_whatever_was_met_before() -> None:
    names = [f"person {at}" for at in range(300)]
    fresh = People(KEYS)
    for batch in (names[:100], names[50:200], names[::-1], ["", None, "a\0", *names[:3]], []):
        made, bad = fresh.of(pa.array(batch, pa.string()))
        sound = [name is not None and name in names for name in batch]
        assert bad.tolist() == [not each for each in sound]
        expected = [KEYS.pseudonyms([name])[0] if name in names else b"\0" * 2 * KEY_BYTES for name in batch]
        assert [row.tobytes() for row in made] == expected
