"""What was written is what is read."""

from __future__ import annotations

import json
import mmap
import shutil
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import schema
from engine.errors import SnapshotCorrupt, SnapshotError
from engine.schema import LANES, NEVER, NO_ITEM, NO_LANE
from engine.snapshot import About, Lineage, Manifest, Snapshot, SnapshotWriter
from tests.snapshot_builder import TABLES, User, build_snapshot, candidate, item_table

KEYS = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=4).map(lambda start: start.ljust(16, b"\0")),  # NumPy's text scalars drop trailing NULs
    st.binary(max_size=3).map(lambda start: start.ljust(16, b"\xff")),
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BASES = st.integers(0, 2**64 - 1)
MICROS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def users_of(draw: st.DrawFn, items: int, categories: int, decays: int, width: int) -> User:
    item, small = st.integers(0, items - 1), st.integers(0, 255)
    way = st.tuples(st.sampled_from(LANES), BASES, FLOATS, st.integers(NO_ITEM, items - 1))
    rows: dict[str, st.SearchStrategy[Any]] = {
        "candidates": st.builds(lambda code, ways: candidate(code, *ways), item, st.lists(way, min_size=1, max_size=3)),
        "sums": st.fixed_dictionaries(
            {
                "group": small,
                "last": MICROS,
                "weights": st.lists(FLOATS, min_size=decays, max_size=decays),
                "sums": st.lists(FLOATS, min_size=decays * width, max_size=decays * width),
            }
        ),
        "seen": st.fixed_dictionaries({"item": item, "basis": BASES}),
        "mix": st.fixed_dictionaries({"category": st.integers(-1, categories - 1), "share": FLOATS, "basis": BASES}),
        "cadence": st.fixed_dictionaries(
            {"item": item, "purchases": st.integers(0, 2**32 - 1), "gap_days": FLOATS, "last": MICROS, "basis": BASES}
        ),
    }
    return {table: draw(st.lists(rows[table], max_size=3)) for table in TABLES}


@st.composite
def shops(draw: st.DrawFn) -> dict[str, Any]:
    items, categories = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    decays, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    users = draw(st.dictionaries(KEYS, users_of(items, categories, decays, width), max_size=9))
    return {
        "users": users,
        "items": items,
        "categories": tuple(f"c{code}" for code in range(categories)),
        "decays": tuple(range(1, decays + 1)),
        "width": width,
        "neighbours": draw(st.integers(1, 4)),
        "shards": draw(st.integers(1, 4)),
    }


@settings(max_examples=60, deadline=None)
@given(shop=shops(), stranger=KEYS)
def test_every_user_reads_back_as_written(shop: dict[str, Any], stranger: bytes) -> None:
    with TemporaryDirectory() as folder:
        manifest = build_snapshot(Path(folder) / "s", **shop)
        with Snapshot.open(Path(folder) / "s") as snapshot:
            assert snapshot.manifest == manifest
            assert manifest.counts == {"users": len(shop["users"]), "items": shop["items"]}
            for key, written in shop["users"].items():
                record = snapshot.user(key)
                assert record is not None
                for table in TABLES:
                    found = getattr(record, table)
                    assert len(found) == len(written[table])
                    for column in found.__slots__:
                        values = getattr(found, column)
                        expected = np.array([row[column] for row in written[table]], values.dtype).reshape(values.shape)
                        assert np.array_equal(values, expected), (table, column)
                        assert (
                            table == "candidates" or column == "basis" or not values.flags.writeable or not values.size
                        )
            if stranger not in shop["users"]:
                assert snapshot.user(stranger) is None


def test_keys_that_differ_only_in_trailing_nuls_are_different_people(tmp_path: Path) -> None:
    keys = [b"k".ljust(length, b"\0").ljust(16, b"\1") for length in range(1, 17)]
    keys += [b"\0" * 16, b"k" + b"\0" * 15, b"\0" * 15 + b"k", b"\xff" * 15 + b"\0", b"\xff" * 16, b"\x7f" + b"\0" * 15]
    users: dict[bytes, User] = {key: {"seen": [{"item": place}]} for place, key in enumerate(dict.fromkeys(keys))}
    build_snapshot(tmp_path, users=users, items=len(users), shards=3)
    with Snapshot.open(tmp_path) as snapshot:
        for key, rows in users.items():
            record = snapshot.user(key)
            assert record is not None and record.seen.item.tolist() == [rows["seen"][0]["item"]]
        assert snapshot.user(b"k" + b"\0" * 14 + b"\2") is None


