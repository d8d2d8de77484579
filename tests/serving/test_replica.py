"""What a process takes up, what it refuses, and what it keeps serving meanwhile."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bodega.client import BodegaRpcError, Client
from bodega.v1 import ranking_pb2

from engine.consent import Change, Ledger
from engine.errors import NoSnapshot, SettingsError, UnknownThing
from engine.identity import UserKeys
from engine.serving.replica import Replica
from engine.serving.server import Server
from engine.serving.settings import load
from engine.snapshot import Registry
from tests.serving.shop import VOCABULARY, Shop, allow


@pytest.fixture
def replica(shop: Shop) -> Iterator[Replica]:
    shop.publish()
    replica = Replica(shop.settings("retry_seconds=0.01"))
    replica.look()
    yield replica
    replica.close()


def problems(replica: Replica) -> dict[str, str]:
    return {code: f"{error.message} {error.remedy}" for code, error in replica.problems()}


def test_a_snapshot_of_another_rotating_key_is_refused(shop: Shop, replica: Replica) -> None:
    shop.publish(1, key_id="0badc0de")
    replica.look()
    assert "0badc0de" in problems(replica)["snapshot_refused"]


def test_a_rotated_key_is_taken_up_with_its_snapshot(shop: Shop, replica: Replica) -> None:
    (shop.out / "keys" / "rotating.key").unlink()
    shop.keys = UserKeys.load(shop.out / "keys", create=True)
    shop.publish(1)
    replica.look()
    assert not replica.problems()
    served = replica.served
    assert served is not None and served.keys.rotating.key_id == shop.keys.rotating.key_id
    assert served.snapshot.user(shop.keys.rotating.derive("ana")) is not None


def test_a_flipped_bit_is_refused_and_a_good_one_after_it_is_taken(shop: Shop, replica: Replica) -> None:
    manifest = shop.publish(1)
    path = shop.out / "snapshots" / manifest.snapshot_id / "candidates-00000.arrow"
    good = path.read_bytes()
    path.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    replica.look()
    assert "candidates-00000.arrow" in problems(replica)["snapshot_refused"]
    assert replica.ready
    newest = shop.publish(2).snapshot_id
    replica.look()
    assert not replica.problems()
    assert replica.served is not None and replica.served.name == newest


def test_a_refused_snapshot_is_not_hashed_again_each_second(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.publish(key_id="0badc0de")
    replica = Replica(shop.settings("retry_seconds=3600"))
    opened: list[str] = []
    original = Registry.open

    def spy(self: Registry, name: str, verify: bool = True) -> Any:
        opened.append(name)
        return original(self, name, verify)

    monkeypatch.setattr(Registry, "open", spy)
    for _ in range(5):
        replica.look()
    assert len(opened) == 1
    assert "snapshot_refused" in problems(replica)
    replica.close()


def test_a_broken_pointer_leaves_what_is_served(shop: Shop, replica: Replica) -> None:
    (shop.out / "snapshots" / "current.json").write_text("{")
    replica.look()
    assert replica.ready
    assert "snapshot_refused" in problems(replica)


def test_an_old_snapshot_stays_open_until_its_last_request_ends(shop: Shop, replica: Replica) -> None:
    key = shop.keys.rotating.derive("ana")
    with replica.lease() as outer:
        with replica.lease() as old:
            shop.publish(1)
            replica.look()
            assert replica.served is not old
            assert old.snapshot.user(key) is not None
        assert outer.snapshot.user(key) is not None
    from engine.errors import SnapshotError

    with pytest.raises(SnapshotError, match="closed"):
        old.snapshot.user(key)
    with replica.lease() as new:
        assert new.snapshot.user(key) is not None


def test_leases_and_swaps_from_many_threads_never_close_what_is_in_use(shop: Shop, replica: Replica) -> None:
    names = [shop.publish(first).snapshot_id for first in range(3)]
    registry, key = Registry(shop.out / "snapshots"), shop.keys.rotating.derive("ana")
    faults: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.0001):
            try:
                with replica.lease() as served:
                    assert served.snapshot.user(key) is not None
            except BaseException as error:  # noqa: BLE001 - the test reports it
                faults.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        registry.promote(names[turn % 3])
        replica.look()
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults


def test_without_a_snapshot_a_lease_names_the_remedy(shop: Shop) -> None:
    replica = Replica(shop.settings())
    with pytest.raises(NoSnapshot) as caught, replica.lease():
        pass
    assert "jobs.nightly" in caught.value.remedy


def test_a_surface_that_is_not_there_is_an_unknown_thing(replica: Replica) -> None:
    with pytest.raises(UnknownThing) as caught:
        replica.chain("emial", "context.surface")
    assert "email" in caught.value.remedy


def test_a_replaced_ledger_is_never_read_through_the_old_file(shop: Shop, served: tuple[Server, Client]) -> None:
    server, client = served
    allow(client, "ana")
    path = shop.out / "consent.db"
    for name in ("consent.db", "consent.db-wal", "consent.db-shm"):
        (shop.out / name).rename(shop.out / f"old-{name}") if (shop.out / name).exists() else None
    with pytest.raises(BodegaRpcError):
        client.withdraw("ana")  # at once: it would be written to what is gone
    until = time.monotonic() + 1  # the bound
    while client.recommend("ana").provenance.reason != "consent_unavailable":
        assert time.monotonic() < until
    Ledger.open(f"sqlite:///{path}", VOCABULARY).close()
    server.replica.look()
    # An empty ledger where there was one with people in it is a loss, and no fresh start.
    assert client.recommend("ana").provenance.reason == "consent_unavailable"


def test_status_tells_operators_what_ails_the_process(shop: Shop, served: tuple[Server, Client]) -> None:
    server, client = served
    allow(client, "ana")
    status = client.status()
    assert status.ready and status.version and not status.degraded
    assert status.consent_sequence == 1 and 0 < status.consent_staleness_seconds < 1
    assert (status.snapshot.users, status.snapshot.items, status.snapshot.serving) == (4, 40, True)
    assert status.snapshot.metrics["recall@20"] == 0.25
    assert status.snapshot.bytes > 1000
    assert any(each.startswith("home@") for each in status.policies)
    (shop.out / "consent.db").rename(shop.out / "away.db")
    server.replica.look()
    status = client.status()
    assert list(status.degraded) == ["ledger_unavailable"]
    assert "consent.db is gone" in status.problems[0].message and status.problems[0].remedy
    assert list(client.recommend().provenance.degraded) == ["ledger_unavailable"]


def test_snapshots_are_listed_newest_first_a_page_at_a_time(shop: Shop, server: Server) -> None:
    import grpc
    from bodega.v1 import admin_pb2, admin_pb2_grpc

    names = [shop.publish(first).snapshot_id for first in range(1, 4)]
    server.replica.look()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        first = stub.ListSnapshots(admin_pb2.ListSnapshotsRequest(page_size=3), timeout=20)
        assert [each.snapshot_id for each in first.snapshots] == names[::-1]
        assert [each.serving for each in first.snapshots] == [True, False, False]
        request = admin_pb2.ListSnapshotsRequest(page_size=3, page_token=first.next_page_token)
        rest = stub.ListSnapshots(request, timeout=20)
        assert len(rest.snapshots) == 1 and not rest.next_page_token
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListSnapshots(admin_pb2.ListSnapshotsRequest(page_token="x"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tls.cert=a.pem", "Only one of tls.cert and tls.key"),
        ("threads=0", "outside"),
        ("log.level=inf", "Did you mean 'info'?"),
        ("default_surface=hme", "Did you mean 'home'?"),
        ("+foo=1", "no setting 'foo'"),
        ("+log.colour=1", "no setting 'log.colour'"),
        ("port=many", "Integer"),
        ("host=192.0.2.1", "no TLS"),
        ("host=shop.example", "no TLS"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load([f"out={tmp_path}", override])
    assert words in str(caught.value)
    assert caught.value.remedy


def test_out_must_be_given() -> None:
    with pytest.raises(SettingsError, match="'out' is missing"):
        load([])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_tls(tmp_path: Path, host: str) -> None:
    assert load([f"out={tmp_path}", f"host='{host}'"]).loopback


def test_the_manifest_of_what_is_served_is_whole_json(shop: Shop) -> None:
    manifest = shop.publish()
    stored = json.loads((shop.out / "snapshots" / manifest.snapshot_id / "manifest.json").read_text())
    assert stored["vocabulary"] == VOCABULARY.to_json()


def test_a_ledger_that_went_back_is_not_believed(shop: Shop, served: tuple[Server, Client]) -> None:
    _, client = served
    allow(client, "ana")
    assert client.recommend("ana").provenance.mode != ranking_pb2.Provenance.MODE_NON_PROFILED
    old = shop.out / "old.db"
    with (
        contextlib.closing(sqlite3.connect(shop.out / "consent.db")) as source,
        contextlib.closing(sqlite3.connect(old)) as copy,
    ):
        source.backup(copy)
    client.withdraw("ana")
    for name in ("consent.db-wal", "consent.db-shm"):
        (shop.out / name).unlink(missing_ok=True)
    old.replace(shop.out / "consent.db")
    until = time.monotonic() + 3
    while time.monotonic() < until:  # at once, and after the watcher has looked again
        provenance = client.recommend("ana").provenance
        assert provenance.mode == ranking_pb2.Provenance.MODE_NON_PROFILED, provenance
        time.sleep(0.1)
    assert provenance.reason == "consent_unavailable"


def copied(source: Path, target: Path) -> None:
    """Page by page into the file that is there, as SQLite's own backup does: it stays the same file."""
    with contextlib.closing(sqlite3.connect(source)) as left, contextlib.closing(sqlite3.connect(target)) as right:
        left.backup(right)


