"""What a replica makes of each way in which a published snapshot can be wrong, be it in a folder or in an object store."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from bodega.client import BodegaRpcError

from engine.errors import NoSnapshot, SnapshotError
from engine.serving.replica import Replica
from tests.serving.shop import Shop, allow
from tests.snapshot.object_server import ObjectServer
from tests.snapshot.places import Place, bucket, folder, object_server, place

__all__ = ["bucket", "folder", "object_server", "place"]


@pytest.fixture
def shop(place: Place, tmp_path: Path) -> Shop:
    return Shop(tmp_path / "out", place.where)


@pytest.fixture
def replica(shop: Shop) -> Iterator[Replica]:
    shop.publish()
    replica = Replica(shop.settings("retry_seconds=0.01"))
    replica.look()
    yield replica
    replica.close()


def problems(replica: Replica) -> dict[str, str]:
    return {code: f"{error.reason} {error.message} {error.remedy}" for code, error in replica.problems()}


def flip(place: Place, name: str) -> None:
    path = place.path_of(name, "candidates-00000.arrow")
    good = place.read(path)
    place.write(path, good[:400] + bytes([good[400] ^ 1]) + good[401:])


def cut(place: Place, name: str) -> None:
    path = place.path_of(name, "users-00001.arrow")
    place.write(path, place.read(path)[:-8])


def cut_in_half(place: Place, name: str) -> None:
    path = place.path_of(name, "manifest.json")
    place.write(path, place.read(path)[:200])


def lose(place: Place, name: str) -> None:
    place.delete(place.path_of(name, "items.arrow"))


def swap(place: Place, name: str) -> None:
    one, other = (place.path_of(name, f"users-{number:05d}.arrow") for number in range(2))
    first, second = place.read(one), place.read(other)
    place.write(one, second)
    place.write(other, first)


def make_newer(place: Place, name: str) -> None:
    path = place.path_of(name, "manifest.json")
    record = json.loads(place.read(path))
    record["format_version"] = 99
    place.write(path, json.dumps(record).encode())


FAULTS = [
    (flip, "SNAPSHOT_CORRUPT"),
    (cut, "SNAPSHOT_CORRUPT"),
    (cut_in_half, "SNAPSHOT_CORRUPT"),
    (swap, "SNAPSHOT_CORRUPT"),
    (make_newer, "SNAPSHOT_TOO_NEW"),
]


@pytest.mark.parametrize(("harm", "reason"), [*FAULTS, (lose, "")])
def test_a_bad_snapshot_is_refused_counted_and_leaves_the_old_one_serving(
    shop: Shop, replica: Replica, place: Place, harm: Callable[[Place, str], None], reason: str
) -> None:
    old = replica.served
    assert old is not None
    good = shop.publish(1).snapshot_id
    harm(place, good)
    for _ in range(2):
        replica.look()
        time.sleep(0.02)  # longer than retry_seconds
    assert replica.served is old and replica.ready
    told = problems(replica)["snapshot_refused"]
    assert good in told and old.name in told and told.startswith(reason)
    refused = replica.snapshots.refusals
    assert sum(refused.values()) == 2 and (not reason or refused[reason] == 2)
    with replica.lease() as served:
        assert served.snapshot.user(shop.keys.rotating.derive("ana")) is not None
    assert not list((shop.out / "cache").glob(".incoming-*"))
    if harm is not make_newer:  # an older publisher does not replace what it cannot read
        shop.publish(1)
        replica.look()
        assert not replica.problems() and replica.served is not None and replica.served.name == good
        assert replica.snapshots.swaps == 1


@pytest.mark.parametrize(("harm", "reason"), FAULTS)
def test_after_a_restart_the_newest_whole_one_serves_until_the_current_is_mended(
    shop: Shop, place: Place, harm: Callable[[Place, str], None], reason: str
) -> None:
    oldest, older, current = (shop.publish(number).snapshot_id for number in range(3))
    whole = {path: place.read(path) for path in place.everything()}
    harm(place, current)
    flip(place, older)
    replica = Replica(shop.settings("retry_seconds=0.01"))
    replica.look()
    assert replica.ready and replica.served is not None and replica.served.name == oldest
    told = problems(replica)["snapshot_refused"]
    assert current in told and oldest in told and told.startswith(reason)
    for path, data in whole.items():
        place.write(path, data)
    replica.look()
    assert not replica.problems() and replica.served.name == current
    replica.close()


def test_with_nothing_whole_nothing_serves_and_the_cause_is_told(shop: Shop, place: Place) -> None:
    names = [shop.publish(number).snapshot_id for number in range(2)]
    for name in names:
        cut(place, name)
    replica = Replica(shop.settings())
    for _ in range(3):
        replica.look()
    assert not replica.ready and "nothing is served" in problems(replica)["snapshot_refused"]
    assert replica.snapshots.refusals.total() == 2  # once each, not at every look
    replica.close()


def test_the_served_files_may_be_deleted(shop: Shop, replica: Replica, place: Place) -> None:
    served = replica.served
    assert served is not None
    shutil.rmtree(Path(place.where) if place.kind == "folder" else shop.out / "cache")
    replica.look()
    assert replica.ready and served.name in problems(replica)["snapshot_gone"]
    for user in ("ana", "ben"):
        with replica.lease() as held:
            assert held.snapshot.user(shop.keys.rotating.derive(user)) is not None
    again = shop.publish(1).snapshot_id
    replica.look()
    assert not replica.problems() and replica.served is not None and replica.served.name == again


def test_a_copy_that_is_damaged_while_it_serves_is_taken_up_anew(shop: Shop, replica: Replica, place: Place) -> None:
    """Of a folder once it is published again; of an object store, which has another copy, at once and only once."""
    name = replica.served.name if replica.served else ""
    local = (Path(place.where) if place.kind == "folder" else shop.out / "cache") / name

    def harmed() -> bool:
        with replica.lease() as served:
            try:
                served.snapshot.user(shop.keys.rotating.derive("ana"))
            except SnapshotError as error:
                replica.damaged(served, error)
                return True
        return False

    def harm() -> None:
        for path in local.glob("ways-*.arrow"):
            path.chmod(0o600)
            with path.open("r+b") as file:  # in place: it is mapped
                good = file.read()
                file.seek(0)
                file.write(bytes(byte ^ (7000 > at > 600) for at, byte in enumerate(good)))

    assert not harmed()
    harm()
    assert harmed() and set(problems(replica)) == {"record_damaged"}
    if place.kind == "folder":
        replica.look()
        assert harmed() and set(problems(replica)) == {"record_damaged"}
        shop.publish()
    replica.look()
    assert not harmed() and not problems(replica)
    if place.kind == "bucket":
        harm()
        for _ in range(2):
            assert harmed() and set(problems(replica)) == {"record_damaged"}
            replica.look()


def test_promote_and_rollback_are_in_effect_when_they_return(shop: Shop, replica: Replica, place: Place) -> None:
    first = replica.served.name if replica.served else ""
    second, third = (shop.publish(number).snapshot_id for number in (1, 2))
    assert replica.promote(second).name == second == replica.snapshots.registry.current()
    assert replica.served is not None and replica.served.name == second
    assert place.registry().history() == (second, third, first)
    assert replica.rollback().name == third
    assert replica.rollback().name == first == replica.snapshots.registry.current()
    with pytest.raises(NoSnapshot, match="served before"):
        replica.rollback()
    with pytest.raises(NoSnapshot):
        replica.promote("20200101-000000000000")
    assert not replica.problems() and replica.served.name == first


def test_what_this_process_cannot_serve_is_not_promoted(shop: Shop, replica: Replica, place: Place) -> None:
    old = replica.served
    assert old is not None
    strange = shop.publish(1, key_id="0badc0de").snapshot_id
    place.registry().promote(old.name)
    bad = shop.publish(2).snapshot_id
    flip(place, bad)
    place.registry().promote(old.name)
    for name in (strange, bad):
        with pytest.raises(SnapshotError):
            replica.promote(name)
        assert place.registry().current() == old.name and replica.served is old
    place.registry().promote(strange)
    place.registry().promote(old.name)
    with pytest.raises(SnapshotError, match="rotating key"):
        replica.rollback()
    assert place.registry().current() == old.name and replica.served is old


def test_a_store_that_does_not_answer_leaves_what_serves(
    shop: Shop, replica: Replica, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.server is None:
        monkeypatch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "denied")))
    else:
        place.server.fail("error_before", "GET", "current.json", times=1000)
        monkeypatch.setattr("engine.snapshot.bucket._RETRIES", {"max_retries": 0})
        replica.snapshots.registry = place.registry(shop.out / "cache")
    served = replica.served
    replica.look()
    assert replica.ready and replica.served is served
    assert "store_unavailable" in problems(replica)
    monkeypatch.undo()
    if place.server:
        place.server.faults.clear()
        for name, value in place.server.environment.items():
            monkeypatch.setenv(name, value)
    replica.look()
    assert not replica.problems()


@pytest.fixture
def away(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An object store that answers nothing."""
    monkeypatch.setattr("engine.snapshot.bucket._RETRIES", {"max_retries": 0})
    object_server.fail("error_before", "GET", "", times=10_000)
    yield
    object_server.faults.clear()


