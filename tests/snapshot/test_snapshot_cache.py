"""What a machine fetched and hashed: once for all of its processes, whole or not at all, and never more than it may hold."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import SnapshotCorrupt, SnapshotError
from engine.snapshot import Registry, cache
from engine.snapshot.cache import Cache
from tests.snapshot.places import Place
from tests.snapshot_builder import build_snapshot, publish_snapshot

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that were hashed to be remembered."""
    seen: list[str] = []
    checked = cache._checked

    def noted(path: Path, entry: object) -> list[int]:
        seen.append(path.name)
        return checked(path, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_checked", noted)
    yield seen


def test_a_file_is_hashed_once_a_machine_and_again_when_it_changed(folder: Place, hashed: list[str]) -> None:
    manifest = publish_snapshot(folder.where, run="one", users={b"a" * 16: {}})
    folder.registry().open_current().close()
    assert sorted(hashed) == sorted(manifest.files)
    hashed.clear()
    folder.registry().open_current().close()
    assert hashed == []
    path = Path(folder.where) / manifest.snapshot_id / "seen-00000.arrow"
    os.utime(path)
    folder.registry().open_current().close()
    assert hashed == ["seen-00000.arrow"]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)  # another inode, the same bytes
    folder.registry().open_current().close()
    assert hashed == ["seen-00000.arrow"] * 2
    path.unlink()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    for _ in range(2):
        with pytest.raises(SnapshotCorrupt, match="seen-00000"):
            folder.registry().open_current()


def test_a_change_that_puts_the_times_back_is_seen(folder: Place) -> None:
    manifest = publish_snapshot(folder.where, run="one")
    folder.registry().open_current().close()
    path = Path(folder.where) / manifest.snapshot_id / "items.arrow"
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(300)
        byte = file.read(1)[0]
        file.seek(300)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(SnapshotCorrupt, match="items"):
        folder.registry().open_current()


def test_a_change_right_after_the_hash_is_seen(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the file system's clock a change would leave every time as it was."""
    manifest = publish_snapshot(folder.where, run="one")
    path = Path(folder.where) / manifest.snapshot_id / "items.arrow"
    hash_file = cache.hash_file

    def change_after(which: Path) -> str:
        found = hash_file(which)
        if which.name == "items.arrow":
            which.chmod(0o644)
            with which.open("r+b") as file:
                file.write(b"broken")
        return found

    for _ in range(5):
        os.utime(path)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "hash_file", change_after)
            with pytest.raises(SnapshotCorrupt):
                folder.registry().open_current()
        with pytest.raises(SnapshotCorrupt):
            folder.registry().open_current()


@pytest.mark.parametrize("record", ["", "{", "[]", '{"manifest": 1}'])
def test_a_broken_record_is_hashed_anew(folder: Place, hashed: list[str], record: str) -> None:
    publish_snapshot(folder.where, run="one")
    folder.registry().open_current().close()
    (path,) = (folder.cache / "verified").glob("*.json")
    path.write_text(record)
    hashed.clear()
    folder.registry().open_current().close()
    assert hashed
    hashed.clear()
    folder.registry().open_current().close()
    assert not hashed


def test_records_of_snapshots_that_are_gone_go_too(folder: Place) -> None:
    for number in range(4):
        publish_snapshot(folder.where, run=f"run-{number}")
        folder.registry().open_current().close()
        folder.registry().sweep(keep=0)
    assert (
        len(list((folder.cache / "verified").glob("*.json"))) <= 3
    )  # what goes after the last record goes with the next


def test_a_cache_that_cannot_be_written_costs_hashing_and_nothing_else(folder: Place, tmp_path: Path) -> None:
    publish_snapshot(folder.where, run="one")
    (tmp_path / "file").write_text("")
    for _ in range(2):
        Registry(folder.where, tmp_path / "file" / "cache").open_current().close()


OPEN = """
import logging, os, sys, time
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
from engine.snapshot import Registry, cache
checked = cache._checked
def noted(path, entry):
    os.write(1, f"hashed {path.name}\\n".encode())  # whole lines: several threads hash
    return checked(path, entry)
cache._checked = noted
registry = Registry(sys.argv[1], sys.argv[2])
time.sleep(max(0, float(sys.argv[3]) - time.time()))
with registry.open_current() as snapshot:
    print("opened", snapshot.manifest.snapshot_id, flush=True)
"""


def test_processes_that_start_at_once_fetch_and_hash_once(place: Place) -> None:
    manifest = publish_snapshot(place.where, run="one", users={bytes([n]) * 16: {} for n in range(50)}, shards=3)
    if place.server:
        place.server.asked.clear()
    start = str(time.time() + 3)
    command = [sys.executable, "-c", OPEN, place.where, str(place.cache), start]
    many = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in many]
    assert all(f"opened {manifest.snapshot_id}" in lines for lines in said)
    work = [line for lines in said for line in lines if line.startswith(("hashed", "Fetched"))]
    if place.server:
        assert len(work) == 1 and work[0].startswith(f"Fetched {manifest.snapshot_id}")
        fetched = [path for method, path in place.server.asked if method == "GET" and path.endswith(".arrow")]
        assert len(fetched) == len(set(fetched)) == len(manifest.files)
    else:
        assert sorted(work) == sorted(f"hashed {name}" for name in manifest.files)


def sized(bucket: Place, snapshots: float) -> tuple[Registry, int]:
    """A registry whose cache has room for so many snapshots like the one that is current."""
    manifest = bucket.registry().manifest(bucket.registry().current())
    one = sum(entry.bytes for entry in manifest.files.values()) + len(manifest.to_json())
    return Registry(bucket.where, bucket.cache, int(one * snapshots)), one


