"""A snapshot is read under the vocabulary that it was made with: grants go into its bits by name, and never become more."""

from __future__ import annotations

from contextlib import closing

import pytest
import structlog.testing
from bodega.client import BodegaRpcError, Client, grant

from engine.consent import PURPOSES, Change, Ledger, Vocabulary
from tests.serving.shop import Shop

GROWN = "consent.sources=[web,app,store,partner,kiosk]"
REORDERED = "consent.sources=[partner,store,web,app]"
DECISIONS = (
    [grant("profile")],
    [grant("profile", "web")],
    [grant("profile", "partner"), grant("sensitive")],
    [grant("profile"), grant("profile", "partner", granted=False)],
    [grant("profile", "app"), grant("train", "web")],
    [],
)


def lists(client: Client) -> list[object]:
    found: list[object] = []
    for number, changes in enumerate(DECISIONS):
        client.withdraw("ana")
        if changes:
            client.set_consent("ana", changes)
        for level in ("full", "purchases"):
            reply = client.recommend("ana", level=level, limit=30)
            made = reply.provenance
            told = [(each.item_id, each.score, each.lane, each.reasons[0].text) for each in reply.items]
            found.append((number, level, made.mode, made.reason, made.profile, told))
    return found


def test_a_vocabulary_that_grew_or_was_reordered_serves_yesterdays_snapshot_as_yesterday(shop: Shop) -> None:
    shop.publish()
    with shop.served() as (_, client):
        expected = lists(client)
    assert len({str(each[2:]) for each in expected}) > 5  # type: ignore[index]
    for other in (GROWN, REORDERED):
        with structlog.testing.capture_logs() as logs, shop.served(other) as (server, client):
            assert not server.replica.problems()
            found = lists(client)
        assert found == expected, other
        assert [each["event"] for each in logs].count("snapshot_of_another_vocabulary") == 1


def test_a_source_that_the_snapshot_does_not_know_grants_nothing_of_it(shop: Shop) -> None:
    shop.publish()
    with shop.served(GROWN) as (_, client):
        client.set_consent("ana", [grant("profile", "kiosk")])
        assert client.recommend("ana").provenance.reason == "no_consent"


def test_a_source_that_nobody_is_asked_for_any_longer_is_granted_by_nobody(shop: Shop) -> None:
    kiosk = Vocabulary(
        sources=("kiosk", "web", "app", "partner")
    )  # of the night; its bits mean others than the server's
    shop.publish(vocabulary=kiosk.to_json())
    with shop.served() as (_, client):
        client.set_consent("ana", [grant("profile", "store")])
        assert client.recommend("ana").provenance.reason == "no_consent"


def test_what_is_held_under_a_retired_name_can_be_withdrawn_and_a_mistyped_name_is_still_refused(shop: Shop) -> None:
    shop.publish()
    with shop.served(GROWN) as (_, client):
        client.set_consent("ana", [grant("profile", "kiosk"), grant("profile", "web")])
    with shop.served() as (_, client):  # which has no kiosk
        with pytest.raises(BodegaRpcError, match="kios"):
            client.withdraw("ana", "profile", "kios")
        with pytest.raises(BodegaRpcError, match="kiosk"):
            client.set_consent("ana", [grant("profile", "kiosk")])
        with pytest.raises(BodegaRpcError, match="kiosk"):
            client.withdraw("ben", "profile", "kiosk")
        client.withdraw("ana", "profile", "kiosk")
        assert [(each.purpose, each.source) for each in client.get_consent("ana").grants] == [("profile", "web")]


def test_withdrawing_all_withdraws_what_is_held_under_any_name(shop: Shop) -> None:
    shop.publish()
    vocabulary = Vocabulary(purposes=(*PURPOSES, "loyalty"), sources=("web", "kiosk"))
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", vocabulary)) as ledger:
        ledger.bind(shop.keys.stable.key_id)
        for purpose in ("loyalty", "profile"):
            change = Change(purpose, "", True)
            ledger.record(shop.keys.stable.derive("ana"), [change], None, "n", "person", "", None)
    with shop.served() as (_, client):
        assert len(client.get_consent("ana").grants) == 4
        client.withdraw("ana")
        assert not client.get_consent("ana").grants