def test_a_restart_while_the_store_is_away_serves_what_this_machine_served_last(
    request: pytest.FixtureRequest, bucket: Place, tmp_path: Path
) -> None:
    shop = Shop(tmp_path / "out", bucket.where)
    old = shop.publish().snapshot_id
    newer = shop.publish(1).snapshot_id
    first = Replica(shop.settings())
    first.look()
    first.rollback()  # what was served, not what was fetched last
    first.close()
    request.getfixturevalue("away")
    again = Replica(shop.settings())
    for _ in range(2):
        again.look()
        assert again.ready and again.served is not None and again.served.name == old
        assert set(problems(again)) == {"store_unavailable"}
    with again.lease() as served:
        assert served.snapshot.user(shop.keys.rotating.derive("ana")) is not None
    assert bucket.server is not None
    bucket.server.faults.clear()
    bucket.registry().promote(newer)
    again.look()
    assert not again.problems() and again.served.name == newer
    again.close()


@pytest.mark.parametrize("harm", ["gone", "flipped", "another machine"])
def test_what_the_cache_does_not_hold_whole_is_not_served_without_the_store(
    request: pytest.FixtureRequest, bucket: Place, tmp_path: Path, harm: str
) -> None:
    shop = Shop(tmp_path / "out", bucket.where)
    name = shop.publish().snapshot_id
    first = Replica(shop.settings())
    first.look()
    first.close()
    cache = shop.out / "cache"
    if harm == "gone":
        shutil.rmtree(cache / name)
    elif harm == "flipped":
        file = cache / name / "candidates-00000.arrow"
        good = file.read_bytes()
        file.unlink()
        file.write_bytes(good[:400] + bytes([good[400] ^ 1]) + good[401:])
    else:
        shutil.rmtree(cache)
    request.getfixturevalue("away")
    again = Replica(shop.settings())
    again.look()
    assert not again.ready and "store_unavailable" in problems(again)
    again.close()


