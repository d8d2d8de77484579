"""A day over gRPC, on real nights: strangers, consent given, a source withdrawn, everything withdrawn."""

from __future__ import annotations

import shutil
import time

from bodega.client import Client, grant
from bodega.v1 import ranking_pb2

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