def test_a_ledger_restored_in_place_is_not_believed_however_far_it_comes_again(
    shop: Shop, served: tuple[Server, Client]
) -> None:
    server, client = served
    allow(client, "ana")
    copied(shop.out / "consent.db", shop.out / "old.db")
    client.withdraw("ana")
    time.sleep(0.3)  # the watcher looks each 0.05 s
    copied(shop.out / "old.db", shop.out / "consent.db")

    def not_believed() -> None:
        assert client.recommend("ana").provenance.reason == "consent_unavailable"
        assert "ledger_unavailable" in dict(server.replica.problems())

    time.sleep(0.3)
    not_believed()
    with pytest.raises(BodegaRpcError, match="consent"):
        allow(client, "ben")
    with contextlib.closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", VOCABULARY)) as other:
        for name in ("ben", "cat", "dan"):  # past where it was
            other.record(shop.keys.stable.derive(name), [Change("profile", "web", True)], None, "n", "person", "", None)
    time.sleep(0.3)
    not_believed()


def test_a_restart_does_not_believe_a_ledger_with_another_past_than_the_night_read(shop: Shop) -> None:
    shop.publish()
    with shop.served() as (server, client):
        copied(shop.out / "consent.db", shop.out / "old.db")
        allow(client, "ana")
        client.withdraw("ana")
        with server.replica.ledger.at_work() as (ledger, _):
            sequence, head = ledger.sequence(), ledger.audit_head(ledger.sequence())
        shop.publish(1, ledger_sequence=sequence, audit_head=head)
    copied(shop.out / "old.db", shop.out / "consent.db")
    old = Ledger.open(f"sqlite:///{shop.out}/consent.db", VOCABULARY)
    old.bind(shop.keys.stable.key_id)
    for _ in range(5):
        old.record(shop.keys.stable.derive("ana"), [Change("profile", "web", True)], None, "n", "person", "", None)
    old.close()
    with shop.served() as (server, client):
        assert client.recommend("ana").provenance.reason == "consent_unavailable"
        assert "another past" in problems(server.replica)["ledger_unavailable"]


