"""Several replicas, one Redis: what one of them was told counts in the next list of each; without Redis each goes by its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from bodega.client import Client, event

from tests.redis_server import RedisServer, fresh_redis
from tests.serving.shop import Shop, allow, ids, item
from tests.serving.test_events import shop_with_a_tower, today


@pytest.fixture
def shared() -> Iterator[RedisServer]:
    with fresh_redis() as server:
        yield server


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def ails(client: Client) -> set[str]:
    return {*client.status().degraded}


def test_what_one_replica_was_told_counts_on_the_other_and_redis_may_be_lost(shop: Shop, shared: RedisServer) -> None:
    shop_with_a_tower(shop)
    redis = f"live.redis={shared.url}"
    with (
        shop.process(redis, "watch_seconds=0.1", "live.folder=" + str(shop.out / "one")) as one,
        shop.process(redis, "watch_seconds=0.1", "live.folder=" + str(shop.out / "two")) as two,
        Client(one.address, timeout=20) as here,
        Client(two.address, timeout=20) as there,
    ):
        allow(here, "ana")
        until(lambda: there.recommend("ana").provenance.mode == there.recommend("ana").provenance.MODE_PROFILED)
        first = ids(there.recommend("ana", limit=30))[0]
        here.record_events([event("ana", "purchase", first, event_id="bought")])
        after = there.recommend("ana", limit=30)
        assert today(after) == 1 and first not in ids(after)
        told = there.record_events([event("ana", "purchase", first, event_id="bought")])
        assert (told.accepted, told.duplicates) == (0, 1), "sent again to another replica, it counts once"

        shared.stop()
        until(lambda: "today_alone" in ails(here))
        assert first not in ids(here.recommend("ana", limit=30)), "it goes by what it took itself"
        assert here.record_events([event("ana", "view", item(5), event_id="meanwhile")]).accepted == 1
        assert here.recommend("ana").items and there.recommend("ana").items

        shared.start()
        until(lambda: not ails(here) and not ails(there))
        until(lambda: today(there.recommend("ana")) == 2)
        assert first not in ids(there.recommend("ana", limit=30)), "made again from the journals"