@pytest.mark.parametrize("length", [0, 1, 15, 17])
def test_a_key_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    build_snapshot(tmp_path)
    with Snapshot.open(tmp_path) as snapshot, pytest.raises(SnapshotError, match=f"{length} bytes, expected 16"):
        snapshot.user(b"k" * length)


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_snapshot_without_users_knows_nobody(tmp_path: Path, shards: int) -> None:
    build_snapshot(tmp_path, shards=shards, items=1, fallback={})
    with Snapshot.open(tmp_path) as snapshot:
        assert snapshot.user(b"k" * 16) is None
        assert snapshot.manifest.counts == {"users": 0, "items": 1}
        assert snapshot.fallback()[0].tolist() == []


def test_a_user_without_rows_is_known_and_empty(tmp_path: Path) -> None:
    build_snapshot(tmp_path, users={b"k" * 16: {}}, width=3)
    with Snapshot.open(tmp_path) as snapshot:
        record = snapshot.user(b"k" * 16)
        assert record is not None
        assert [len(getattr(record, table)) for table in TABLES] == [0] * 5
        assert record.candidates.basis.shape == (0, 3) and record.sums.sums.shape == (0, 6)


def test_unused_alternatives_can_never_be_shown(tmp_path: Path) -> None:
    build_snapshot(tmp_path, users={b"k" * 16: {"candidates": [candidate(2, ("popular", 0, 0.5))]}})
    with Snapshot.open(tmp_path) as snapshot:
        record = snapshot.user(b"k" * 16)
        assert record is not None
        assert record.candidates.basis.tolist() == [[0, NEVER, NEVER]]
        assert record.candidates.lane.tolist() == [[LANES.index("popular"), NO_LANE, NO_LANE]]


def test_items_read_back_by_id_and_by_code(tmp_path: Path) -> None:
    names = sorted(["", "a", "a\0", "ab", "b", "é", "漢字", "😀"])
    columns: dict[str, Any] = {
        "item_id": names,
        "title": [f"T-{name}" for name in names],
        "categories": [["top", "leaf-é"] if place % 2 else [] for place in range(8)],
        "root_category": [place % 2 - 1 for place in range(8)],
        "regions": [["DE", "FR-75"] if place == 3 else [] for place in range(8)],
        "sensitive": [place == 5 for place in range(8)],
        "price": [float(place) for place in range(7)] + [float("nan")],
    }
    build_snapshot(tmp_path, items=8, item_columns=columns)
    with Snapshot.open(tmp_path) as snapshot:
        items = snapshot.items
        assert len(items) == items.count == 8
        assert [items.id_of(code) for code in range(8)] == names
        assert [items.code_of(name) for name in names] == list(range(8))
        assert [items.code_of(name) for name in ("A", "a\0\0", "zz", "\ud800")] == [-1] * 4
        assert [items.title(code) for code in range(8)] == columns["title"]
        assert [items.category_path(code) for code in range(8)] == columns["categories"]
        assert [items.regions(code) for code in range(8)] == columns["regions"]
        assert items.has_regions.tolist() == [place == 3 for place in range(8)]
        assert items.sensitive.tolist() == columns["sensitive"]
        assert items.root_category.tolist() == columns["root_category"]
        assert np.isnan(items.price[7]) and items.price[:7].tolist() == list(range(7))
        assert items.vector.shape == (8, 4) and items.neighbour.shape == items.likeness.shape == (8, 2)
        assert np.array_equal(items.vector, np.stack(item_table(8).column("vector").to_pylist()).astype(np.float32))
        for code in (-1, 8):
            with pytest.raises(SnapshotError, match=r"There is no item -?\d; the snapshot has 0\.\.7"):
                items.id_of(code)


def test_a_shop_of_one_item_has_no_neighbours(tmp_path: Path) -> None:
    build_snapshot(tmp_path, items=1)
    with Snapshot.open(tmp_path) as snapshot:
        assert snapshot.items.neighbour.tolist() == [[NO_ITEM, NO_ITEM]]
        assert snapshot.items.code_of("item-0000") == 0


def test_fallback_lists_come_by_category_best_first(tmp_path: Path) -> None:
    build_snapshot(tmp_path, fallback={-1: [4, 2, 9], 1: [3]})
    with Snapshot.open(tmp_path) as snapshot:
        assert snapshot.categories == ("category-0", "category-1")
        assert snapshot.fallback()[0].tolist() == [4, 2, 9]
        assert np.all(np.diff(snapshot.fallback()[1]) < 0)
        assert snapshot.fallback(1)[0].tolist() == [3]
        assert snapshot.fallback(0)[0].tolist() == []


