"""Operators change what is served, by RPC and by command; nobody else does."""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
import pytest
from bodega.client import BodegaRpcError, Client
from bodega.v1 import admin_pb2, admin_pb2_grpc

from engine.serving.server import Server
from engine.serving.settings import load
from engine.snapshot import Registry
from jobs import cli
from jobs.operator import Operator
from tests.serving.shop import Shop, allow, ids, item


def operator_of(server: Server) -> Operator:
    return Operator(f"127.0.0.1:{server.port}", timeout=20)


def test_promote_and_rollback_change_the_very_next_list(shop: Shop) -> None:
    names = [shop.publish(first).snapshot_id for first in range(3)]
    with shop.served("watch_seconds=60") as (server, client), operator_of(server) as operator:
        allow(client, "ana")

        def leads() -> tuple[str, str]:
            reply = client.recommend("ana", limit=1, diversity=0)
            return reply.provenance.snapshot_id, ids(reply)[0]

        assert leads() == (names[2], item(2))
        reply = operator.promote_snapshot(names[0])
        assert (reply.snapshot.snapshot_id, reply.snapshot.serving) == (names[0], True)
        assert leads() == (names[0], item(0))
        assert operator.rollback_snapshot("worse clicks").snapshot.snapshot_id == names[2]
        assert leads() == (names[2], item(2))
        assert Registry(shop.snapshots).history() == (names[2], names[1])
        status = client.status()
        assert status.snapshot_swaps == 2 and not status.snapshots_refused and status.snapshot_age_seconds > 0


def test_a_rollback_to_before_a_withdrawal_does_not_bring_the_grant_back(shop: Shop) -> None:
    shop.publish(0)
    with shop.served("watch_seconds=60") as (server, client), operator_of(server) as operator:
        allow(client, "ana")
        shop.publish(1)
        server.replica.look()
        client.withdraw("ana")
        operator.rollback_snapshot("an old one")
        assert client.recommend("ana").provenance.reason == "no_consent"


@pytest.mark.parametrize(
    ("ask", "code", "words"),
    [
        (lambda it, here: it.promote_snapshot("20200101-000000000000"), "NOT_FOUND", "has no snapshot"),
        (lambda it, here: it.promote_snapshot("../../etc"), "NOT_FOUND", "has no snapshot"),
        (lambda it, here: it.promote_snapshot(""), "INVALID_ARGUMENT", "snapshot_id"),
        (lambda it, here: it.rollback_snapshot(""), "INVALID_ARGUMENT", "reason"),
        (lambda it, here: it.rollback_snapshot("x" * 257), "INVALID_ARGUMENT", "reason"),
        (lambda it, here: it.rollback_snapshot("worse"), "NOT_FOUND", "served before"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(shop: Shop, ask: Any, code: str, words: str) -> None:
    here = shop.publish().snapshot_id
    with shop.served() as (server, client), operator_of(server) as operator:
        with pytest.raises(BodegaRpcError) as caught:
            ask(operator, here)
        assert caught.value.code.name == code
        assert words in caught.value.message and caught.value.remedy
        assert client.status().snapshot.snapshot_id == here == Registry(shop.snapshots).current()


def test_a_damaged_one_is_not_promoted_and_why_is_told(shop: Shop) -> None:
    bad, good = (shop.publish(first).snapshot_id for first in range(2))
    path = shop.out / "snapshots" / bad / "items.arrow"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    with shop.served() as (server, client), operator_of(server) as operator:
        for ask in (lambda: operator.promote_snapshot(bad), lambda: operator.rollback_snapshot("worse")):
            with pytest.raises(BodegaRpcError) as caught:
                ask()
            assert caught.value.reason == "SNAPSHOT_CORRUPT" and "items.arrow" in caught.value.message
        assert client.status().snapshot.snapshot_id == good == Registry(shop.snapshots).current()


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_rollout_to_a_part_is_not_built_yet(shop: Shop, percent: int) -> None:
    name = shop.publish().snapshot_id
    with shop.served() as (server, _), grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as caught:
            stub.PromoteSnapshot(admin_pb2.PromoteSnapshotRequest(snapshot_id=name, percent=percent), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        stub.PromoteSnapshot(admin_pb2.PromoteSnapshotRequest(snapshot_id=name, percent=100), timeout=20)


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        (["host=0.0.0.0", "insecure=true"], False),
        (["host=0.0.0.0", "insecure=true", "admin=true"], True),
        (["admin=false"], False),
        ([], True),
    ],
)
def test_only_a_server_that_operators_alone_reach_lets_callers_change_what_it_serves(
    shop: Shop, overrides: list[str], allowed: bool
) -> None:
    old, new = (shop.publish(first).snapshot_id for first in range(2))
    with shop.served(*overrides) as (server, client), operator_of(server) as operator:
        for ask in (lambda: operator.promote_snapshot(new), lambda: operator.rollback_snapshot("worse")):
            if allowed:
                ask()
            else:
                with pytest.raises(BodegaRpcError, match="does not let callers") as refused:
                    ask()
                assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        assert Registry(shop.snapshots).current() == (old if allowed else new)
        assert client.status().ready  # which tells, and changes nothing


def test_the_audit_log_says_who_changed_what_is_served(shop: Shop) -> None:
    old, new = (shop.publish(first).snapshot_id for first in range(2))
    with shop.served() as (server, _), operator_of(server) as operator:
        operator.rollback_snapshot("worse clicks")
        operator.promote_snapshot(new)
        with server.replica.ledger.at_work() as (ledger, _):
            rows = ledger.audit_rows(2)
    assert [(row.action, row.actor, json.loads(row.detail)) for row in rows] == [
        ("snapshot_rolled_back", "operator", {"snapshot": old, "because": "worse clicks"}),
        ("snapshot_promoted", "operator", {"snapshot": new}),
    ]


def test_the_command_does_it_through_a_server_or_on_the_folder(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (shop.publish(first).snapshot_id for first in range(2))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bodega", "snapshot", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    with shop.served("watch_seconds=60") as (server, client):
        there = ("--address", f"127.0.0.1:{server.port}")
        assert run("rollback", "--reason", "worse", *there)[1].splitlines()[-1] == f"{old} is served now"
        assert client.status().snapshot.snapshot_id == old == Registry(shop.snapshots).current()
        assert run("promote", new, *there)[0] == 0
        assert client.status().snapshot.snapshot_id == new
        code, said = run("rollback", *there)
        assert code == 1 and "reason" in said
        by_hand = ("--store", shop.snapshots, "--out", str(shop.out))
        assert run("rollback", "--reason", "by hand", *by_hand)[0] == 0
        assert Registry(shop.snapshots).current() == old
        with server.replica.ledger.at_work() as (ledger, _):
            (row,) = ledger.audit_rows(1)
        assert (row.action, json.loads(row.detail)) == ("snapshot_rolled_back", {"snapshot": old, "because": "by hand"})
        assert "no ledger" in run("promote", old, "--store", shop.snapshots, "--out", str(shop.out / "empty"))[1]
        assert client.status().snapshot.snapshot_id == new  # until it looks


@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_cache_of_no_size_is_refused(tmp_path: Any, value: str) -> None:
    from engine.errors import SettingsError

    with pytest.raises(SettingsError, match="cache_gib"):
        load([f"out={tmp_path}", f"cache_gib={value}"])


def test_a_client_of_a_backend_has_no_way_to_change_what_is_served() -> None:
    assert not [name for name in dir(Client) if "promote" in name or "rollback" in name]
