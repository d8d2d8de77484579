"""A day over gRPC, on real nights: strangers, consent given, today's events, a source withdrawn, everything withdrawn."""

from __future__ import annotations

import shutil
import time
from collections import Counter

import pyarrow.parquet as pq
from bodega.client import Client, event, grant
from bodega.v1 import ranking_pb2
from pytest import approx

from tests.nights import SmallShop
from tests.serving.shop import Process

Mode = ranking_pb2.Provenance


def items(reply: ranking_pb2.RecommendResponse) -> list[str]:
    return [item.item_id for item in reply.items]


def wait_for(client: Client, snapshot: str) -> None:
    until = time.monotonic() + 30
    while client.status().snapshot.snapshot_id != snapshot:
        assert time.monotonic() < until, "the server did not swap"
        time.sleep(0.1)


def test_a_day_from_stranger_to_known_and_back(small_shop, first_night, tmp_path):
    # A deployment of its own, so that what this test decides about people stays here.
    shop = SmallShop(tmp_path / "out")
    shutil.copytree(small_shop.out, shop.out, ignore=shutil.ignore_patterns("runs"))
    newcomer = shop.cast()["no_consent"]
    server = Process([f"out={shop.out}", "port=0", "log.format=json"])
    try:
        with Client(server.address, timeout=10) as client:
            before = client.recommend(newcomer, limit=10)
            stranger = client.recommend("", limit=10)
            assert before.provenance.mode == Mode.MODE_NON_PROFILED
            assert before.provenance.reason == "no_consent"
            assert items(before) == items(stranger)

            given = client.set_consent(newcomer, [grant("profile"), grant("train")], notice_version="2026-01")
            waiting = client.recommend(newcomer, limit=10, consent_token=given.consent_token)
            # Nothing was kept of somebody who had allowed nothing, so there is nothing to know before the next night.
            assert waiting.provenance.mode == Mode.MODE_NON_PROFILED
            assert waiting.provenance.reason == "unknown_user"

            night = shop.nightly()
            assert night.code == 0, night.err
            wait_for(client, night.last_line["snapshot"])
            known = client.recommend(newcomer, limit=10)
            assert known.provenance.mode == Mode.MODE_PROFILED, known.provenance
            assert items(known) != items(stranger)
            assert {item.lane for item in known.items} != {"popular"}, items(known)

            withdrawn = client.withdraw(newcomer, "profile", "web")
            narrowed = client.recommend(newcomer, limit=10, consent_token=withdrawn.consent_token)
            assert narrowed.provenance.mode == Mode.MODE_LIMITED
            assert narrowed.provenance.reason == "grants_missing"
            assert items(narrowed) != items(known)
            # What the other sources say stays: it narrows, and does not fall silent.
            assert {item.lane for item in narrowed.items} - {"popular"}

            gone = client.withdraw(newcomer)
            after = client.recommend(newcomer, limit=10, consent_token=gone.consent_token)
            assert after.provenance.mode == Mode.MODE_NON_PROFILED
            assert items(after) == items(client.recommend("", limit=10))
    finally:
        server.kill()


def test_a_day_in_the_life_of_a_newcomer(small_shop, first_night, tmp_path):
    shop = SmallShop(tmp_path / "out")
    shutil.copytree(small_shop.out, shop.out, ignore=shutil.ignore_patterns("runs"))
    catalogue = pq.read_table(shop.out / "shop" / "catalogue.parquet").to_pylist()
    path = {row["item_id"]: row["categories"] for row in catalogue}
    server = Process([f"out={shop.out}", "port=0", "log.format=json"])
    try:
        with Client(server.address, timeout=10) as client:

            def did(name: str, item: str = "", source: str = "web", **more: str) -> None:
                told = client.record_events([event("zoe", name, item, source=source, **more)])
                assert (told.accepted, list(told.rejected)) == (1, [])

            def worth(reply: ranking_pb2.RecommendResponse) -> dict[tuple[str, str], float]:
                return {(item.item_id, item.lane): item.score for item in reply.items if item.lane != "popular"}

            def shown(limit: int = 12) -> ranking_pb2.RecommendResponse:
                return client.recommend("zoe", limit=limit)

            client.set_consent("zoe", [grant("profile"), grant("train")], notice_version="2026-01")
            before = shown()
            assert before.provenance.reason == "unknown_user"
            liked = Counter(path[item][0] for item in items(client.recommend("", limit=100))).most_common()[-1][0]
            looked = [item for item in items(client.recommend("", limit=100)) if path[item][0] == liked][:3]
            rest = [item for item in sorted(path) if path[item] and path[item][0] == liked and item not in looked]
            looked = (looked + rest)[:3]

            for item, source in zip(looked, ("web", "web", "app"), strict=True):
                did("click", item, source)
            known = shown()
            assert known.provenance.mode == Mode.MODE_PROFILED, known.provenance
            assert known.provenance.today_events == 3
            of_liked = [sum(path[item][0] == liked for item in items(reply)) for reply in (before, known)]
            assert of_liked[1] > of_liked[0], "three looks at a category bring more of it"
            assert {"session", "two_tower"} & {item.lane for item in known.items}

            bought = items(known)[0]
            did("purchase", bought)
            assert bought not in items(shown(100)), "what was bought is gone"

            gift = next(item for item in items(shown(100)) if path[item][0] != liked)
            settled = worth(shown(100))
            did("purchase", gift)
            swayed = worth(shown(100))
            assert gift not in {item for item, _ in swayed}
            did("gift", gift)
            after = worth(shown(100))
            assert gift not in {item for item, _ in after}
            both = settled.keys() & swayed.keys() & after.keys()
            assert len(both) > 10
            assert {item: after[item] for item in both} == approx({item: settled[item] for item in both}, rel=1e-4)
            assert {item: swayed[item] for item in both} != approx({item: settled[item] for item in both}, rel=1e-4)

            unwanted = next(path[item][0] for item in items(shown()) if path[item][0] != liked)
            did("dismiss_category", category=unwanted)
            assert not [item for item in items(shown(100)) if unwanted in path[item]]
            dismissed = items(shown())[0]
            did("dismiss", dismissed)
            assert dismissed not in items(shown(100))

            token = client.withdraw("zoe", "profile", "app").consent_token
            narrowed = client.recommend("zoe", limit=12, consent_token=token)
            assert narrowed.provenance.mode == Mode.MODE_LIMITED
            assert narrowed.provenance.reason == "grants_missing"
            assert narrowed.provenance.today_events == shown().provenance.today_events
            gone = client.withdraw("zoe").consent_token
            last = client.recommend("zoe", limit=12, consent_token=gone)
            assert items(last) == items(client.recommend("", limit=12))
            assert last.provenance.today_events == 0
    finally:
        server.kill()
