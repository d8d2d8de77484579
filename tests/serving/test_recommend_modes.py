"""How a list is made for each state of a person's consent, over real gRPC."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from bodega.client import Client, grant
from bodega.v1 import common_pb2, ranking_pb2

from engine.consent import consent_token
from engine.policy import Chain, Moment, Outcome, Slate
from engine.serving.server import Server
from tests.serving.shop import BOUGHT, SENSITIVE_ITEM, VOCABULARY, Shop, allow, ids, item

Mode = ranking_pb2.Provenance
NONE, PURCHASES, FULL = (
    common_pb2.PERSONALIZATION_NONE,
    common_pb2.PERSONALIZATION_PURCHASES,
    common_pb2.PERSONALIZATION_FULL,
)


def lanes(reply: Any) -> set[str]:
    return {each.lane for each in reply.items}


def test_a_stranger_gets_what_is_popular_and_is_told_so(client: Client, server: Server) -> None:
    reply = client.recommend(limit=5)
    assert len(reply.items) == 5
    assert lanes(reply) == {"popular"}
    assert {each.reasons[0].code for each in reply.items} == {"popular"}
    assert {each.propensity for each in reply.items} == {1.0}
    made = reply.provenance
    assert (made.mode, made.reason, made.personalization) == (Mode.MODE_NON_PROFILED, "stranger", NONE)
    assert made.snapshot_id == server.replica.served.name
    assert made.snapshot_age.seconds >= 0
    assert made.policy == f"home@{server.replica.policies['home'].version}"
    assert made.profile == made.variant == ""
    assert reply.recommendation_id != client.recommend(limit=5).recommendation_id


def test_without_a_ledger_entry_nothing_personal_is_used(client: Client) -> None:
    reply = client.recommend("ana")
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "no_consent")
    assert ids(reply) == ids(client.recommend())


def test_grants_that_do_not_rank_profile_nobody(client: Client) -> None:
    allow(client, "ana", purpose="train")
    allow(client, "ana", purpose="measure")
    assert client.recommend("ana").provenance.reason == "no_consent"


def test_consent_makes_the_list_personal_at_once(client: Client) -> None:
    token = allow(client, "ana")
    reply = client.recommend("ana", limit=10, diversity=0, consent_token=token)
    made = reply.provenance
    assert (made.mode, made.reason, made.personalization, made.profile) == (Mode.MODE_PROFILED, "", FULL, "full")
    assert made.consent_sequence == 1
    assert reply.items[0].item_id == item(0)
    assert {"two_tower", "usual", "similar"} <= lanes(reply)
    assert len(set(ids(reply))) == len(reply.items) == 10


def test_what_was_bought_is_left_out_and_counted(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", limit=40)
    assert item(BOUGHT) not in ids(reply)
    assert item(35) not in ids(reply)  # also not among the popular items that fill the list up
    counts = {(each.rule, each.reason): each.count for each in reply.withheld}
    assert counts["exclusions", "bought"] == 2


def test_a_withdrawn_source_narrows_the_list_at_once(client: Client) -> None:
    allow(client, "ana")
    before = client.recommend("ana", limit=10, diversity=0)
    token = client.withdraw("ana", "profile", "partner").consent_token
    after = client.recommend("ana", limit=10, diversity=0, consent_token=token)
    made = after.provenance
    assert (made.mode, made.reason, made.profile) == (Mode.MODE_LIMITED, "grants_missing", "first_party")
    assert item(12) in ids(before) and item(12) not in ids(after)[:10]  # relied on the partner alone
    scores = {each.item_id: each.score for each in after.items}
    assert scores[item(0)] == pytest.approx(5.0)  # the way that relies on the web alone
    evidence = {name for each in after.items for reason in each.reasons for name in reason.evidence_item_ids}
    assert item(20) not in evidence and item(23) not in evidence


def test_the_dial_at_purchases_uses_purchases_alone(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", limit=10, diversity=0, level="purchases")
    made = reply.provenance
    assert (made.mode, made.reason, made.profile) == (Mode.MODE_LIMITED, "level_purchases", "purchases")
    assert made.personalization == PURCHASES
    assert all(each.score <= 3.0 for each in reply.items if each.lane == "two_tower")
    assert item(14) not in ids(reply)


def test_a_short_list_is_filled_with_popular_items_and_nothing_comes_twice(client: Client) -> None:
    allow(client, "ben", "web")
    reply = client.recommend("ben", limit=12, diversity=0)
    assert reply.provenance.mode == Mode.MODE_PROFILED
    assert [each.lane for each in reply.items[:3]] == ["similar", "usual", "popular"]
    assert len(set(ids(reply))) == len(reply.items) == 12


def test_all_withdrawn_is_a_strangers_list_byte_for_byte(client: Client) -> None:
    allow(client, "ana")
    assert ids(client.recommend("ana")) != ids(client.recommend())
    token = client.withdraw("ana").consent_token
    mine, strangers = client.recommend("ana", consent_token=token), client.recommend()
    assert [each.SerializeToString() for each in mine.items] == [each.SerializeToString() for each in strangers.items]
    assert mine.provenance.reason == "no_consent"
    assert mine.withheld == strangers.withheld


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_level_none_is_the_same_list_for_everybody(client: Client, limit: int) -> None:
    for user in ("ana", "ben", "cleo"):
        allow(client, user)
    replies = [client.recommend(user, limit=limit, level="none") for user in ("ana", "ben", "cleo", "nobody", "")]
    first = [each.SerializeToString() for each in replies[0].items]
    assert all([each.SerializeToString() for each in reply.items] == first for reply in replies)
    assert [reply.provenance.reason for reply in replies] == ["level_none"] * 4 + ["stranger"]


def test_level_session_uses_no_history(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", level="session")
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "level_session")
    assert ids(reply) == ids(client.recommend())


def test_the_stored_preference_holds_where_a_request_says_nothing(client: Client) -> None:
    allow(client, "ana")
    client.set_consent("ana", preference="none")
    assert client.recommend("ana").provenance.reason == "level_none"
    client.set_consent("ana", preference="")
    assert client.recommend("ana").provenance.mode == Mode.MODE_PROFILED


def test_a_request_lowers_the_stored_preference_and_never_raises_it(client: Client) -> None:
    allow(client, "ana")
    client.set_consent("ana", preference="purchases")
    assert client.recommend("ana", level="full").provenance.personalization == PURCHASES
    assert client.recommend("ana", level="none").provenance.personalization == NONE


def test_someone_new_to_the_night_is_an_unknown_user(client: Client) -> None:
    allow(client, "newcomer")
    reply = client.recommend("newcomer")
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "unknown_user")
    assert ids(reply) == ids(client.recommend())


def test_someone_without_candidates_gets_a_strangers_list(client: Client) -> None:
    allow(client, "cleo")
    reply = client.recommend("cleo")
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "no_candidates")


def test_grants_that_cover_no_stored_way_give_a_strangers_list(client: Client) -> None:
    allow(client, "ben", "partner")
    reply = client.recommend("ben")
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "grants_missing")
    assert ids(reply) == ids(client.recommend())


def test_global_privacy_control_is_honoured_and_echoed(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", global_privacy_control=True)
    made = reply.provenance
    assert (made.mode, made.reason) == (Mode.MODE_NON_PROFILED, "global_privacy_control")
    assert made.global_privacy_control_honoured
    assert ids(reply) == ids(client.recommend())


def test_a_minor_is_never_profiled_and_sees_nothing_sensitive(client: Client) -> None:
    allow(client, "pat")
    allow(client, "pat", purpose="sensitive")
    reply = client.recommend("pat", minor=True, limit=40)
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "minor")
    assert item(SENSITIVE_ITEM) not in ids(reply)
    assert item(SENSITIVE_ITEM) in ids(client.recommend("pat", limit=40))


def test_a_token_from_the_future_is_stale_consent(client: Client) -> None:
    token = allow(client, "ana")
    assert client.recommend("ana", consent_token=token).provenance.mode == Mode.MODE_PROFILED
    reply = client.recommend("ana", consent_token=consent_token(10**6))
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "consent_stale")


def test_anothers_token_is_no_doubt_when_the_ledger_has_come_that_far(client: Client) -> None:
    allow(client, "ana")
    later = allow(client, "ben")
    assert client.recommend("ana", consent_token=later).provenance.mode == Mode.MODE_PROFILED


def test_a_ledger_that_is_gone_means_no_profile_until_it_is_back(shop: Shop, client: Client) -> None:
    allow(client, "ana")
    ledger, away = shop.out / "consent.db", shop.out / "away.db"
    ledger.rename(away)
    until = time.monotonic() + 1  # the bound
    while (reply := client.recommend("ana")).provenance.mode == Mode.MODE_PROFILED:
        assert time.monotonic() < until
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "consent_unavailable")
    assert ids(reply) == ids(client.recommend())
    away.rename(ledger)
    until = time.monotonic() + 5  # the watcher may have met its absence, and looks again each 0.05 s
    while client.recommend("ana").provenance.mode != Mode.MODE_PROFILED:
        assert time.monotonic() < until


def test_a_damaged_ledger_means_no_profile(shop: Shop, client: Client) -> None:
    import sqlite3

    allow(client, "ana")
    with sqlite3.connect(shop.out / "consent.db") as database:
        database.execute("UPDATE consent_current SET granted = 'nonsense', sequence = 2")
        database.execute("UPDATE consent_ledger SET sequence = 2, audited = audited + 1")
    database.close()
    until = time.monotonic() + 2.0  # what was heard last holds for the bound
    while client.recommend("ana").provenance.reason != "consent_unavailable":
        assert time.monotonic() < until
    with shop.served() as (_, again):
        assert again.recommend("ana").provenance.reason == "consent_unavailable"


@pytest.mark.parametrize("times", [1, 10])
def test_a_withdrawal_while_the_list_is_made_is_in_the_reply(
    client: Client, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    allow(client, "ana")
    original, left = Chain.apply, [times]

    def apply(self: Chain, slate: Slate, moment: Moment, *more: Any) -> Outcome:
        outcome = original(self, slate, moment, *more)
        if moment.granted and left[0]:
            left[0] -= 1
            client.withdraw("ana") if left[0] % 2 == 0 else client.withdraw("ana", "profile", "partner")
            if left[0]:
                client.set_consent("ana", [grant("train")])
                client.set_consent("ana", [grant("profile")])
        return outcome

    monkeypatch.setattr(Chain, "apply", apply)
    reply = client.recommend("ana")
    assert reply.provenance.mode == Mode.MODE_NON_PROFILED
    assert reply.provenance.reason == ("no_consent" if times == 1 else "consent_changing")
    assert lanes(reply) == {"popular"}


def test_what_the_caller_excludes_looks_at_or_has_in_the_basket_is_left_out(client: Client) -> None:
    allow(client, "ana")
    asked = {"exclude": [item(0), "no-such-item"], "item_id": item(1), "basket": [item(2)]}
    for user in ("ana", ""):
        found = ids(client.recommend(user, limit=40, **asked))
        assert not {item(0), item(1), item(2)} & set(found)
        assert item(3) in found


def test_only_the_categories_asked_for_are_shown(client: Client) -> None:
    reply = client.recommend(limit=40, only_categories=["wine"])
    assert len(reply.items) == 10
    assert {int(name[-4:]) % 4 for name in ids(reply)} == {1}
    assert reply.items[0].reasons[0].code == "popular_in_category"
    assert not client.recommend(only_categories=["no such"]).items


def test_diversity_moves_items_and_loses_none(client: Client) -> None:
    allow(client, "ana")
    plain, varied = (client.recommend("ana", limit=10, diversity=strength) for strength in (0.0, 1.0))
    assert ids(plain) != ids(varied)
    assert len(set(ids(varied))) == 10


@pytest.mark.parametrize(
    ("surface", "expected"), [("", 20), ("home", 20), ("email", 8), ("item_page", 12), ("basket", 6)]
)
def test_a_surface_has_its_own_length_and_policy(client: Client, surface: str, expected: int) -> None:
    reply = client.recommend(surface=surface)
    assert len(reply.items) == expected
    assert reply.provenance.policy.startswith(f"{surface or 'home'}@")


@pytest.mark.parametrize("seed", [None, 1, 2**64 - 1])
def test_the_same_request_gives_the_same_list(client: Client, seed: int | None) -> None:
    allow(client, "ana")
    replies = [client.recommend("ana", seed=seed) for _ in range(3)]
    assert len({tuple(ids(reply)) for reply in replies}) == 1
    drawn = {tuple(item.propensity for item in reply.items) != (1.0,) * len(reply.items) for reply in replies}
    assert drawn == {seed is not None}


def test_reasons_fit_what_the_item_relies_on(client: Client) -> None:
    allow(client, "ana")
    reply = client.recommend("ana", limit=20, diversity=0)
    why = {each.item_id: each.reasons[0] for each in reply.items}
    assert (why[item(0)].code, list(why[item(0)].evidence_item_ids)) == ("because_you_liked", [item(20)])
    assert (why[item(13)].code, why[item(13)].text) == ("due_again", "Time for Item 13 again?")
    assert why[item(14)].code == "something_different"
    assert all(each.causal == bool(each.evidence_item_ids) for each in why.values())
    bought = client.recommend("ana", limit=20, diversity=0, level="purchases")
    assert {each.reasons[0].code for each in bought.items if each.lane == "two_tower"} == {"because_you_bought"}


def test_sensitive_evidence_is_named_only_with_that_grant(shop: Shop, tmp_path: Path) -> None:
    from engine.serving.reasons import Reasons
    from engine.snapshot import Registry

    shop.publish()
    with Registry(shop.out / "snapshots").open_current() as snapshot:
        reasons = Reasons(VOCABULARY)
        web, sensitive = VOCABULARY.mask("profile", "web"), VOCABULARY.mask("sensitive", "web")
        assert reasons.of(snapshot.items, 0, web, SENSITIVE_ITEM).code == "for_you"
        assert reasons.of(snapshot.items, 0, web | sensitive, SENSITIVE_ITEM).evidence == (item(SENSITIVE_ITEM),)


def test_a_batch_gives_each_its_list_or_its_own_problem(client: Client) -> None:
    allow(client, "ana")
    from bodega.client import recommend_request

    requests = [
        recommend_request("ana", limit=3),
        recommend_request("bad\0id"),
        recommend_request("ben", limit=101),
        recommend_request(surface="hme"),
        recommend_request(limit=2),
    ]
    results = client.batch_recommend(requests)
    assert [each.WhichOneof("result") for each in results] == ["response", "problem", "problem", "problem", "response"]
    assert results[0].response.provenance.mode == Mode.MODE_PROFILED
    assert [(each.problem.reason, each.problem.field) for each in results[1:4]] == [
        ("INVALID_ARGUMENT", "user_id"),
        ("INVALID_ARGUMENT", "limit"),
        ("NOT_FOUND", "context.surface"),
    ]
    assert "home" in results[3].problem.remedy


def test_similar_items_come_from_co_visits_then_from_vectors(client: Client) -> None:
    reply = client.similar(item(0), limit=6)
    assert ids(reply)[:2] == [item(1), item(2)]
    assert item(0) not in ids(reply)
    assert lanes(reply) == {"similar"}
    assert [each.score for each in reply.items] == sorted((each.score for each in reply.items), reverse=True)
    assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "non_personal")
    assert reply.provenance.policy.startswith("item_page@")
    assert reply.recommendation_id