@pytest.mark.parametrize("more", [0, 5], ids=["further back", "as far again"])
def test_a_restart_does_not_believe_an_older_ledger(shop: Shop, more: int) -> None:
    shop.publish()
    with shop.served() as (_, client):
        allow(client, "ana")
    copied(shop.out / "consent.db", shop.out / "old.db")
    with shop.served() as (_, client):
        client.erase_user("ana")
        time.sleep(0.3)  # the watcher looks each 0.05 s
    (shop.out / "old.db").replace(shop.out / "consent.db")
    for name in ("consent.db-wal", "consent.db-shm"):
        (shop.out / name).unlink(missing_ok=True)
    old = Ledger.open(f"sqlite:///{shop.out}/consent.db", VOCABULARY)
    for _ in range(more):
        old.record(shop.keys.stable.derive("ben"), [Change("profile", "web", True)], None, "n", "person", "", None)
    old.close()
    with shop.served() as (server, client):
        assert client.recommend("ana").provenance.reason == "consent_unavailable"
        with pytest.raises(BodegaRpcError):
            client.withdraw("ana")
        assert "ledger-seen.json" in problems(server.replica)["ledger_unavailable"]
    (shop.out / "cache" / "ledger-seen.json").unlink()
    with shop.served() as (_, client):
        assert client.recommend("ana").provenance.mode == ranking_pb2.Provenance.MODE_PROFILED, "as an operator chose"


def test_an_old_ledger_is_never_served_with_new_keys(shop: Shop) -> None:
    shop.publish()
    with shop.served() as (_, client):
        allow(client, "ana")
    kept = (shop.out / "keys" / "stable.key").read_bytes()
    (shop.out / "keys" / "stable.key").unlink()
    with shop.served() as (_, client):
        with pytest.raises(BodegaRpcError) as refused:
            client.withdraw("ana")
        assert refused.value.code.name == "UNAVAILABLE"
    assert not (shop.out / "keys" / "stable.key").exists()
    (shop.out / "keys" / "stable.key").write_bytes(kept)
    (shop.out / "keys" / "stable.key").chmod(0o600)
    with shop.served() as (_, client):
        client.withdraw("ana")
        assert client.recommend("ana").provenance.reason == "no_consent"
