"""Whatever a disk, a network or a signal does to a publisher: a loud failure, and the pointer as it was, or the new one whole."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.errors import NoSnapshot, PublishConflict, SettingsError, SnapshotError
from engine.snapshot import Registry, bucket
from engine.snapshot.bucket import Bucket
from tests.durability import Durability
from tests.snapshot.object_server import ObjectServer
from tests.snapshot.places import Place
from tests.snapshot_builder import build_snapshot, publish_snapshot

ROOT = Path(__file__).parents[2]


def test_a_disk_without_room_for_a_folder_is_told(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = folder.registry()
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir, errno.ENOSPC, 0, []))
    with pytest.raises(SnapshotError, match="No space left"):
        registry.stage()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a network that is out of order, for tests that have none."""
    monkeypatch.setattr(bucket, "_PAUSE", 0.01)
    monkeypatch.setattr(bucket, "_RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=5)})


def staged_by(registry: Registry, run: str = "new") -> Path:
    staged = registry.stage()
    build_snapshot(staged, run=run)
    return staged


# --- the disk -------------------------------------------------------------------------------------------------------


def failing(call: Callable[..., Any], code: int, at: int, hits: list[str]) -> Callable[..., Any]:
    """The `at`-th call fails as the system would let it."""
    left = [at]

    def broken(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            hits.append(call.__name__)
            raise OSError(code, os.strerror(code))
        return call(*arguments, **more)

    return broken


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("fsync", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("rename", errno.EIO),
        ("rename", errno.ENOSPC),
        ("replace", errno.EIO),
        ("replace", errno.EDQUOT),
        ("chmod", errno.EROFS),
        ("open", errno.EIO),
    ],
)
def test_a_disk_that_refuses_anything_on_the_way_is_told_and_leaves_the_pointer(
    folder: Place, name: str, code: int
) -> None:
    old = publish_snapshot(folder.where, run="old").snapshot_id
    pointer = folder.read("current.json")
    points = 0
    while True:
        registry, hits = folder.registry(), list[str]()
        staged = staged_by(registry)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, failing(getattr(os, name), code, points, hits))
            try:
                registry.publish(staged)
            except SnapshotError as error:
                assert os.strerror(code) in error.message and error.remedy, error
            else:
                break
        assert hits and folder.read("current.json") == pointer
        assert folder.registry().open_current().manifest.snapshot_id == old
        points += 1
    assert points > 0 and not hits  # each call that publishing makes has failed once
    new = build_snapshot(Path(folder.where).parent / "again", run="new").snapshot_id
    assert folder.registry().current() == new
    folder.registry().open_current().close()