def test_the_narrowest_list_that_covers_a_region_is_taken(tmp_path: Path) -> None:
    build_snapshot(tmp_path, fallback={-1: [4], ("DE", -1): [4, 5], ("DE-BY", -1): [6], 1: [3]})
    with Snapshot.open(tmp_path) as snapshot:
        lists = {
            region: snapshot.fallback(region=region)[0].tolist() for region in ("", "de", "DE-BE", "DE-BY-1", "FR")
        }
        assert lists == {"": [4], "de": [4, 5], "DE-BE": [4, 5], "DE-BY-1": [6], "FR": [4]}
        assert snapshot.fallback(1, "DE")[0].tolist() == [3]


def test_the_tower_reads_back_in_every_shape(tmp_path: Path) -> None:
    tower: dict[str, NDArray[np.float32]] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5], np.float32),
        "scale": np.array(3, np.float32),
        "none": np.empty((0, 4), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    build_snapshot(tmp_path, tower=tower)
    with Snapshot.open(tmp_path) as snapshot:
        assert set(snapshot.tower) == set(tower)
        for name, array in tower.items():
            assert snapshot.tower[name].shape == array.shape and np.array_equal(snapshot.tower[name], array)


def test_the_manifest_reads_back_and_its_id_is_the_content(tmp_path: Path) -> None:
    words: dict[str, Any] = {
        "vocabulary": {"sources": ["web", "app"], "version": "1a2b3c4d"},
        "metrics": {"recall@20": 0.25},
    }
    first = build_snapshot(tmp_path / "a", **words, profiles=[{"name": "full", "groups": 2**63}])
    again = build_snapshot(tmp_path / "b", **words, profiles=[{"name": "full", "groups": 2**63}])
    other = build_snapshot(tmp_path / "c", **words, profiles=[{"name": "full", "groups": 2**63}], seed=1)
    assert first.snapshot_id == again.snapshot_id != other.snapshot_id
    assert first.snapshot_id.startswith("20260131-") and len(first.snapshot_id) == 21
    assert first.created_at != again.created_at
    with Snapshot.open(tmp_path / "a") as snapshot:
        assert snapshot.manifest == first == Manifest.from_json(first.to_json())
        assert snapshot.vocabulary == words["vocabulary"]
        assert snapshot.profiles == ({"name": "full", "groups": 2**63},)


def test_the_id_names_the_day_in_utc(tmp_path: Path) -> None:
    late = datetime(2026, 2, 1, 1, tzinfo=timezone(timedelta(hours=9)))
    assert build_snapshot(tmp_path / "a", as_of=late).snapshot_id.startswith("20260131-")
    same = build_snapshot(tmp_path / "b", as_of=late.astimezone(UTC))
    assert same.snapshot_id == build_snapshot(tmp_path / "c", as_of=late).snapshot_id


def test_chunks_and_spare_bits_do_not_change_the_checksum(tmp_path: Path) -> None:
    whole = item_table(9, sensitive=[True] * 9)
    spare = pa.Array.from_buffers(pa.bool_(), 9, [None, pa.py_buffer(b"\xff\xff")])
    pieces = pa.concat_tables([whole.slice(0, 4), whole.slice(4)])
    place = pieces.schema.get_field_index("sensitive")
    odd = pieces.set_column(place, pieces.schema.field(place), pa.chunked_array([spare]))
    hashes = set()
    for name, table in (("whole", whole), ("pieces", pieces), ("odd", odd)):
        about = About(
            as_of=datetime(2026, 1, 31, tzinfo=UTC), lineage=Lineage(run="r"), vocabulary={}, profiles=(),
            decays=(1.0,), width=4, neighbours=2, shards=0,
        )  # fmt: skip
        writer = SnapshotWriter(tmp_path / name, about)
        writer.items(table)
        writer.categories(pa.table({"name": ["a", "b"]}, schema=schema.CATEGORIES))
        writer.fallback(schema.FALLBACK.empty_table())
        writer.tower({})
        hashes.add(writer.finish().files["items.arrow"].sha256)
    assert len(hashes) == 1


def test_an_old_snapshot_keeps_answering_after_it_is_deleted_and_closed(tmp_path: Path) -> None:
    users: dict[bytes, User] = {bytes([n]) * 16: {"seen": [{"item": n % 10, "basis": n}]} for n in range(200)}
    build_snapshot(tmp_path / "s", users=users, shards=4)
    snapshot = Snapshot.open(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    for key in users:
        record = snapshot.user(key)
        assert record is not None and record.seen.basis.tolist() == [key[0]]
    held = snapshot.user(b"\x05" * 16)
    snapshot.close()
    assert held is not None and held.seen.basis.tolist() == [5]
    with pytest.raises(SnapshotError, match="is closed"):
        snapshot.user(b"\x05" * 16)


def test_open_holds_no_file_descriptors(tmp_path: Path) -> None:
    build_snapshot(tmp_path, users={b"k" * 16: {}}, shards=5)
    before = len(list(Path("/proc/self/fd").iterdir()))
    snapshots = [Snapshot.open(tmp_path) for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(snapshot.user(b"k" * 16) for snapshot in snapshots)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the platform has no huge pages")
def test_files_are_mapped_with_huge_pages_where_the_kernel_has_them(tmp_path: Path) -> None:
    build_snapshot(tmp_path, users={b"k" * 16: {}})
    with Snapshot.open(tmp_path):
        maps = Path("/proc/self/smaps").read_text().split(str(tmp_path / "users-00000.arrow"))
    flags = maps[1].split("VmFlags:")[1].split("\n")[0].split()
    assert "hg" in flags or not Path("/sys/kernel/mm/transparent_hugepage").exists()


def test_polars_duckdb_and_pyarrow_read_the_files(tmp_path: Path) -> None:
    users: dict[bytes, User] = {
        bytes([n]) * 16: {"candidates": [candidate(n, ("similar", 1, 0.5, 2))], "mix": [{"category": 0}]}
        for n in range(7)
    }
    build_snapshot(tmp_path, users=users)
    people = pl.read_ipc(tmp_path / "users-00000.arrow")
    assert people["user_key"].to_list() == sorted(users)
    rows = pl.read_ipc(tmp_path / "candidates-00000.arrow")
    assert rows["item"].to_list() == list(range(7)) and rows["ways"].to_list() == [1] * 7
    bases = pl.read_ipc(tmp_path / "bases-00000.arrow")["basis"]
    ways = pl.read_ipc(tmp_path / "ways-00000.arrow")
    assert bases.gather(ways["basis_code"]).to_list() == [1] * 7
    with pa.OSFile(str(tmp_path / "ways-00000.arrow")) as file:
        shard = pa.ipc.open_file(file).read_all()
    counted = duckdb.from_arrow(shard).aggregate("count(*), sum(score), min(evidence)")
    assert counted is not None and counted.fetchall() == [(7, 3.5, 2)]


def test_a_snapshot_of_format_1_is_read_by_every_later_reader() -> None:
    """The folder was written once and is never written again; see engine/snapshot/FORMAT.md."""
    with Snapshot.open(Path(__file__).parent / "golden-v1") as snapshot:
        known, bare = snapshot.user(b"a" * 16), snapshot.user(b"b" * 16)
        assert (
            snapshot.manifest.snapshot_id == "20260131-722eb39049b1" and snapshot.manifest.lineage.ledger_sequence == 7
        )
        assert known is not None and bare is not None and len(bare.candidates) == 0
        candidates = known.candidates
        assert candidates.item.tolist() == [3, 1]
        assert candidates.lane[0].tolist() == [LANES.index("similar"), LANES.index("popular"), NO_LANE]
        assert candidates.basis.tolist() == [[1, 0, NEVER], [2, NEVER, NEVER]]
        assert candidates.score[:, 0].tolist() == [np.float32(0.9), 0.5]
        assert candidates.evidence[0].tolist() == [2, NO_ITEM, NO_ITEM]
        assert (known.seen.item.tolist(), known.seen.basis.tolist()) == ([3], [1])
        assert (known.mix.share.tolist(), known.cadence.gap_days.tolist()) == ([1.0], [7.0])
        assert known.sums.sums.tolist() == [[0.5] * 8] and known.sums.last.tolist() == [9]
        assert snapshot.fallback(region="DE")[0].tolist() == [2] and snapshot.fallback()[0].tolist() == [3, 1]
        assert snapshot.tower["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert snapshot.items.code_of("item-0003") == 3


def test_a_later_reader_opens_what_an_earlier_one_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_snapshot(tmp_path, users={b"k" * 16: {}})
    monkeypatch.setattr("engine.snapshot.manifest.FORMAT_VERSION", schema.FORMAT_VERSION + 1)
    with Snapshot.open(tmp_path) as snapshot:
        assert snapshot.user(b"k" * 16) is not None


def test_a_manifest_from_before_a_field_was_added_is_read_with_its_default(tmp_path: Path) -> None:
    written = build_snapshot(tmp_path)
    record = json.loads(written.to_json())
    for name in ("audit_head", "protocol", "forced"):
        del record["lineage"][name]
    with pytest.raises(SnapshotCorrupt) as refused:  # it would have had another id then
        Manifest.from_json(json.dumps(record))
    record["snapshot_id"] = str(refused.value).split("its content gives ")[1].split(".")[0]
    assert Manifest.from_json(json.dumps(record)).lineage == written.lineage
