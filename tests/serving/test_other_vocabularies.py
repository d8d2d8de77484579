"""A snapshot is read under the vocabulary that it was made with: grants go into its bits by name, and never become more."""

from __future__ import annotations

import structlog.testing
from bodega.client import Client, grant

from engine.consent import Vocabulary
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