def test_a_disk_that_is_really_full_is_told(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    old = publish_snapshot(folder.where, run="old").snapshot_id
    code = (
        "import resource, signal, sys; from engine.snapshot import Registry; from engine.errors import SnapshotError\n"
        "from tests.snapshot_builder import build_snapshot\n"
        "registry = Registry(sys.argv[1]); staged = registry.stage(); build_snapshot(staged, run='new')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"
        "try: registry.publish(staged)\n"
        "except SnapshotError as error: sys.exit(error.exit_code)\n"
    )
    assert resource is not None
    done = subprocess.run([sys.executable, "-c", code, folder.where], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 7
    assert folder.registry().current() == old


def test_published_files_are_read_only(folder: Place) -> None:
    name = publish_snapshot(folder.where, run="old").snapshot_id
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (Path(folder.where) / name).iterdir()}
    assert modes == {0o444}


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset_after", "error_after", "reset_before", "error_before"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_move_whose_answer_is_lost_is_looked_up(bucket: Place, how: str, times: int) -> None:
    assert bucket.server is not None
    old = publish_snapshot(bucket.where, run="old").snapshot_id
    registry = bucket.registry()
    staged = staged_by(registry)
    bucket.server.fail(how, "PUT", "current.json", times)
    new = registry.publish(staged, expected_parent=old).snapshot_id
    assert bucket.registry().history() == (new, old)
    assert len(bucket.pointer()["moves"]) == 2  # each move stands once, however often it was sent
    assert len([path for path in bucket.everything() if path.endswith("manifest.json")]) == 2


def test_the_first_move_is_looked_up_as_well(bucket: Place) -> None:
    assert bucket.server is not None
    registry = bucket.registry()
    staged = staged_by(registry)
    bucket.server.fail("reset_after", "PUT", "current.json")
    new = registry.publish(staged, expected_parent="").snapshot_id
    assert bucket.registry().history() == (new,)


def test_a_move_that_answers_too_late_is_looked_up(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bucket.server is not None
    old = publish_snapshot(bucket.where, run="old").snapshot_id
    registry = bucket.registry()
    short = registry._store._client("s3", "300ms", {"max_retries": 0})  # type: ignore[attr-defined]
    monkeypatch.setattr(registry._store, "_once", short)
    staged = staged_by(registry)
    bucket.server.fail("hang_after", "PUT", "current.json", seconds=1.0)
    new = registry.publish(staged, expected_parent=old).snapshot_id
    assert bucket.registry().history() == (new, old)


def test_a_lost_answer_that_another_publisher_overtook_is_still_known(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move stood, and was followed, before its publisher could look: it won, and the other one came after it."""
    old = publish_snapshot(bucket.where, run="old").snapshot_id
    registry = bucket.registry()
    staged = staged_by(registry)
    put = Bucket._put_pointer
    followed: list[str] = []

    def put_and_be_overtaken(self: Bucket, text: bytes, version: Any) -> None:
        put(self, text, version)
        if not followed:
            followed.append("")
            followed[0] = publish_snapshot(bucket.where, run="next").snapshot_id
            raise OSError("the connection was reset")

    monkeypatch.setattr(Bucket, "_put_pointer", put_and_be_overtaken)
    new = registry.publish(staged, expected_parent=old).snapshot_id
    assert bucket.registry().history() == (followed[0], new, old)


def test_a_lost_answer_to_a_move_that_never_stood_is_a_conflict(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old = publish_snapshot(bucket.where, run="old").snapshot_id
    registry = bucket.registry()
    staged = staged_by(registry)
    put = Bucket._put_pointer
    won: list[str] = []

    def fail_first(self: Bucket, text: bytes, version: Any) -> None:
        if not won:
            won.append("")
            won[0] = publish_snapshot(bucket.where, run="faster").snapshot_id
            raise OSError("the connection was reset")
        put(self, text, version)

    monkeypatch.setattr(Bucket, "_put_pointer", fail_first)
    with pytest.raises(PublishConflict):
        registry.publish(staged, expected_parent=old)
    assert bucket.registry().history() == (won[0], old)
    assert staged.exists()


def test_a_store_that_never_answers_is_told_and_what_is_not_known_is_said(bucket: Place) -> None:
    assert bucket.server is not None
    old = publish_snapshot(bucket.where, run="old").snapshot_id
    registry = bucket.registry()
    staged = staged_by(registry)
    bucket.server.fail("error_before", "PUT", "current.json", times=1000)
    with pytest.raises(SnapshotError, match="does not say whether its pointer moved") as caught:
        registry.publish(staged)
    assert "Run again" in caught.value.remedy and "not-a-secret" not in str(caught.value)
    bucket.server.faults.clear()
    assert bucket.registry().current() == old
    bucket.server.fail("error_before", "PUT", "items.arrow", times=1000)
    with pytest.raises(SnapshotError, match="cannot be written"):
        registry.publish(staged)
    bucket.server.faults.clear()
    new = registry.publish(staged, expected_parent=old).snapshot_id
    assert bucket.registry().history() == (new, old)


def test_a_store_that_is_not_there_is_told(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SnapshotError, match="no such bucket"):
        Registry("s3://nothing/here", bucket.cache).current()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SnapshotError, match="cannot be read") as caught:
        bucket.registry().current()
    assert not isinstance(caught.value, NoSnapshot)
    assert "AWS" not in caught.value.message and "not-a-secret" not in repr(caught.getrepr(chain=True))


@pytest.mark.parametrize(
    "where", ["s3://key:se/cret@shop/x", "s3://key:secret@shop/x", "s3://shop/x?aws_secret_access_key=secret", "ftp://x/y", "s3://"]
)  # fmt: skip
def test_a_uri_with_keys_or_of_no_store_is_refused_without_repeating_a_key(where: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Registry(where, "cache")
    assert "cret" not in str(caught.value)


def test_keys_may_stand_in_the_standard_file(bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    file.write_text("[night]\naws_access_key_id = from-the-file\naws_secret_access_key = not-a-secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "night")
    store = bucket.registry()._store
    assert store._small.config["access_key_id"] == "from-the-file"  # type: ignore[attr-defined]
    publish_snapshot(bucket.where, run="old")


def test_an_upload_that_does_not_arrive_whole_is_never_pointed_at(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = bucket.registry()
    staged = staged_by(registry)
    upload = Bucket._upload_manifest

    def lose_a_shard(self: Bucket, staged: Path, place: str) -> None:
        upload(self, staged, place)
        bucket.delete(f"{place}/items.arrow")

    monkeypatch.setattr(Bucket, "_upload_manifest", lose_a_shard)
    with pytest.raises(SnapshotError, match=r"items\.arrow: expected"):
        registry.publish(staged)
    with pytest.raises(NoSnapshot):
        bucket.registry().current()


def test_a_flipped_bit_in_the_store_is_mended_by_publishing_again(bucket: Place) -> None:
    name = publish_snapshot(bucket.where, run="old").snapshot_id
    path = bucket.path_of(name, "items.arrow")
    good = bucket.read(path)
    bucket.write(path, good[:300] + bytes([good[300] ^ 4]) + good[301:])
    with pytest.raises(SnapshotError, match="SHA-256"):
        bucket.registry().open_current()
    assert not list(bucket.cache.glob("2*")) and not list(bucket.cache.glob(".incoming-*"))
    assert publish_snapshot(bucket.where, run="old").snapshot_id == name
    bucket.registry().open_current().close()


# --- the sweep of an object store -----------------------------------------------------------------------------------


def test_an_upload_that_nobody_points_at_is_spared_for_the_grace_and_then_swept(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = publish_snapshot(bucket.where, run="old").snapshot_id
    registry = bucket.registry()
    staged = staged_by(registry)
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "_upload_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.publish(staged)
    kept = set(bucket.everything())
    assert registry.sweep() == [] and set(bucket.everything()) == kept
    (place,) = registry.sweep(grace=timedelta(seconds=-5))
    assert {path.rpartition("/")[0] for path in kept} - {path.rpartition("/")[0] for path in bucket.everything()} == {
        place
    }
    assert bucket.registry().open_current().manifest.snapshot_id == current


@pytest.mark.parametrize("late", [False, True], ids=["at once", "it deletes last"])
def test_a_sweep_between_the_upload_and_the_move_costs_an_upload_and_breaks_nothing(
    bucket: Place, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The worst moment: another machine removes the very snapshot that a publisher has found to be there already."""
    made = [publish_snapshot(bucket.where, run=f"run-{number}").snapshot_id for number in range(3)]
    registry = bucket.registry()
    staged = staged_by(registry, "run-0")
    put, remove = Bucket._put_pointer, Bucket.remove
    swept: list[list[str]] = []
    left: list[tuple[Any, ...]] = []
    if late:
        monkeypatch.setattr(Bucket, "remove", lambda *given: left.append(given) or list(given[1]))

    def sweep_first(self: Bucket, text: bytes, version: Any) -> None:
        if not swept:
            swept.append([])
            swept[0] = bucket.registry().sweep(keep=0)
        put(self, text, version)

    monkeypatch.setattr(Bucket, "_put_pointer", sweep_first)
    assert registry.publish(staged).snapshot_id == made[0]
    assert swept == [[made[0]]]
    for given in left:
        remove(*given)
    assert bucket.registry().open_current().manifest.snapshot_id == made[0]


def test_a_replica_whose_snapshot_goes_while_it_is_fetched_takes_the_current_one(bucket: Place) -> None:
    assert bucket.server is not None
    publish_snapshot(bucket.where, run="old")
    new: list[str] = []

    def overtake(path: str, before: bool) -> None:
        if path.endswith("items.arrow") and before and not new:
            new.append("")
            done = subprocess.run(
                [sys.executable, "-c", OVERTAKE, bucket.where], cwd=ROOT, capture_output=True, text=True, check=True
            )
            new[0] = done.stdout.strip()

    bucket.server.watch = overtake
    with bucket.registry().open_current() as snapshot:
        assert snapshot.manifest.snapshot_id == new[0]
        assert snapshot.manifest.lineage.run == "run-2"


OVERTAKE = """
import sys
from engine.snapshot import Registry
from tests.snapshot_builder import publish_snapshot
for number in range(3):
    made = publish_snapshot(sys.argv[1], run=f"run-{number}")
Registry(sys.argv[1]).sweep(keep=0)
print(made.snapshot_id)
"""


# --- kill -9 at every request ---------------------------------------------------------------------------------------

# Forks a publisher for each line of stdin, tells its pid, and lets it begin once another line comes.
PUBLISHERS = """
import os, sys
sys.path.insert(0, ".")
from engine.snapshot import Registry
from tests.snapshot_builder import build_snapshot, publish_snapshot

publish_snapshot(sys.argv[1])  # what is compiled at the first look-up is not compiled again in each fork
def line():
    text = b""
    while not text.endswith(b"\\n"):
        piece = os.read(0, 1)
        if not piece:
            sys.exit()
        text += piece
    return text.decode().strip()

while True:
    where, cache = line().split()
    child = os.fork()
    if child == 0:
        registry = Registry(where, cache)
        staged = registry.stage()
        build_snapshot(staged, run="new")
        os.write(1, f"{os.getpid()}\\n".encode())
        line()
        registry.publish(staged)
        os._exit(0)
    os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
"""


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("first", [False, True])
def test_a_publisher_killed_at_any_request_leaves_the_old_or_the_new_whole(
    bucket: Place, first: bool, every: int
) -> None:
    server = bucket.server
    assert server is not None
    publishers = subprocess.Popen(
        [sys.executable, "-c", PUBLISHERS, str(bucket.cache / "warm")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert publishers.stdin is not None and publishers.stdout is not None
    served: list[str] = []
    try:
        for point in range(0, 200, every):
            place = Place(f"{bucket.where}/{point}", bucket.cache / str(point), server)
            old = "" if first else publish_snapshot(place.where, run="old").snapshot_id
            killed = _publish_and_kill(publishers, place, server, point)
            registry = place.registry()
            if first and not killed and point == 0:
                raise AssertionError("nothing was asked of the store")
            try:
                with registry.open_current() as snapshot:
                    served.append(snapshot.manifest.lineage.run)
            except NoSnapshot as error:
                assert first and "no published snapshot" in error.message
                served.append("nothing")
            waste = registry.sweep(grace=timedelta(seconds=-5)) if old or served[-1] == "new" else []
            assert all(place.registry().manifest(each).files for each in registry.history()) if old else True
            again = publish_snapshot(place.where, run="new")
            assert place.registry().history() == ((again.snapshot_id, old) if old else (again.snapshot_id,))
            place.registry().open_current().close()
            if not killed:
                assert waste == []
                break
    finally:
        publishers.stdin.close()
        publishers.wait(timeout=20)
        publishers.stdout.close()
    before = "nothing" if first else "old"
    assert len(served) * every > 24  # before and after each of a dozen files, the manifest, the listing and the pointer
    assert served == sorted(served, key=["nothing", "old", "new"].index)
    assert served[0] == before and served[-1] == "new"


def _publish_and_kill(publishers: subprocess.Popen[str], place: Place, server: ObjectServer, point: int) -> bool:
    """Whether the publisher was killed: right before its `point`-th step at the store was done, or right after."""
    assert publishers.stdin is not None and publishers.stdout is not None
    publishers.stdin.write(f"{place.where} {place.cache}\n")
    publishers.stdin.flush()
    pid = int(publishers.stdout.readline())
    lock, seen = threading.Lock(), [0]
    dead = threading.Event()

    def watch(path: str, before: bool) -> None:
        with lock:
            seen[0] += 1
            if seen[0] == point + 1:
                os.kill(pid, signal.SIGKILL)
                dead.set()
        if dead.is_set() and before:
            raise ConnectionAbortedError  # what a dead process had yet to send never arrives

    server.watch = watch
    publishers.stdin.write("\n")
    publishers.stdin.flush()
    code = int(publishers.stdout.readline())
    time.sleep(0.05)  # for requests that are under way
    server.watch = None
    assert code == (-signal.SIGKILL if dead.is_set() else 0)
    return dead.is_set()


@pytest.mark.parametrize("first", [True, False])
def test_what_a_pointer_names_is_on_disk_before_it_and_the_pointer_before_publish_returns(
    folder: Place, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    root = Path(folder.where)
    if not first:
        publish_snapshot(root, run="before")
    disk = Durability(monkeypatch)
    manifest = publish_snapshot(root, run="now", shards=3)
    pointed = disk.when_named(root / "current.json")
    for name in ("manifest.json", *manifest.files):
        assert disk.survives(root / manifest.snapshot_id / name, root, pointed), name
    assert disk.survives(root / "current.json", root)
    assert not disk.survives(root / "current.json", root, pointed)