def test_a_server_answers_before_its_first_snapshot_is_fetched(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes, consent and a stop do not wait for a fetch that takes minutes."""
    assert bucket.server is not None
    shop = Shop(tmp_path / "out", bucket.where)
    name = shop.publish().snapshot_id
    bucket.server.fail("hang_after", "GET", "items.arrow", times=2, seconds=4)
    monkeypatch.setattr("engine.serving.server._PATIENCE_SECONDS", 0.3)
    with shop.served() as (server, client):
        assert not server.replica.ready
        with pytest.raises(BodegaRpcError) as refused:
            client.recommend("ana", timeout=1)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        allow(client, "ana")
        until = time.monotonic() + 20
        while not server.replica.ready and time.monotonic() < until:
            time.sleep(0.05)
        assert client.recommend("ana").provenance.snapshot_id == name
    shutil.rmtree(shop.out / "cache")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.serving", f"out={shop.out}", f"snapshots={bucket.where}", "port=0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        asked = len(bucket.server.asked)
        while not any(path.endswith("items.arrow") for _, path in bucket.server.asked[asked:]):
            assert time.monotonic() - began < 60
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert "stopped" in process.communicate(timeout=30)[1] and process.returncode == 0
    finally:
        process.kill()
        bucket.server.faults.clear()


def test_a_ledger_is_heard_while_a_snapshot_is_fetched(shop: Shop, replica: Replica) -> None:
    """A fetch may take minutes; a withdrawal may not wait for it."""
    fetching, done = threading.Event(), threading.Event()
    registry = replica.snapshots.registry
    history = registry.history

    def slow() -> tuple[str, ...]:
        fetching.set()
        assert done.wait(20)
        return history()

    registry.history = slow  # type: ignore[method-assign]
    replica.settings.watch_seconds = 0.02
    replica.watch(lambda: None, 0.1)
    assert fetching.wait(20)
    (shop.out / "consent.db").rename(shop.out / "away.db")
    waited = threading.Event()
    for _ in range(200):
        if "ledger_unavailable" in problems(replica):
            break
        waited.wait(0.05)
    assert "ledger_unavailable" in problems(replica) and not done.is_set()
    (shop.out / "away.db").rename(shop.out / "consent.db")
    done.set()
