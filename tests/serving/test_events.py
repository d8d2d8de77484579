"""RecordEvents: durable before it is acknowledged, checked one by one, counted once, and in the very next list."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bodega.client import BodegaRpcError, event
from bodega.v1 import feedback_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from engine.consent.changes import ALONE
from engine.consent.vocabulary import Level
from engine.kernels.encode_user import Scale
from engine.schema import EVENTS
from tests.event_logs import random_tower
from tests.serving.shop import BOUGHT, SENSITIVE_ITEM, Shop, allow, ids, item

WEIGHTS = tuple(
    {"view": 0.1, "click": 0.2, "cart": 0.5, "purchase": 1.0, "like": 1.0}.get(name, 0.0) for name in EVENTS
)
SCALE = Scale(0, 1.0, 0, {"two_tower": (40, 1.0), "discovery": (40, 0.5)}, event_weights=WEIGHTS)


def shop_with_a_tower(shop: Shop, **changes) -> Shop:
    shop.publish(tower=random_tower(np.random.default_rng(0), 4).arrays() | SCALE.arrays(), **changes)
    return shop


@pytest.fixture
def lively(shop: Shop) -> Shop:
    return shop_with_a_tower(shop)


def today(reply) -> int:
    return reply.provenance.today_events


def test_an_event_counts_in_the_very_next_list_and_once(lively):
    with lively.served() as (_, client):
        allow(client, "ana")
        before = client.recommend("ana", limit=30)
        sent = [event("ana", "purchase", ids(before)[0], event_id="one")]
        told = client.record_events(sent)
        assert (told.accepted, told.duplicates, len(told.rejected)) == (1, 0, 0)
        told = client.record_events([*sent, *sent])
        assert (told.accepted, told.duplicates) == (0, 2)
        after = client.recommend("ana", limit=30)
        assert today(after) == 1 and today(before) == 0
        assert ids(before)[0] not in ids(after)
        assert "done_today" in {each.reason for each in after.withheld}


def test_twice_in_one_call_counts_once(lively):
    with lively.served() as (_, client):
        told = client.record_events([event("ana", "view", item(1), event_id="a")] * 2)
        assert (told.accepted, told.duplicates) == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (event("ana", "view", item(1), source="wbe"), "source"),
        (event("ana", "looked", item(1)), "event"),
        (event("ana", "view", ""), "item_id"),
        (event("ana", "dismiss_category"), "item_id"),
        (event("a\0b", "view", item(1)), "user_id"),
        (event("e\u0301", "view", item(1)), "user_id"),
        (event("ana", "view", "x" * 300), "item_id"),
        (event("ana", "view", item(1), flags=["x" * 40]), "flags"),
        (event("ana", "view", item(1), value=float("nan")), "value"),
        (event("ana", "view", item(1), time=dt.datetime(1999, 1, 1, tzinfo=dt.UTC)), "time"),
        (event("ana", "view", item(1), time=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)), "time"),
        (feedback_pb2.Event(event="view", user_id="ana", item_id=item(1), source="web"), "event_id"),
        (
            feedback_pb2.Event(
                event_id="x", event="view", item_id=item(1), source="web", time=Timestamp(seconds=2**62)
            ),
            "time",
        ),
    ],
)
def test_a_wrong_event_is_named_and_the_others_are_taken(lively, wrong, field):
    with lively.served() as (_, client):
        allow(client, "ana")
        told = client.record_events([event("ana", "view", item(1)), wrong, event("ana", "view", item(2))])
        assert told.accepted == 2
        (rejected,) = told.rejected
        assert rejected.index == 1 and rejected.problem.remedy
        assert rejected.problem.field == field
        assert "ana" not in rejected.problem.message
        assert today(client.recommend("ana")) == 2


def test_an_item_that_nobody_knows_yet_is_taken(lively):
    with lively.served() as (_, client):
        assert client.record_events([event("ana", "view", "new-tomorrow")]).accepted == 1


def test_nothing_is_used_without_the_grant_of_its_source(lively):
    with lively.served() as (_, client):
        allow(client, "ana", "web")
        bare = ids(client.recommend("ana", limit=30))
        client.record_events([event("ana", "purchase", bare[0], source="partner")])
        assert ids(client.recommend("ana", limit=30)) == bare
        allow(client, "ana", "partner")
        assert bare[0] not in ids(client.recommend("ana", limit=30))
        token = client.withdraw("ana", "profile", "partner").consent_token
        assert ids(client.recommend("ana", limit=30, consent_token=token)) == bare


def test_a_stranger_and_a_minor_get_the_list_of_anybody(lively):
    with lively.served() as (_, client):
        everybody = ids(client.recommend("", limit=20))
        client.record_events([event("zoe", "purchase", everybody[0]), event("", "purchase", everybody[0])])
        assert ids(client.recommend("zoe", limit=20)) == everybody
        allow(client, "zoe")
        assert ids(client.recommend("zoe", limit=20)) != everybody
        for signal in ({"minor": True}, {"global_privacy_control": True}, {"level": "none"}):
            reply = client.recommend("zoe", limit=20, **signal)
            assert ids(reply) == ids(client.recommend("", limit=20, **signal))
            assert item(SENSITIVE_ITEM) not in ids(reply) or "minor" not in signal
            assert today(reply) == 0


def test_a_session_uses_todays_events_and_nothing_else_of_a_person(lively):
    with lively.served() as (_, client):
        for user in ("ana", "zoe"):  # one whom the snapshot knows, and one whom it does not
            allow(client, user)
            client.record_events([event(user, "click", item(code)) for code in (3, 4)])
        known, unknown = (client.recommend(user, limit=20, level="session") for user in ("ana", "zoe"))
        assert ids(known) == ids(unknown) != ids(client.recommend("", limit=20))
        assert (known.provenance.mode, known.provenance.reason) == (known.provenance.MODE_LIMITED, "level_session")
        assert known.provenance.personalization == Level.SESSION
        assert today(known) == 2
        assert item(BOUGHT) not in ids(client.recommend("ana", limit=40))
        assert item(BOUGHT) in ids(client.recommend("ana", limit=40, level="session")), "what was bought is history"


def test_what_was_erased_is_forgotten_today_as_well(lively):
    with lively.served() as (server, client):
        allow(client, "zoe")
        client.record_events([event("zoe", "click", item(3))])
        assert today(client.recommend("zoe")) == 1
        live = server.replica.live
        kept = live.keys.filed_under("zoe", ALONE)
        assert live.today(kept) is not None
        token = client.erase_user("zoe").consent_token
        assert live.today(kept) is None, "it is let go of, not only passed over"
        allow(client, "zoe")
        assert today(client.recommend("zoe", consent_token=token)) == 0
        client.record_events([event("zoe", "click", item(4))])
        assert today(client.recommend("zoe")) == 1


def test_linked_ids_share_their_day_until_they_are_taken_apart(lively):
    with lively.served() as (_, client):
        allow(client, "zoe")
        allow(client, "zoe-app")
        client.link_users(["zoe", "zoe-app"])
        client.record_events([event("zoe", "click", item(3))])
        assert today(client.recommend("zoe-app")) == 1
        token = client.unlink_user("zoe-app").consent_token
        assert today(client.recommend("zoe-app", consent_token=token)) == 0


def test_a_restart_loses_nothing(lively):
    with lively.served() as (_, client):
        allow(client, "zoe")
        client.record_events([event("zoe", "click", item(code), event_id=str(code)) for code in range(5)])
        before = client.recommend("zoe", limit=20)
    with lively.served() as (_, client):
        after = client.recommend("zoe", limit=20)
        assert today(after) == 5
        assert ids(after) == ids(before)
        told = client.record_events([event("zoe", "click", item(code), event_id=str(code)) for code in range(6)])
        assert (told.accepted, told.duplicates) == (1, 5)


def test_impressions_and_looks_are_told_apart(lively):
    with lively.served() as (_, client):
        allow(client, "zoe")
        client.record_events(
            [event("zoe", "impression", item(5)) for _ in range(4)] + [event("zoe", "impression", item(6))]
        )
        client.record_events([event("zoe", "click", item(6))])
        assert today(client.recommend("zoe")) >= 2


def test_the_log_of_the_night_gets_each_event_once_and_no_id_of_who_granted_nothing(lively):
    with lively.served("live.ship_seconds=0.1") as (_, client):
        allow(client, "zoe", purpose="train")
        client.record_events(
            [event("zoe", "click", item(1), event_id="a", flags=["gift"]), event("ben", "view", item(2))]
        )
        client.record_events([event("", "view", item(2)), event("zoe", "dismiss_category", category="wine")])
        rows = []
        until = time.monotonic() + 10
        while len(rows) < 4 and time.monotonic() < until:
            time.sleep(0.05)
            files = sorted(Path(f"{lively.out}/events").rglob("[!.]*.parquet"))
            rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    told = sorted((row["user_id"] or "", row["event"], row["item_id"] or "", tuple(row["flags"])) for row in rows)
    assert told == [
        ("", "view", item(2), ()),
        ("", "view", item(2), ()),
        ("zoe", "click", item(1), ("gift",)),
        ("zoe", "dismiss_category", "", ("category:wine",)),
    ]
    assert not any(b"ben" in file.read_bytes() for file in Path(f"{lively.out}/live").rglob("*") if file.is_file())


def test_a_disk_that_refuses_is_unavailable_and_lists_go_on(lively, monkeypatch):
    with lively.served() as (server, client):
        allow(client, "zoe")
        monkeypatch.setattr(server.replica.live._journal, "_most", 10)
        with pytest.raises(BodegaRpcError) as told:
            client.record_events([event("zoe", "click", item(3))], timeout=2)
        assert told.value.code == StatusCode.UNAVAILABLE and told.value.retry_after
        assert told.value.reason == "JOURNAL_UNAVAILABLE"
        assert today(client.recommend("zoe")) == 0, "what was not acknowledged does not count"


def test_a_deployment_may_take_no_events(lively):
    with lively.served("live.enabled=false") as (_, client):
        with pytest.raises(BodegaRpcError) as told:
            client.record_events([event("zoe", "click", item(3))])
        assert told.value.code == StatusCode.UNIMPLEMENTED
        assert ids(client.recommend("", limit=5))


def test_an_older_snapshot_still_takes_what_was_bought_away(shop):
    shop.publish()  # without a scale, as before there was one
    with shop.served() as (_, client):
        allow(client, "ana")
        bought = ids(client.recommend("ana", limit=20))[0]
        client.record_events([event("ana", "purchase", bought)])
        assert bought not in ids(client.recommend("ana", limit=20))
