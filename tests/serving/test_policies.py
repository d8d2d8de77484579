"""New policies take the place of old ones while a server serves, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from bodega.v1 import admin_pb2, admin_pb2_grpc

from engine.errors import NotAllowed, PolicyError
from engine.serving.policies import HeldPolicies
from engine.serving.server import Server
from engine.serving.settings import ServeSettings
from tests.serving.shop import Shop, ids

SHORT = {"home": {"limit": 5, "rules": [{"name": "exclusions"}, {"name": "consent"}]}}
LONG = {"home": {"limit": 9, "rules": [{"name": "exclusions"}, {"name": "consent"}]}}


def reload(server: Server) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        return admin_pb2_grpc.AdminServiceStub(channel).ReloadPolicies(admin_pb2.ReloadPoliciesRequest(), timeout=10)


def test_a_reload_is_in_the_next_list_and_in_the_status(shop: Shop) -> None:
    shop.publish()
    with shop.served(again=lambda: _with(shop, SHORT)) as (server, client):
        assert len(ids(client.recommend())) == 20
        told = list(reload(server).policies)
        assert [name.partition("@")[0] for name in told] == ["home"]
        reply = client.recommend()
        assert len(reply.items) == 5 and reply.provenance.policy == told[0]
        assert list(client.status().policies) == told


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"home": {"rules": [{"name": "exclusion"}, {"name": "consent"}]}}, "exclusion"),
        ({"email": {"rules": [{"name": "consent"}]}}, "default surface"),
        ({"home": {"rules": [{"name": "exclusions"}]}}, "the last rule"),
    ],
)
def test_wrong_policies_change_nothing(shop: Shop, spec: dict[str, Any], said: str) -> None:
    shop.publish()
    with shop.served(again=lambda: _with(shop, spec)) as (server, client):
        before = list(client.status().policies)
        with pytest.raises(grpc.RpcError) as told:
            reload(server)
        assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT and said in told.value.details()
        assert list(client.status().policies) == before
        assert len(ids(client.recommend())) == 20


def test_where_nobody_may_administer_nobody_reloads(shop: Shop) -> None:
    shop.publish()
    with shop.served("admin=false", again=lambda: _with(shop, SHORT)) as (server, _):
        with pytest.raises(grpc.RpcError) as told:
            reload(server)
        assert told.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_policies_from_nowhere_cannot_be_read_again() -> None:
    with pytest.raises(NotAllowed):
        HeldPolicies(SHORT).reload("home")


def test_what_was_in_force_is_told_newest_first_and_survives_a_damaged_line(tmp_path: Path) -> None:
    record = tmp_path / "policies.jsonl"
    assert HeldPolicies(SHORT, record).remember() is not None
    with record.open("a") as file:
        file.write("no json\n")
    held = HeldPolicies(LONG, record)
    assert held.remember() is not None and held.remember() is None
    assert [chains["home"].default_limit for _, chains in held.before()] == [5]
    assert held.since is not None and held.since > held.before()[0][0]
    back = HeldPolicies(SHORT, record)
    assert back.remember() is not None, "what comes back is in force since now"
    assert [chains["home"].default_limit for _, chains in back.before()] == [9, 5]


def test_rules_that_are_gone_leave_a_gap_in_the_history(tmp_path: Path) -> None:
    record = tmp_path / "policies.jsonl"
    HeldPolicies(SHORT, record).remember()
    record.write_text(record.read_text().replace("exclusions", "no_such_rule"))
    held = HeldPolicies(LONG, record)
    held.remember()
    assert held.before() == []


def test_only_what_may_be_in_force_is(tmp_path: Path) -> None:
    held = HeldPolicies(LONG, tmp_path / "policies.jsonl", lambda: {"home": {"rules": []}})
    with pytest.raises(PolicyError):
        held.reload("home")
    assert held.chains["home"].default_limit == 9


def _with(shop: Shop, spec: dict[str, Any]) -> ServeSettings:
    return replace(shop.settings(), policy=spec)
