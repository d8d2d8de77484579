"""A person's block is found by its key and believed only as it was written: no bit of it can turn unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from engine.errors import SnapshotCorrupt, SnapshotError
from engine.snapshot import Snapshot
from engine.snapshot.layout import USER_TABLES, file_name, map_batch, table_schema, views
from tests.snapshot_builder import TABLES, User, build_snapshot, candidate

DECAYS, WIDTH = 2, 4


def _person(number: int) -> User:
    """Enough rows that columns pass 32 bytes, where the streams of the checksum part."""
    draw = np.random.default_rng(number)
    count = int(draw.integers(0, 23))
    ways = [("similar", 1 << int(draw.integers(0, 9)), float(draw.random(dtype=np.float32)), 2)] * 2
    return {
        "candidates": [
            candidate(int(item), *ways[: 1 + row % 2]) for row, item in enumerate(draw.integers(0, 9, count))
        ],
        "sums": [{"group": 1, "last": 5, "weights": [1.0, 2.0], "sums": draw.random(DECAYS * WIDTH).tolist()}]
        * (number % 3),
        "seen": [{"item": 3, "basis": 4}] * (number % 5),
        "mix": [{"category": 0, "share": 0.5, "basis": 2}] * (number % 2),
        "cadence": [{"item": 1, "purchases": 3, "gap_days": 7.0, "last": 9, "basis": 1}] * (number % 4),
    }


USERS: dict[bytes, User] = {bytes([n, 255 - n]) + bytes(14): _person(n) for n in range(24)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_snapshot(tmp_path / "s", users=USERS, shards=2)
    return tmp_path / "s"


def _told(snapshot: Snapshot, key: bytes) -> list[list[object]] | None:
    record = snapshot.user(key)
    if record is None:
        return None
    tables = [getattr(record, table) for table in TABLES]
    return [[getattr(rows, column).tolist() for column in rows.__slots__] for rows in tables]


def _data(path: Path, sound: bytes) -> Iterator[int]:
    """Places of the bytes of its columns."""
    with pa.memory_map(str(path)) as file:
        base = file.read_buffer(len(sound)).address
        file.seek(0)
        for column in pa.ipc.open_file(file).get_batch(0).columns:
            for buffer in column.buffers():
                if buffer is not None:
                    yield from range(buffer.address - base, buffer.address - base + buffer.size)


@pytest.mark.parametrize("table", ["users", *USER_TABLES])
def test_a_bit_that_turns_after_the_hashing_is_found_at_the_look_up(folder: Path, table: str) -> None:
    path = folder / file_name(table, 0)
    sound = path.read_bytes()
    with Snapshot.open(folder) as snapshot:
        before = {key: _told(snapshot, key) for key in USERS}
    found = 0
    places = sorted(set(_data(path, sound)))
    for place in places if len(places) < 150 else np.random.default_rng(1).choice(places, 150, replace=False):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << (int(place) % 8)
        path.write_bytes(damaged)
        with Snapshot.open(folder, verify=False) as snapshot:
            for key, expected in before.items():
                try:
                    told = _told(snapshot, key)
                except SnapshotCorrupt:
                    found += 1
                else:  # a key that changed is nobody's: its owner is a stranger, and nobody else's rows are theirs
                    assert told == expected or (table == "users" and told is None)
    assert found > 0.9 * len(places[:150]) * (table != "users")
    path.write_bytes(sound)


def test_the_checksum_is_what_the_format_says(folder: Path) -> None:
    """Against another implementation of CRC-32C, written from engine/snapshot/FORMAT.md."""
    for shard in range(2):
        of = {
            table: views(map_batch(folder / file_name(table, shard), table_schema(table, DECAYS, WIDTH, 2)))
            for table in ("users", *USER_TABLES)
        }
        for key, block in zip(of["users"]["user_key"], of["users"]["block"].tolist(), strict=True):
            for number, table in enumerate(USER_TABLES):
                found, start, count = block[3 * number : 3 * number + 3]
                state = _step(_ALL, key.tobytes().ljust(16, b"\0"))
                state = _step(state, count.to_bytes(4, "little") + number.to_bytes(4, "little"))
                for column in of[table].values() if count else ():
                    state = _fold(state, np.ascontiguousarray(column[start : start + count]).tobytes())
                assert state == found


_ALL = 0xFFFFFFFF


def _step(state: int, raw: bytes) -> int:
    return int(google_crc32c.extend(state ^ _ALL, raw)) ^ _ALL


def _fold(state: int, raw: bytes) -> int:
    streams, whole = [state, _ALL, _ALL, _ALL], len(raw) // 32 * 32
    for at in range(0, whole, 8):
        streams[at // 8 % 4] = _step(streams[at // 8 % 4], raw[at : at + 8])
    if whole:
        a, b, c, d = streams
        streams[0] = _step(_step(a, b.to_bytes(4, "little") + c.to_bytes(4, "little")), d.to_bytes(8, "little"))
    return _step(streams[0], raw[whole:])


def test_a_processor_without_a_crc_unit_comes_to_the_same_checksums(folder: Path, tmp_path: Path) -> None:
    text = (
        "import llvmlite.binding as llvm; features = llvm.get_host_cpu_features(); features['sse4.2'] = False\n"
        "llvm.get_host_cpu_features = lambda: features\n"
        "import sys, json; from engine.snapshot import Snapshot, blocks; assert not blocks._HARDWARE\n"
        "keys = [bytes.fromhex(each) for each in json.loads(sys.argv[2])]\n"
        "with Snapshot.open(sys.argv[1], verify=False) as snapshot:\n"
        "    print(sum(snapshot.user(key) is not None for key in keys))\n"
    )
    keys = json.dumps([key.hex() for key in USERS])
    done = subprocess.run(
        [sys.executable, "-c", text, str(folder), keys],
        capture_output=True, text=True, timeout=120, check=False,
        env={"NUMBA_CACHE_DIR": str(tmp_path / "compiled"), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() == str(len(USERS)), done.stderr


def _spread(draw: np.random.Generator) -> NDArray[np.uint8]:
    return draw.integers(0, 256, (3_000, 16), np.uint8)


def _crowded(draw: np.random.Generator) -> NDArray[np.uint8]:
    """Keys as no HMAC makes them: nearly all share their first eight bytes."""
    keys = np.zeros((3_000, 16), np.uint8)
    keys[:, 13:] = draw.integers(0, 256, (3_000, 3), np.uint8)
    keys[:5] = 255
    return keys


@pytest.mark.parametrize("kind", [_spread, _crowded])
@pytest.mark.parametrize("shards", [1, 7])
def test_everybody_is_found_and_nobody_else(tmp_path: Path, kind: object, shards: int) -> None:
    assert callable(kind)
    every = sorted({row.tobytes() for row in kind(np.random.default_rng(shards))})
    there, absent = every[::2], [*every[1::2], bytes(15) + b"\1", b"\xff" * 15 + b"\xfe"]
    users: dict[bytes, User] = {key: {"seen": [{"item": place % 10}]} for place, key in enumerate(there)}
    build_snapshot(tmp_path / "s", users=users, shards=shards)
    with Snapshot.open(tmp_path / "s") as snapshot:
        for place, key in enumerate(there):
            record = snapshot.user(key)
            assert record is not None and record.seen.item.tolist() == [place % 10]
        assert not [key for key in absent if key not in users and snapshot.user(key) is not None]


def test_a_span_that_leaves_its_table_is_damage_and_no_crash(folder: Path) -> None:
    path = folder / file_name("users", 0)
    sound = path.read_bytes()
    block = views(map_batch(path, table_schema("users", DECAYS, WIDTH, 2)))["block"]
    place = sound.index(block.tobytes())
    for number in range(len(USER_TABLES)):
        for field in (1, 2):
            damaged = bytearray(sound)
            at = place + 4 * (3 * number + field)
            damaged[at : at + 4] = b"\xff" * 4
            path.write_bytes(damaged)
            with (
                Snapshot.open(folder, verify=False) as snapshot,
                pytest.raises(SnapshotCorrupt, match="of one person"),
            ):
                _told(snapshot, min(USERS))


def test_more_bases_than_a_code_can_tell_are_refused_by_name(tmp_path: Path) -> None:
    rows = [{"item": 1, "basis": basis} for basis in range((1 << 16) + 1)]
    with pytest.raises(SnapshotError, match=r"bases-00000.arrow: expected at most 65536 distinct bases, found 65537"):
        build_snapshot(tmp_path / "s", users={b"k" * 16: {"seen": rows}})