def test_what_was_served_longest_ago_is_evicted_and_never_what_is_served(bucket: Place) -> None:
    names = [publish_snapshot(bucket.where, run=f"run-{number}").snapshot_id for number in range(5)]
    registry, one = sized(bucket, 3.1)
    served = registry.open(names[0])

    def held() -> list[str]:
        here = [path for path in bucket.cache.iterdir() if path.name[:2] == "20"]
        assert sum(each.stat().st_size for path in here for each in path.iterdir()) <= 3.1 * one
        return sorted(path.name for path in here)

    for name in names[1:3]:
        registry.open(name).close()
        time.sleep(0.02)
    registry.open(names[1]).close()  # which makes the other one the oldest
    gc.collect()
    time.sleep(0.02)
    registry.open(names[3]).close()
    assert held() == sorted([names[0], names[1], names[3]])
    assert served.user(b"a" * 16) is None
    del served
    gc.collect()  # served until now: the newest of the three
    registry.open(names[4]).close()
    assert held() == sorted([names[0], names[3], names[4]])


def test_without_room_beside_what_is_served_it_is_told_and_what_serves_serves(bucket: Place) -> None:
    publish_snapshot(bucket.where, run="one", users={b"a" * 16: {}})
    registry, _ = sized(bucket, 1.5)
    served = registry.open_current()
    publish_snapshot(bucket.where, run="two")
    with pytest.raises(SnapshotError, match="is in use") as caught:
        registry.open_current()
    assert "cache_gib" in caught.value.remedy
    assert served.user(b"a" * 16) is not None
    assert not list(bucket.cache.glob(".incoming-*"))


@pytest.mark.parametrize(("call", "code"), [("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("rename", errno.EIO)])
def test_a_disk_that_refuses_a_fetch_is_told_and_nothing_stays(
    bucket: Place, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    publish_snapshot(bucket.where, run="one")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(SnapshotError, match=os.strerror(code)):
            bucket.registry().open_current()
    assert [path.name for path in bucket.cache.iterdir() if path.name not in (".lock", ".fetch", "verified")] == []
    bucket.registry().open_current().close()


def test_a_damaged_copy_is_fetched_again(bucket: Place) -> None:
    name = publish_snapshot(bucket.where, run="one").snapshot_id
    bucket.registry().open_current().close()
    gc.collect()
    for harm in ("cut", "lose", "manifest"):
        path = bucket.cache / name / ("manifest.json" if harm == "manifest" else "items.arrow")
        data = path.read_bytes()
        path.unlink()
        if harm == "cut":
            path.write_bytes(data[:-1])
        with bucket.registry().open_current() as snapshot:
            assert snapshot.manifest.snapshot_id == name
        assert path.read_bytes() == data


def test_a_fetch_that_is_killed_leaves_nothing_that_is_taken_for_whole(bucket: Place) -> None:
    name = publish_snapshot(bucket.where, run="one").snapshot_id
    server = bucket.server
    assert server is not None
    started = threading.Event()

    def stall(path: str, before: bool) -> None:
        if before and path.endswith("users-00000.arrow"):
            started.set()
            time.sleep(1)

    server.watch = stall
    command = [sys.executable, "-c", OPEN, bucket.where, str(bucket.cache), "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.wait(30)
    process.kill()
    process.communicate()
    server.watch = None
    assert list(bucket.cache.glob(".incoming-*")) and not (bucket.cache / name).exists()
    bucket.registry().open_current().close()
    assert not list(bucket.cache.glob(".incoming-*")) and (bucket.cache / name).exists()


def test_opening_takes_the_same_time_for_any_number_of_people(folder: Place) -> None:
    """Once hashed: nothing is read but footers and small tables."""

    def quickest(users: int) -> float:
        place = Place(f"{folder.where}-{users}", folder.cache)
        people = {number.to_bytes(16, "big"): {"seen": [{"item": 1}]} for number in range(users)}
        publish_snapshot(place.where, users=people)
        place.registry().open_current().close()
        times = []
        for _ in range(15):
            began = time.perf_counter()
            place.registry().open_current().close()
            times.append(time.perf_counter() - began)
        return min(times)

    few, many = quickest(20), quickest(20_000)
    assert many < 2 * few + 0.005, (few, many)


def test_the_same_content_under_two_caches_is_told_apart(folder: Place, tmp_path: Path, hashed: list[str]) -> None:
    """One cache for two deployments that hold the same snapshot: a record is of a folder, not of an id."""
    publish_snapshot(folder.where, run="one")
    publish_snapshot(str(tmp_path / "other"), run="one")
    for where in (folder.where, str(tmp_path / "other")):
        hashed.clear()
        Registry(where, folder.cache).open_current().close()
        assert hashed
    hashed.clear()
    for where in (folder.where, str(tmp_path / "other")):
        Registry(where, folder.cache).open_current().close()
    assert not hashed


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    built = build_snapshot(tmp_path / "built", run="one")

    class Hostile:
        def text(self) -> bytes:
            import json

            from engine.snapshot.manifest import _id

            record = json.loads((tmp_path / "built" / "manifest.json").read_text())
            record["files"]["../../escaped"] = record["files"].pop("items.arrow")
            record["snapshot_id"] = _id(record)
            self.name = record["snapshot_id"]
            return json.dumps(record).encode()

        def pieces(self, name: str) -> list[bytes]:
            raise AssertionError(name)

    hostile = Hostile()
    hostile.text()
    with pytest.raises(SnapshotCorrupt, match="disagree"):
        Cache(tmp_path / "cache", 1 << 30).obtain(hostile.name, hostile)
    assert built.snapshot_id != hostile.name
