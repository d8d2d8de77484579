"""The pointer moves whole: to a new snapshot, back, or not at all; whoever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.errors import NoSnapshot, PublishConflict, SnapshotCorrupt, SnapshotError
from engine.snapshot import Manifest, Registry, Snapshot
from tests.snapshot.places import Place
from tests.snapshot_builder import User, build_snapshot, publish_snapshot

ROOT = Path(__file__).parents[2]
USERS: dict[bytes, User] = {bytes([n]) * 16: {"seen": [{"item": n}]} for n in range(4)}


def night(place: Place, number: int) -> Manifest:
    return publish_snapshot(place.where, users=USERS, run=f"run-{number}", ledger_sequence=number)


def run_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


def test_an_empty_registry_says_how_to_begin(place: Place) -> None:
    registry = place.registry()
    assert registry.list() == []
    for ask in (registry.current, registry.open_current, registry.history):
        with pytest.raises(NoSnapshot, match=r"no published snapshot.*jobs\.nightly"):
            ask()
    with pytest.raises(NoSnapshot, match="served before"):
        registry.rollback()
    assert registry.sweep() == []


def test_publishing_serves_the_new_one_and_lists_newest_first(place: Place) -> None:
    made = [night(place, number).snapshot_id for number in range(3)]
    registry = place.registry()
    assert registry.current() == made[2]
    assert registry.history() == tuple(made[::-1])
    assert [manifest.snapshot_id for manifest in registry.list()] == made[::-1]
    assert registry.manifest(made[0]).lineage.run == "run-0"
    pointer = place.pointer()
    assert (pointer["current"], pointer["previous"]) == (made[2], [made[1], made[0]])
    with registry.open_current() as snapshot:
        assert snapshot.manifest.lineage.run == "run-2"
        assert snapshot.user(b"\1" * 16) is not None


def test_publishing_twice_changes_nothing_and_keeps_the_id(place: Place) -> None:
    first = night(place, 0)
    pointer, files = place.read("current.json"), place.everything()
    again = night(place, 0)
    assert again.snapshot_id == first.snapshot_id
    assert place.read("current.json") == pointer
    assert place.everything() == files
    assert not list(Path(place.where).parent.rglob(".incoming-*"))


def test_publishing_again_after_a_lost_answer_is_no_conflict(place: Place) -> None:
    registry = place.registry()
    old = night(place, 0).snapshot_id
    for _ in range(2):
        staged = registry.stage()
        build_snapshot(staged, run="new")
        registry.publish(staged, expected_parent=old)
        assert not staged.exists()


def test_publishing_an_older_one_again_serves_it_again(place: Place) -> None:
    old, new = night(place, 0).snapshot_id, night(place, 1).snapshot_id
    night(place, 0)
    assert place.registry().history() == (old, new)


def test_a_damaged_copy_is_replaced_when_published_again(place: Place) -> None:
    name = night(place, 0).snapshot_id
    path = place.path_of(name, "items.arrow")
    size = len(place.read(path))
    place.write(path, bytes(size // 2))  # a store keeps its own checksums: what can go wrong there is what was sent
    with pytest.raises(SnapshotCorrupt):
        place.registry().open_current()
    night(place, 0)
    place.registry().open_current().close()


def test_an_unfinished_folder_is_not_published(place: Place) -> None:
    registry = place.registry()
    old = night(place, 0).snapshot_id
    staged = registry.stage()
    with pytest.raises(NoSnapshot, match="manifest"):
        registry.publish(staged)
    build_snapshot(staged, run="new")
    (staged / "items.arrow").unlink()
    with pytest.raises(SnapshotCorrupt, match="items"):
        registry.publish(staged)
    assert registry.current() == old


def test_two_publishers_conflict_and_the_second_keeps_its_work(place: Place) -> None:
    registry = place.registry()
    parent = night(place, 0).snapshot_id
    staged = registry.stage()
    build_snapshot(staged, run="slow")
    winner = night(place, 1).snapshot_id
    with pytest.raises(PublishConflict, match=f"to follow {parent}, but {winner} is served now") as caught:
        registry.publish(staged, expected_parent=parent)
    assert caught.value.exit_code == 7
    with pytest.raises(PublishConflict, match="to follow nothing"):
        registry.publish(staged, expected_parent="")
    assert registry.current() == winner
    registry.publish(staged, expected_parent=winner)


RACE = """
import sys, time
from pathlib import Path
from engine.errors import PublishConflict
from engine.snapshot import Registry
from tests.snapshot_builder import build_snapshot
root, parent, run, start = sys.argv[1:]
registry = Registry(root)
staged = registry.stage()
build_snapshot(staged, run=run)
time.sleep(max(0, float(start) - time.time()))
try:
    print("won", registry.publish(staged, expected_parent=parent).snapshot_id)
