"""Explain: what rules did, how much each decides, and what a person can do, each of which is then seen to do what was said."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from bodega.client import BodegaRpcError, Client, event
from grpc import StatusCode

from engine.serving.server import Server
from tests.serving.shop import ITEMS, Shop, allow, ids, item


def test_each_rule_that_acted_on_an_item_is_named_with_its_ranks(client: Client) -> None:
    allow(client, "ana")
    listed = ids(client.recommend("ana"))
    told = client.explain("ana", item_id=listed[4])
    assert (told.effects[0].rule, told.effects[-1].rule) == ("consent", "limit")
    assert told.effects[-1].rank_after == 5
    ranks = [(act.rank_before, act.rank_after, act.effect) for act in told.effects]
    assert all((before != after) == (effect == "moved") for before, after, effect in ranks)
    assert all(first[1] == then[0] for first, then in pairwise(ranks)), "no step is missing"
    assert told.reasons[0] == client.recommend("ana").items[4].reasons[0]


def test_what_was_removed_says_by_which_rule_and_why(client: Client) -> None:
    allow(client, "ana")
    client.record_events([event("ana", "dismiss", item(3), source="web")])
    told = client.explain("ana", item_id=item(3))
    assert (told.effects[-1].rule, told.effects[-1].effect, told.effects[-1].reason) == (
        "exclusions",
        "removed",
        "done_today",
    )
    assert told.effects[-1].rank_after == 0 and not told.reasons


def test_the_withheld_is_no_candidate_and_nothing_says_that_it_was(client: Client) -> None:
    """ana's own candidates are popular in no way, so without her grant their names lead nowhere."""
    without = client.explain("ana", item_id=item(0))
    stranger = client.explain("nobody-of-this-name", item_id=item(0))
    assert [*without.effects] == [*stranger.effects]
    assert not without.would_change_it and not stranger.would_change_it


def test_a_list_as_a_whole_counts_what_recommend_withheld(client: Client) -> None:
    allow(client, "ana")
    reply, told = client.recommend("ana"), client.explain("ana")
    withheld = {(each.rule, each.reason): each.count for each in reply.withheld}
    removed = {(act.rule, act.reason): act.count for act in told.effects if act.effect == "removed"}
    assert removed == withheld
    assert told.provenance.policy == reply.provenance.policy and told.provenance.mode == reply.provenance.mode


def test_weights_add_up_and_say_what_a_rule_changes(client: Client) -> None:
    allow(client, "ana")
    told = client.explain("ana")
    weights = {each.name: each.weight for each in told.parameters}
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert {"taste", "popularity", "availability", "diversity", "category_cap"} <= set(weights)
    assert weights["taste"] > 0 and all(each.description for each in told.parameters)
    assert list(weights.values()) == sorted(weights.values(), reverse=True)
    # Nothing here is out of stock or exploring without a seed.
    assert weights["availability"] == weights["exploration"] == 0.0


def test_everything_that_would_change_a_list_does(client: Client) -> None:
    allow(client, "ana")
    before = ids(client.recommend("ana"))
    told = {*client.explain("ana").would_change_it}
    assert {"level:none", "level:session", "level:purchases", "withdraw_source:web"} <= told
    assert "withdraw_source:store" not in told, "nothing of hers came from there"
    for code in sorted(told):
        kind, _, name = code.partition(":")
        if kind == "level":
            assert ids(client.recommend("ana", level=name)) != before
        else:
            client.withdraw("ana", "profile", name)
            assert ids(client.recommend("ana")) != before, code
            allow(client, "ana")
            assert ids(client.recommend("ana")) == before


def test_what_a_person_can_say_of_an_item_acts_on_the_next_list(client: Client) -> None:
    allow(client, "ana")
    first = ids(client.recommend("ana"))[0]
    told = client.explain("ana", item_id=first).would_change_it
    category = next(code for code in told if code.startswith("dismiss_category:")).partition(":")[2]
    assert "dismiss" in told
    client.record_events([event("ana", "dismiss_category", source="web", category=category)])
    code = int(first[-4:])
    assert not any(int(name[-4:]) % 4 == code % 4 for name in ids(client.recommend("ana")))


