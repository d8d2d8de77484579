"""What is damaged, foreign or too new is refused by name; what is wrong never gets written."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine import schema
from engine.errors import NoSnapshot, SnapshotCorrupt, SnapshotError, SnapshotTooNew
from engine.snapshot import About, Lineage, Manifest, Snapshot, SnapshotWriter, manifest
from engine.snapshot.layout import file_tables
from engine.snapshot.pointer import Pointer
from tests.snapshot_builder import User, build_snapshot, candidate, item_table, user_tables

USERS: dict[bytes, User] = {
    bytes([n]) * 16: {"candidates": [candidate(n, ("similar", 1, 0.5))], "seen": [{"item": n}]} for n in range(6)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_snapshot(tmp_path / "s", users=USERS, shards=2)
    return tmp_path / "s"


@pytest.mark.parametrize("name", sorted(file_tables(2)))
def test_a_flipped_bit_anywhere_is_found_and_the_file_named(folder: Path, name: str) -> None:
    path = folder / name
    sound = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(sound), 8):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << (int(place) % 8)
        path.write_bytes(damaged)
        with pytest.raises(SnapshotCorrupt, match=name):
            Snapshot.open(folder)
    path.write_bytes(sound)
    Snapshot.open(folder).close()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 100, -8, -1])
def test_a_cut_file_is_found_even_without_hashing(folder: Path, kept: int, verify: bool) -> None:
    path = folder / "candidates-00001.arrow"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SnapshotCorrupt, match=r"candidates-00001\.arrow: expected \d+ bytes, found"):
        Snapshot.open(folder, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("table", ["users", "candidates", "seen", "mix"])
def test_swapped_shards_are_found_even_without_hashing(folder: Path, table: str, verify: bool) -> None:
    first, second = folder / f"{table}-00000.arrow", folder / f"{table}-00001.arrow"
    one, other = first.read_bytes(), second.read_bytes()
    assert len(one) == len(other)
    first.write_bytes(other)
    second.write_bytes(one)
    with pytest.raises(SnapshotCorrupt, match=f"{table}-00000"):
        Snapshot.open(folder, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["items.arrow", "users-00001.arrow", "tower.arrow"])
def test_a_missing_file_is_named(folder: Path, name: str, verify: bool) -> None:
    (folder / name).unlink()
    with pytest.raises(SnapshotCorrupt, match=rf"{name}: it is missing"):
        Snapshot.open(folder, verify=verify)


def test_a_newer_format_is_refused_naming_both(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    newer = {"format_version": record["format_version"] + 1, "nothing": "else is known of it"}
    (folder / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(SnapshotTooNew, match=r"format 2; this reader knows up to 1.*Upgrade"):
        Snapshot.open(folder)


def test_a_field_that_a_later_version_of_the_format_adds_is_passed_over(folder: Path) -> None:
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    record["later"] = 1
    record["lineage"]["noise"] = "gaussian"
    record["snapshot_id"] = manifest._id(record)
    path.chmod(0o600)
    path.write_text(json.dumps(record))
    with Snapshot.open(folder) as snapshot:
        assert snapshot.manifest.snapshot_id == record["snapshot_id"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', '{"format_version": 1}', '{"format_version": "x"}', "\0"])
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SnapshotCorrupt, match=r"manifest\.json"):
        Snapshot.open(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 5), ("shards", 1), ("metrics", {"recall@20": 1.0}), ("profiles", []), ("files", {})]
)
def test_a_manifest_edited_by_hand_is_refused(folder: Path, field: str, value: Any) -> None:
    record = json.loads((folder / "manifest.json").read_text()) | {field: value}
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(SnapshotCorrupt, match="its content gives"):
        Snapshot.open(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created_at", "2026-01-31T00:00:00"),
        ("as_of", "0001-01-01T00:00:00+14:00"),
        ("shards", 1.0),
        ("width", 2**31 - 1),
        ("decays", []),
    ],
)
def test_an_odd_field_is_told_even_under_an_id_that_fits(folder: Path, field: str, value: Any) -> None:
    record = json.loads((folder / "manifest.json").read_text()) | {field: value}
    with contextlib.suppress(OverflowError):
        record["snapshot_id"] = manifest._id(record)
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(SnapshotError):
        Snapshot.open(folder)


@pytest.mark.parametrize("text", ['{"format_version": 1e999}', "[" * 200_000])
def test_what_cannot_be_parsed_is_told(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SnapshotCorrupt):
        Snapshot.open(folder)
    with pytest.raises(SnapshotCorrupt):
        Pointer.parse(text.encode(), "current.json")


def test_a_folder_without_a_manifest_is_no_snapshot(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    for place in (folder, folder / "nowhere", folder / "items.arrow"):
        with pytest.raises(NoSnapshot, match=r"holds no manifest\.json"):
            Snapshot.open(place)


def test_a_file_of_other_columns_is_refused_with_expected_and_found(folder: Path) -> None:
    other = pa.table({"x": pa.array([1], pa.int8())})
    path = folder / "mix-00000.arrow"
    with pa.ipc.new_file(str(path), other.schema) as sink:
        sink.write_table(other)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name]["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(_resealed(manifest))
    with pytest.raises(SnapshotCorrupt, match=r"mix-00000\.arrow: expected the columns category int32.*found x int8"):
        Snapshot.open(folder, verify=False)


def _resealed(record: dict[str, Any]) -> str:
    try:
        Manifest.from_json(json.dumps(record))
    except SnapshotCorrupt as error:
        record["snapshot_id"] = error.message.rsplit(" ", 1)[1].rstrip(".")
    return json.dumps(record)


# --- at the writer's door -------------------------------------------------------------------------------------------


def about(**changed: Any) -> About:
    sound: dict[str, Any] = {
        "as_of": datetime(2026, 1, 31, tzinfo=UTC), "lineage": Lineage(run="r"), "vocabulary": {}, "profiles": (),
        "decays": (7.0, 90.0), "width": 4, "neighbours": 2, "shards": 2,
    }  # fmt: skip
    return About(**(sound | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"as_of": datetime(2026, 1, 31)}, "without a time zone"),
        ({"decays": ()}, "decays is empty"),
        ({"width": 0}, "width is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"shards": -1}, "shards is -1"),
        ({"metrics": {"recall@20": float("nan")}}, "metric 'recall@20' is nan"),
    ],
)
def test_a_manifest_that_cannot_hold_is_refused_before_anything_is_written(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(SnapshotError, match=message):
        about(**changed)


def test_a_vocabulary_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="not JSON"):
        build_snapshot(tmp_path, vocabulary={"sources": {1, 2}})


def _replace(table: pa.Table, name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    place = table.schema.get_field_index(name)
    kind = kind or table.schema.field(place).type
    return table.set_column(place, pa.field(name, kind), pa.array(values, kind))


KEYS = sorted(USERS)
FAULTS: dict[str, tuple[int, Any, str]] = {  # which of the six tables, what is done to it, what the error says
    "a missing column": (2, lambda t: t.drop_columns(["last"]), r"sums-00000\.arrow: expected column 'last' of int64"),
    "an extra column": (3, lambda t: t.append_column("x", t.column("item")), "expected .*found .*x int32"),
    "another type": (
        3,
        lambda t: _replace(t, "basis", [0] * 6, pa.int64()),
        "of uint64, found column 'basis' of int64",
    ),
    "nulls": (3, lambda t: _replace(t, "item", [None] + [0] * 5), "column 'item': expected no nulls"),
    "nulls in a list": (1, lambda t: _replace(t, "score", [[0, None, 0]] * 6), "column 'score': expected no nulls"),
    "not a number": (1, lambda t: _replace(t, "score", [[float("nan")] * 3] * 6), "column 'score': expected finite"),
    "keys out of order": (0, lambda t: _replace(t, "user_key", KEYS[::-1]), "'user_key': expected ascending.* row 1 "),
    "a key twice": (0, lambda t: _replace(t, "user_key", [*KEYS[:3], KEYS[2], *KEYS[4:]]), "distinct, found row 3 "),
    "a gap": (0, lambda t: _replace(t, "seen_start", [0, 1, 2, 4, 5, 6]), "spans of 'seen'"),
    "rows of nobody": (3, lambda t: pa.concat_tables([t, t]), "spans of 'seen': expected .* over 12 rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_with_a_fault_is_refused_and_nothing_of_it_written(tmp_path: Path, fault: str) -> None:
    which, change, message = FAULTS[fault]
    tables = list(user_tables(USERS))
    tables[which] = change(tables[which])
    writer = SnapshotWriter(tmp_path, about())
    with pytest.raises(SnapshotError, match=message):
        writer.user_shard(0, *tables)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_beyond_the_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="no user shard 2: the manifest plans 2"):
        SnapshotWriter(tmp_path, about()).user_shard(2, *user_tables({}))


def test_items_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"items\.arrow: column 'item_id': expected ascending"):
        SnapshotWriter(tmp_path, about()).items(item_table(3, item_id=["b", "a", "c"]))


def test_a_fallback_out_of_order_is_refused(tmp_path: Path) -> None:
    rows = [{"region": "", "category": -1, "item": item, "score": 0.1 + item} for item in range(2)]
    with pytest.raises(SnapshotError, match=r"fallback\.arrow: expected rows by region, category"):
        SnapshotWriter(tmp_path, about()).fallback(pa.Table.from_pylist(rows, schema=schema.FALLBACK))


def test_a_tower_of_doubles_or_infinities_is_refused(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path, about())
    with pytest.raises(SnapshotError, match="array 'w': expected float32, found float64"):
        writer.tower({"w": np.ones(2)})  # type: ignore[dict-item]
    with pytest.raises(SnapshotError, match=r"tower\.arrow: column 'values': expected finite numbers, found inf"):
        writer.tower({"w": np.array([1, np.inf], np.float32)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": {b"k" * 16: {"seen": [{"item": 3}]}}}, r"seen-00000\.arrow: column 'item': .* 0\.\.2, found 3\.\.3"),
        ({"users": {b"k" * 16: {"mix": [{"category": 2}]}}}, r"mix-00000\.arrow: column 'category': expected -1\.\.1"),
        ({"users": {b"k" * 16: {"candidates": [candidate(0, ("similar", 1, 1.0, 9))]}}}, r"ways.*'evidence'.* -1\.\.2"),
        ({"fallback": {-1: [7]}}, r"fallback\.arrow: column 'item': expected 0\.\.2, found 7"),
        ({"item_columns": {"root_category": [0, 1, 5]}, "fallback": {}}, r"items\.arrow: column 'root_category'"),
    ],
)  # fmt: skip
def test_a_code_outside_its_table_never_gets_a_manifest(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    if "item_columns" in arguments:
        arguments["item_columns"] = arguments["item_columns"] | {"categories": [["a"]] * 3}
    with pytest.raises(SnapshotError, match=message):
        build_snapshot(tmp_path, items=3, **arguments)
    assert not (tmp_path / "manifest.json").exists()


def test_finishing_without_every_file_names_what_lacks(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path, about(shards=1))
    writer.user_shard(0, *user_tables({}))
    writer.items(item_table(1))
    with pytest.raises(SnapshotError, match=r"lacks categories\.arrow, fallback\.arrow, tower\.arrow"):
        writer.finish()


def test_a_stray_shard_of_an_earlier_attempt_is_refused(tmp_path: Path) -> None:
    SnapshotWriter(tmp_path, about(shards=2)).user_shard(1, *user_tables({}))
    with pytest.raises(SnapshotError, match="of no table or of a shard beyond 1"):
        build_snapshot(tmp_path, shards=1)


def test_shards_that_overlap_are_refused(tmp_path: Path) -> None:
    for number in (0, 1):  # each by a writer of its own, as the tasks of a cluster do
        SnapshotWriter(tmp_path, about()).user_shard(number, *user_tables(USERS))
    writer = SnapshotWriter(tmp_path, about())
    writer.items(item_table(6))
    writer.categories(pa.table({"name": ["a", "b"]}, schema=schema.CATEGORIES))
    writer.fallback(schema.FALLBACK.empty_table())
    writer.tower({})
    with pytest.raises(SnapshotError, match=r"users-00001\.arrow starts at key 0000.* not above the last key"):
        writer.finish()


def test_a_finished_snapshot_is_not_written_again(tmp_path: Path) -> None:
    build_snapshot(tmp_path)
    with pytest.raises(SnapshotError, match="holds a finished snapshot"):
        build_snapshot(tmp_path)
