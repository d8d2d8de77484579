"""Linked ids over gRPC: one list for all of them, and not a line of it for any of them once one is taken out."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from bodega.client import BodegaRpcError, Client, grant
from bodega.v1 import ranking_pb2

from engine.consent import Ledger
from engine.consent.changes import ALONE
from engine.serving.server import Server
from tests.serving.shop import PARTNER, VOCABULARY, WEB, Shop, allow, ids, item, people
from tests.snapshot_builder import candidate

Mode = ranking_pb2.Provenance
TOGETHER = {"candidates": [candidate(place, ("two_tower", WEB | PARTNER, 99.0 - place)) for place in (17, 18, 19)]}
THEIRS = {item(17), item(18), item(19)}


def person_of(shop: Shop, user: str) -> bytes:
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", VOCABULARY)) as ledger:
        return ledger.standing(shop.keys.stable.derive(user)).person


def publish_together(shop: Shop, server: Server, *members: str) -> None:
    """What a night makes of linked ids: a record under the person that they share, and none under each."""
    rotating = shop.keys.rotating
    users: dict[bytes, Any] = {rotating.derive(who): rows for who, rows in people(1).items() if who not in members}
    shop.publish(1, users=users | {rotating.of_person(person_of(shop, members[0])): TOGETHER})
    server.replica.look()


def shown(client: Client, user: str, token: str = "") -> set[str]:
    return THEIRS & set(ids(client.recommend(user, limit=5, consent_token=token)))


@pytest.fixture
def linked(shop: Shop, served: tuple[Server, Client]) -> Client:
    server, client = served
    allow(client, "ana")
    client.link_users(["ana", "ana-app"], notice_version="n7")
    publish_together(shop, server, "ana", "ana-app")
    return client


def test_before_the_next_night_each_id_has_its_own_list(client: Client) -> None:
    allow(client, "ana")
    before = client.recommend("ana")
    token = client.link_users(["ana-app", "ana"]).consent_token
    assert client.get_consent("ana-app", consent_token=token).linked_ids == 1
    assert [(each.purpose, each.granted) for each in client.get_consent("ana-app").grants if each.purpose == "profile"]
    after = client.recommend("ana", consent_token=token)
    assert ids(after) == ids(before) and after.provenance.mode == Mode.MODE_PROFILED
    assert client.recommend("ana-app", consent_token=token).provenance.reason == "unknown_user"


def test_the_night_after_every_linked_id_gets_the_one_list(linked: Client) -> None:
    assert shown(linked, "ana") == shown(linked, "ana-app") == THEIRS
    linked.link_users(["ana", "ana-tv"])  # joins at once, though no log knows it
    assert shown(linked, "ana-tv") == THEIRS


@pytest.mark.parametrize("how", ["unlink ana", "unlink ana-app", "withdraw cross_source", "withdraw it for one source"])
def test_taken_apart_nothing_of_the_one_list_is_used_for_any(linked: Client, how: str, shop: Shop) -> None:
    assert shown(linked, "ana")
    if how.startswith("unlink"):
        token = linked.unlink_user(how.removeprefix("unlink ")).consent_token
    else:
        source = "app" if how.endswith("source") and "one" in how else ""
        token = linked.withdraw("ana-app", "cross_source", source).consent_token
    for user in ("ana", "ana-app"):
        reply = linked.recommend(user, limit=5, consent_token=token)
        assert not THEIRS & set(ids(reply)) and reply.provenance.mode == Mode.MODE_NON_PROFILED
        assert ids(reply) == ids(linked.recommend(limit=5)), "and is a stranger's"
    assert person_of(shop, "ana") == ALONE
    again = linked.link_users(["ana", "somebody-else"]).consent_token
    assert not shown(linked, "ana", again) and not shown(linked, "somebody-else", again), "nor under another link"


def test_a_withdrawal_or_an_erasure_under_one_id_holds_under_the_other(linked: Client) -> None:
    token = linked.set_consent("ana-app", [grant("profile", "partner", granted=False)]).consent_token
    assert not shown(linked, "ana", token), "each line relied on the partner too"
    token = linked.set_consent("ana", [grant("profile")], preference="none").consent_token
    assert linked.recommend("ana-app", consent_token=token).provenance.reason == "level_none"
    token = linked.erase_user("ana-app").consent_token
    assert linked.recommend("ana", consent_token=token).provenance.reason == "no_consent"
    assert not linked.consent_changes("ana").changes and linked.get_consent("ana").linked_ids == 0


def test_the_history_tells_of_the_link_and_of_nobody_else(linked: Client) -> None:
    linked.unlink_user("ana-app", actor="guardian")
    changes = linked.consent_changes("ana-app").changes
    told = [each.grant for each in changes if each.grant.purpose == "linked"]
    assert [each.granted for each in told] == [True, False] and {len(each.source) for each in told} == {32}
    assert {each.notice_version for each in changes[:3]} == {"n7"} and changes[-1].actor == "guardian"


def test_what_is_wrong_with_a_link_is_said_by_field(client: Client) -> None:
    for named, field in (
        (["ana"], "user_ids"),
        ([f"u{n}" for n in range(17)], "user_ids"),
        (["a", ""], "user_ids"),
        (["a", "e\u0301"], "user_ids[1]"),
    ):
        with pytest.raises(BodegaRpcError) as refused:
            client.link_users(named)
        assert refused.value.field == field
    with pytest.raises(BodegaRpcError, match="one id"):
        client.link_users(["ana", "ana"])
    client.link_users([f"u{n}" for n in range(16)])
    with pytest.raises(BodegaRpcError, match="at most 16"):
        client.link_users(["u3", "ana"])
    with pytest.raises(TypeError, match="notice_version"):
        client.link_users(["a", "b"], notice_vrsion="x")  # type: ignore[call-arg]