def test_a_list_of_before_is_explained_by_its_id(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", seed=5)
    told = client.explain("ana", recommendation_id=reply.recommendation_id, item_id=ids(reply)[-1])
    assert told.effects[-1].rank_after == len(reply.items)
    assert told.provenance.made_at == reply.provenance.made_at
    client.withdraw("ana")
    after = client.explain("ana", recommendation_id=reply.recommendation_id)
    assert after.provenance.reason == "no_consent", "it is explained under the consent of now"


@pytest.mark.parametrize(
    ("user", "name", "field"), [("bea", None, "recommendation_id"), ("ana", "no-such-id", "recommendation_id")]
)
def test_a_list_of_somebody_else_is_not_there(client: Client, user: str, name: str | None, field: str) -> None:
    reply = client.recommend("ana")
    with pytest.raises(BodegaRpcError) as told:
        client.explain(user, recommendation_id=name or reply.recommendation_id)
    assert (told.value.code, told.value.field) == (StatusCode.NOT_FOUND, field)


def test_an_unknown_item_is_told(client: Client) -> None:
    with pytest.raises(BodegaRpcError) as told:
        client.explain("ana", item_id="no-such-item")
    assert (told.value.code, told.value.field) == (StatusCode.NOT_FOUND, "item_id")


def test_parameters_have_a_date_and_a_history(shop: Shop) -> None:
    shop.publish()
    with shop.served() as (_, client):
        allow(client, "ana")
        first = client.explain("ana")
        assert first.HasField("parameters_since") and not first.history
    rules = "[{name:availability},{name:exclusions},{name:consent}]"
    with shop.served(f"policy.home.rules={rules}") as (_, client):
        second = client.explain("ana")
        assert {"spacing"}.isdisjoint({each.name for each in second.parameters})
        assert [each.since for each in second.history] == [first.parameters_since]
        assert second.parameters_since.ToDatetime() > first.parameters_since.ToDatetime()
        assert "spacing" in {each.name for each in second.history[0].parameters}
        assert sum(each.weight for each in second.history[0].parameters) == pytest.approx(1, abs=1e-5)


def test_pins_and_blocks_are_in_the_audit_log_and_do_what_they_say(shop: Shop) -> None:
    shop.publish()
    pin = "{item:item-0033,place:2,until:'2099-12-31',reason:summer fair}"
    has = "{item:item-0035,place:1,until:'2099-12-31',reason:ana has it already}"
    block = "{item:item-0000,until:'2099-12-31',reason:recall}"
    rules = f"[{{name:blocks,blocks:[{block}]}},{{name:exclusions}},{{name:pins,pins:[{pin},{has}]}},{{name:consent}}]"
    with shop.served(f"policy.home.rules={rules}") as (server, client):
        allow(client, "ana")
        for user in ("ana", ""):
            reply = client.recommend(user)
            assert ids(reply)[1] == item(33) and item(0) not in ids(reply)
            assert (item(35) in ids(reply)) == (user == "")
            assert reply.items[1].lane == "pinned" and reply.items[1].reasons[0].code == "pinned"
        loaded = _loaded(server)
        assert loaded["pins"]["home"][0]["reason"] == "summer fair"
        assert loaded["blocks"]["home"][0]["until"] == "2099-12-31"
    with shop.served(f"policy.home.rules={rules}") as (server, _):
        assert _loaded(server, count=1) == loaded, "the same policies are told once"


def test_everything_is_explained_of_a_list_that_drew_and_held_all_items(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", limit=ITEMS, seed=9)
    for name in ids(reply)[:3]:
        assert client.explain("ana", recommendation_id=reply.recommendation_id, item_id=name).effects[-1].rank_after


def _loaded(server: Server, count: int | None = None) -> dict:
    with server.replica.ledger.at_work() as (ledger, _):
        rows = [row for row in ledger.audit_rows(1000) if row.action == "policies_loaded"]
    assert count is None or len(rows) == count
    return json.loads(rows[-1].detail)
