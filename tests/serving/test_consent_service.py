"""Consent over gRPC: what is recorded, in which order, and what comes back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from bodega.client import BodegaRpcError, Client, grant
from bodega.v1 import common_pb2, consent_pb2

from tests.serving.shop import SOURCES, allow


def granted(reply: consent_pb2.GetConsentResponse) -> set[tuple[str, str]]:
    return {(each.purpose, each.source) for each in reply.grants if each.granted}


def test_nobody_grants_anything_before_they_say_so(client: Client) -> None:
    reply = client.get_consent("ana")
    assert not reply.grants
    assert reply.preference == common_pb2.PERSONALIZATION_UNSPECIFIED
    assert abs(reply.as_of.ToDatetime(UTC) - datetime.now(UTC)).total_seconds() < 60


def test_what_is_recorded_is_read_back(client: Client) -> None:
    token = allow(client, "ana", "web", "app")
    reply = client.get_consent("ana", consent_token=token)
    assert granted(reply) == {("profile", "web"), ("profile", "app")}
    assert reply.consent_token == token


def test_an_empty_source_means_all_of_them(client: Client) -> None:
    allow(client, "ana")
    assert granted(client.get_consent("ana")) == {("profile", source) for source in SOURCES}
    client.withdraw("ana", "profile", "web")
    assert ("profile", "web") not in granted(client.get_consent("ana"))


def test_a_withdrawal_wins_within_one_call(client: Client) -> None:
    client.set_consent("ana", [grant("train", "web", granted=False), grant("train", "web")])
    assert not client.get_consent("ana").grants


def test_withdrawing_without_a_purpose_withdraws_everything(client: Client) -> None:
    client.set_consent("ana", [grant(purpose) for purpose in ("profile", "train", "measure", "cross_source")])
    client.withdraw("ana")
    assert not client.get_consent("ana").grants


def test_the_same_request_twice_is_recorded_once(client: Client) -> None:
    first = client.set_consent("ana", [grant("train")], request_id="one")
    again = client.set_consent("ana", [grant("train")], request_id="one")
    assert first == again
    assert len(client.consent_changes("ana").changes) == 1


def test_a_preference_persists_and_can_be_taken_back(client: Client) -> None:
    client.set_consent("ana", preference="purchases")
    assert client.get_consent("ana").preference == common_pb2.PERSONALIZATION_PURCHASES
    allow(client, "ana")
    assert client.get_consent("ana").preference == common_pb2.PERSONALIZATION_PURCHASES
    client.set_consent("ana", preference="")
    assert client.get_consent("ana").preference == common_pb2.PERSONALIZATION_UNSPECIFIED


def test_the_history_is_paged_and_whole(client: Client) -> None:
    said = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for number in range(5):
        client.set_consent("ana", [grant("train", SOURCES[number % 4])], notice_version=f"v{number}", occurred_at=said)
    client.set_consent("ana", preference="none", actor="guardian")
    seen: list[consent_pb2.ConsentChange] = []
    token = ""
    while True:
        page = client.consent_changes("ana", page_size=2, page_token=token)
        seen += page.changes
        if not (token := page.next_page_token):
            break
    assert [each.sequence for each in seen] == [1, 2, 3, 4, 5, 6]
    assert [each.notice_version for each in seen[:5]] == [f"v{number}" for number in range(5)]
    assert {each.occurred_at.ToDatetime(UTC) for each in seen[:5]} == {said}
    assert {each.actor for each in seen[:5]} == {"person"}
    assert all(each.receipt_id and each.recorded_at.seconds for each in seen)
    last = seen[-1]
    assert (last.actor, last.preference) == ("guardian", common_pb2.PERSONALIZATION_NONE)
    assert not last.HasField("grant") and not seen[0].HasField("preference")


def test_a_page_token_of_nobody_is_refused(client: Client) -> None:
    with pytest.raises(BodegaRpcError) as caught:
        client.consent_changes("ana", page_token="garbage")
    assert caught.value.field == "page_token"


def test_one_persons_consent_is_not_anothers(client: Client) -> None:
    allow(client, "ana")
    assert not client.get_consent("ben").grants
    assert not client.consent_changes("ben").changes