except PublishConflict:
    print("lost")
"""


@pytest.mark.parametrize("first", [True, False])
def test_of_processes_that_publish_at_once_one_wins(place: Place, first: bool) -> None:
    parent = "" if first else night(place, 0).snapshot_id
    start = time.time() + 4
    racers = [run_python(RACE, place.where, parent, f"racer-{number}", start) for number in range(4)]
    said = sorted(racer.communicate(timeout=60)[0].split() for racer in racers)
    assert [words[0] for words in said] == ["lost"] * 3 + ["won"]
    registry = place.registry()
    assert registry.history() == ((said[3][1],) if first else (said[3][1], parent))
    registry.open_current().close()


def test_rollback_goes_back_step_by_step_and_promote_forward(place: Place) -> None:
    registry = place.registry()
    first, second, third = (night(place, number).snapshot_id for number in range(3))
    with pytest.raises(PublishConflict, match="A rollback was to follow"):
        registry.rollback(expected=first)
    assert registry.rollback() == second == registry.current()
    assert registry.rollback(expected=second) == first == registry.current()
    with pytest.raises(NoSnapshot):
        registry.rollback()
    registry.promote(third)
    assert registry.current() == third and registry.rollback() == first


@pytest.mark.parametrize("name", ["nothing", "../../etc", "20260131-000000000000", ""])
def test_promoting_what_is_not_here_names_what_is(place: Place, name: str) -> None:
    here = night(place, 0).snapshot_id
    with pytest.raises(NoSnapshot, match=here):
        place.registry().promote(name)
    assert place.registry().current() == here


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"current": "../x", "previous": []}', '{"current": 1, "previous": []}']
)
def test_a_broken_pointer_is_named_and_promote_mends_it(place: Place, text: str) -> None:
    registry = place.registry()
    here, other = night(place, 0).snapshot_id, night(place, 1).snapshot_id
    place.write("current.json", text.encode())
    with pytest.raises(SnapshotCorrupt, match=r"current\.json is not a pointer.*promote"):
        registry.current()
    assert {manifest.snapshot_id for manifest in registry.list()} == {here, other}
    registry.promote(here)
    assert registry.history() == (here,)
    registry.open_current().close()
    registry.promote(other)
    assert registry.history() == (other, here)


def test_a_lost_pointer_is_mended_by_promote_too(place: Place) -> None:
    registry = place.registry()
    here = night(place, 0).snapshot_id
    place.delete("current.json")
    with pytest.raises(NoSnapshot, match="no published"):
        registry.current()
    registry.promote(here)
    assert place.registry().current() == here


def test_a_snapshot_under_anothers_id_is_refused(place: Place) -> None:
    name, other = night(place, 0).snapshot_id, night(place, 1).snapshot_id
    for file in ("manifest.json", *place.registry().manifest(name).files):
        place.write(place.path_of(other, file), place.read(place.path_of(name, file)))
    with pytest.raises(SnapshotCorrupt, match=f"it holds {name}"):
        place.registry().open(other)
    with pytest.raises(SnapshotCorrupt, match=f"it holds {name}"):
        place.registry().promote(other)


def test_a_sweep_keeps_the_newest_the_served_and_the_one_before(place: Place) -> None:
    registry = place.registry()
    made = [night(place, number).snapshot_id for number in range(6)]
    registry.promote(made[1])
    registry.promote(made[0])
    mapped = registry.open(made[3])
    assert registry.sweep(keep=2) == sorted(made[2:4])
    assert {manifest.snapshot_id for manifest in registry.list()} == {made[0], made[1], made[4], made[5]}
    assert mapped.user(b"\1" * 16) is not None
    assert registry.sweep(keep=0) == sorted(made[4:])
    assert registry.rollback() == made[1]
    assert {path.split("/")[0] for path in place.everything()} == {"current.json", made[0], made[1]}
    night(place, 3)  # what was removed can be published again
    assert place.registry().open_current().manifest.snapshot_id == made[3]


HOLD = """
import sys, time
from engine.snapshot import Registry
registry = Registry(sys.argv[1])
print(registry.stage(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("why", ["later format", "error of the moment"])
def test_a_sweep_spares_what_it_cannot_read_today(place: Place, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    oldest, *_ = [publish_snapshot(place.where, run=f"run-{number}").snapshot_id for number in range(4)]
    registry = place.registry()
    if why == "later format":
        path = place.path_of(oldest, "manifest.json")
        place.write(path, place.read(path).replace(b'"format_version": 1', b'"format_version": 2'))
    else:
        real = registry._store.manifest

        def manifest(name: str, pointer: Any) -> Manifest:
            if name == oldest:
                raise SnapshotError("It cannot be read: Input/output error.")
            return real(name, pointer)

        monkeypatch.setattr(registry._store, "manifest", manifest)
    removed = registry.sweep(keep=0)
    assert oldest not in removed and removed
    assert place.read(place.path_of(oldest, "manifest.json"))


def test_a_sweep_takes_what_a_dead_publisher_left_and_spares_a_living_ones(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    own = registry.stage()
    other = run_python(HOLD, tmp_path)
    assert other.stdout is not None
    left = Path(other.stdout.readline().strip())
    assert left.is_dir() and registry.sweep() == [] and left.is_dir()
    other.kill()
    other.wait()
    assert registry.sweep() == [left.name]
    assert own.is_dir() and not left.exists()


# Each fork dies by SIGKILL right before one of its calls to the system, a later one each time, until one lives on.
KILLED = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
from engine.snapshot import Registry
from tests.snapshot_builder import build_snapshot, publish_snapshot

root = Path(sys.argv[1])
seed = root / "seed"
publish_snapshot(seed, run="old")
watched = {"open", "os.rename", "os.mkdir", "os.remove", "os.chmod", "os.listdir", "fcntl.flock", "shutil.rmtree"}

for point in count():
    place = root / f"point-{point}"
    shutil.copytree(seed, place)
    child = os.fork()
    if child == 0:
        left = [point]
        def die_at_the_point(event, arguments):
            if event in watched:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        registry = Registry(place)
        sys.addaudithook(die_at_the_point)
        staged = registry.stage()
        build_snapshot(staged, run="new")
        registry.publish(staged)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(point)
"""


def test_a_publisher_killed_at_any_point_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    script = run_python(KILLED, tmp_path)
    points = int(script.communicate(timeout=120)[0])
    assert points > 30
    new = build_snapshot(tmp_path / "new", run="new").snapshot_id
    served = []
    for point in range(points + 1):
        root = tmp_path / f"point-{point}"
        registry = Registry(root)
        with registry.open_current() as snapshot:
            served.append(snapshot.manifest.lineage.run)
        assert all(Snapshot.open(root / manifest.snapshot_id) for manifest in registry.list())
        registry.sweep()
        assert list(root.glob(".incoming-*")) == []
        assert publish_snapshot(root, run="new").snapshot_id == new == registry.current()
    assert served == sorted(served, reverse=True)  # old up to one moment, new from it on
    assert served[0] == "old" and served[-2:] == ["new", "new"]


PUBLISH_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from engine.snapshot import Registry
from tests.snapshot_builder import publish_snapshot
for number in count():
    users = {bytes([n]) * 16: {"seen": [{"item": n, "basis": number}]} for n in range(4)}
    publish_snapshot(Path(sys.argv[1]), users=users, shards=2, ledger_sequence=number)
    Registry(sys.argv[1]).sweep(keep=1)
    print(number, flush=True)
"""


def test_a_reader_beside_a_publisher_never_sees_a_mix(tmp_path: Path) -> None:
    publisher = run_python(PUBLISH_FOR_EVER, tmp_path)
    assert publisher.stdout is not None
    publisher.stdout.readline()
    registry, seen = Registry(tmp_path), set()
    end = time.monotonic() + 3
    try:
        while time.monotonic() < end:
            with registry.open_current() as snapshot:
                night_of = snapshot.manifest.lineage.ledger_sequence
                seen.add(night_of)
                for key in USERS:
                    record = snapshot.user(key)
                    assert record is not None and record.seen.basis.tolist() == [night_of]
    finally:
        publisher.send_signal(signal.SIGKILL)
        publisher.wait()
        publisher.stdout.close()
    assert len(seen) > 3
    registry.open_current().close()


def test_a_read_only_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="cannot be written"):
        Registry(tmp_path / "file").stage()
