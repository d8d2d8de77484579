"""Redis goes away, comes back empty, forgets, is slow or full: lists go on, and the state is made again from the journals."""

from __future__ import annotations

import itertools
import logging
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from engine.errors import SettingsError
from engine.live.embedded import EmbeddedToday
from engine.live.events import LiveEvent
from engine.live.redis import RedisToday
from engine.live.today import now_us
from tests.redis_server import RedisServer, fresh_redis
from tests.tcp_proxy import proxy_to
from tests.today_events import MINUTE, NOON, Clock, did, key_of, rows

Open = Callable[..., RedisToday]
_numbers = itertools.count()
PATIENT = {"connect_seconds": 10.0, "read_seconds": 10.0, "pause_seconds": 0.1}
BRISK = {"connect_seconds": 0.25, "read_seconds": 0.2, "pause_seconds": 0.1}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """For tests that leave it as it is."""
    with fresh_redis() as running:
        yield running


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """For tests that kill it."""
    with fresh_redis() as running:
        yield running


@pytest.fixture
def replica() -> Iterator[Open]:
    """replica(server) is a store that was filled from an empty journal; those of one test share a deployment."""
    deployment = f"shop {next(_numbers)}"
    with ExitStack() as stack:

        def opened(server: RedisServer, url: str = "", **bounds: Any) -> RedisToday:
            store = RedisToday(url or server.url, **({"deployment": deployment} | PATIENT | bounds))
            stack.callback(store.close)
            store.rebuild([])
            return store

        yield opened


def some(person: str, *ids: str, event: str = "view") -> list[LiveEvent]:
    return [did(person, each, f"item {each}", event, now_us()) for each in ids]


def of(store: Any, *people: str) -> list[tuple[object, ...]]:
    return rows(store.of([key_of(person) for person in people]))


def items(store: Any, person: str) -> list[object]:
    return [row[0] for row in of(store, person)]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_replicas_see_at_once_what_another_took_and_count_it_once(server, replica):
    one, two = replica(server), replica(server)
    sent = some("ann", "1", "2") + some("", "3")
    assert one.add(sent) == [True] * 3 and two.known(sent) == [True] * 3
    assert two.add([*sent, *some("ann", "4")]) == [False, False, False, True]
    assert of(one, "ann") == of(two, "ann") and items(one, "ann") == ["item 1", "item 2", "item 4"]
    assert one.of([key_of("ann")]).version == two.of([key_of("ann")]).version


def test_an_event_that_two_replicas_take_in_the_same_moment_counts_once(server, replica):
    stores = [replica(server, events_each=1_000) for _ in range(2)]
    sent = some("ann", *map(str, range(400))) + some("", *map(str, range(100)))
    start = threading.Barrier(4)
    told: list[list[bool]] = []

    def send(store: RedisToday) -> None:
        start.wait()
        told.append([new for event in sent for new in store.add([event])])

    threads = [threading.Thread(target=send, args=(store,)) for store in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(turns) for turns in zip(*told, strict=True)] == [1] * 500
    assert len(of(stores[0], "ann")) == 400


def test_nothing_raw_is_in_redis_and_everything_there_ends(server, replica):
    store = replica(server, deployment="raw", hours=1.0)
    store.add([did("ann@example.org", "order ann 77", "tea", "purchase", now_us(), session_id="visit 5")])
    store.add([did("", "order 78", session_id="visit 6", at=now_us())])
    with server.client() as client:
        names = client.keys("bodega:raw:*")
        told = b" ".join([*names, *(client.dump(name) for name in names)])
        assert len(names) == 4 and all(0 < client.pttl(name) <= 3_600_001 for name in names)
        person = client.hgetall(b"bodega:raw:today:1:p:" + key_of("ann@example.org"))
    told += b" ".join([*person, *person.values()])
    assert b"tea" in told
    for raw in (b"ann", b"example", b"order 7", b"visit"):
        assert raw not in told


def test_what_counts_no_longer_leaves_redis_when_the_next_comes_and_what_is_late_never_gets_there(server, replica):
    clock = Clock()
    store = replica(server, deployment="old", hours=1.0, clock=clock)
    store.add([did("ann", "1"), did("ann", "2")])
    clock.now += 61 * MINUTE
    store.add([did("ann", "3", at=clock.now), did("bob", "1", at=NOON)])
    with server.client() as client:
        held = client.hgetall(b"bodega:old:today:1:p:" + key_of("ann"))
        assert held[b""] == str(clock.now).encode() and len(held) == 2
        assert not client.exists(b"bodega:old:today:1:p:" + key_of("bob"))


def test_killed_and_started_empty_it_is_made_again_from_the_journals(own, replica):
    one, two = replica(own), replica(own)
    journals = {one: some("ann", "1", "2") + some("bob", "3"), two: some("ann", "4", event="purchase") + some("", "5")}
    for store, events in journals.items():
        assert all(store.add(events))
    before = of(one, "ann"), of(two, "bob")
    own.stop(signal.SIGKILL)
    assert of(one, "ann") == before[0][:2] and of(two, "ann") == before[0][2:]  # each what it took itself
    assert one.degraded and two.degraded and not one.needs_rebuild()
    late = some("ann", "6")
    assert one.add(late) == [True] and one.known(late) == [True] and one.add(late) == [False]
    journals[one] += late
    assert not one.rebuild(journals[one])
    own.start()
    for store, events in journals.items():
        until(store.needs_rebuild)
        until(lambda store=store, events=events: store.rebuild(iter(events)))
        assert not store.degraded and not store.needs_rebuild()
    whole = EmbeddedToday()
    whole.add([*journals[one], *journals[two]])
    for store in (one, two):
        assert of(store, "ann") == of(whole, "ann") and of(store, "bob") == before[1] == of(whole, "bob")
        assert all(store.known(journals[one] + journals[two]))
        assert not any(store.add(journals[one] + journals[two]))


@pytest.mark.parametrize("look", ["of", "add", "needs_rebuild"])
def test_flushed_it_is_noticed_by_whatever_comes_first(server, replica, look):
    one, two = replica(server), replica(server)
    journal = some("ann", "1", "2")
    one.add(journal)
    assert not one.needs_rebuild()
    with server.client() as client:
        client.flushall()
    if look == "of":
        assert items(one, "ann") == ["item 1", "item 2"]  # its own are told from the first look on
    elif look == "add":
        journal += some("ann", "3")
        one.add(journal[-1:])
        assert items(one, "ann") == ["item 1", "item 2", "item 3"]
    assert one.needs_rebuild()
    for _ in range(3):
        assert one.rebuild(journal)
        assert not one.needs_rebuild()
        assert items(two, "ann") == items(one, "ann") == [event.item_id for event in journal]


def test_a_server_that_went_back_to_an_older_state_is_found_out(own, replica):
    store = replica(own)
    journal = some("ann", "1")
    store.add(journal)
    with own.client() as client:
        client.save()  # as a failover to a replica that lags, or a restart from a file
    journal += some("ann", "2") + some("ann", "3")
    store.add(journal[1:])
    own.stop(signal.SIGKILL)
    own.start()
    with own.client() as client:
        assert len(client.keys("*:p:*")) == 1
    assert items(store, "ann") == ["item 1", "item 2", "item 3"]
    assert store.needs_rebuild() and store.rebuild(journal) and not store.needs_rebuild()
    assert items(replica(own), "ann") == ["item 1", "item 2", "item 3"]


def test_a_server_that_stands_still_delays_nobody_beyond_its_timeouts(own, replica):
    store, other = replica(own), replica(own)
    store.add(some("ann", "1"))
    brisk = replica(own, **(BRISK | {"pause_seconds": 60.0}))
    assert brisk.add(some("ann", "2")) == [True]
    took = []
    with own.stopped_in_its_tracks():
        late = some("ann", "3")
        for call in (lambda: of(brisk, "ann"), lambda: brisk.add(late), lambda: brisk.known(some("ann", "4"))) * 20:
            begun = time.monotonic()
            call()
            took.append(time.monotonic() - begun)
        assert items(brisk, "ann") == ["item 2", "item 3"] and brisk.degraded
    assert max(took) < 0.2 + 0.25 + 0.2
    assert sum(took[3:]) < 0.2  # the breaker is open: nothing is waited for
    assert items(other, "ann")[:2] == ["item 1", "item 2"]


def test_after_a_standstill_the_others_see_what_came_meanwhile(own, replica):
    brisk, other = replica(own, **BRISK), replica(own)
    journal = some("ann", "1")
    brisk.add(journal)
    with own.stopped_in_its_tracks():
        late = some("ann", "2", "3")
        assert brisk.add(late) == [True, True]
        journal += late
    until(brisk.needs_rebuild)
    until(lambda: brisk.rebuild(journal))
    assert not brisk.degraded
    assert of(other, "ann") == of(brisk, "ann") and items(other, "ann") == ["item 1", "item 2", "item 3"]


def test_a_write_whose_answer_is_lost_counts_once(server, replica):
    with proxy_to(server.port) as proxy:
        store, other = replica(server, server.url_at(proxy.port)), replica(server)
        proxy.fault, proxy.word = "cut after", b"EVALSHA"
        sent = some("ann", "1")
        assert store.add(sent) == [True] and proxy.cuts == 1
        proxy.fault = ""
        until(lambda: not other.add(some("bob", "x"))[0])
        assert items(other, "ann") == ["item 1"] == items(store, "ann")
        assert store.known(sent) == [True] and store.add(sent) == [False]
        until(store.needs_rebuild)
        assert store.rebuild(sent) and items(other, "ann") == ["item 1"]


def test_a_network_that_swallows_everything_is_given_up_in_time(server, replica):
    with proxy_to(server.port) as proxy:
        store = replica(server, server.url_at(proxy.port), **BRISK)
        store.add(some("ann", "1"))
        proxy.fault = "swallow"
        begun = time.monotonic()
        assert items(store, "ann") == ["item 1"]
        assert time.monotonic() - begun < 1.0 and store.degraded


def test_others_write_while_the_state_is_made_again(server, replica):
    one, two = replica(server, events_each=3_000), replica(server, events_each=3_000)
    journal = some("ann", *map(str, range(2_000)))
    with server.client() as client:
        client.flushall()
    written: list[bool] = []
    begin = threading.Event()

    def write() -> None:
        begin.wait(10)
        for number in range(2_000, 2_100):
            written.extend(two.add(some("ann", str(number))))

    thread = threading.Thread(target=write)
    thread.start()

    def slowly() -> Iterator[LiveEvent]:
        for at, event in enumerate(journal):
            if at == 300:
                begin.set()
            if at % 100 == 0:
                time.sleep(0.005)
            yield event

    assert one.rebuild(slowly())
    thread.join()
    assert written == [True] * 100
    assert sorted(items(one, "ann")) == sorted(f"item {number}" for number in range(2_100))


def test_people_who_are_erased_while_redis_is_away_are_gone_when_it_is_back(own, replica):
    store, other = replica(own), replica(own)
    store.add(some("ann", "1") + some("bob", "2"))
    with own.stopped_in_its_tracks():
        impatient = replica(own, **BRISK)
        impatient.forget([key_of("ann")])
        assert of(impatient, "ann") == []
        impatient.add(some("ann", "3"))
    assert of(impatient, "ann")[-1:] == of(impatient, "ann")
    until(impatient.needs_rebuild)
    until(lambda: impatient.rebuild(some("ann", "3")))
    assert items(other, "ann") == ["item 3"] == items(impatient, "ann") and items(other, "bob") == ["item 2"]
    other.forget([key_of("bob")])
    assert of(store, "bob") == [] == of(other, "bob")


@pytest.mark.parametrize("then", ["add", "needs_rebuild"])
def test_whom_redis_did_not_hear_to_forget_is_told_by_it_no_more_and_goes_first(server, replica, then):
    with proxy_to(server.port) as proxy:
        store, other = replica(server, server.url_at(proxy.port), **BRISK), replica(server)
        other.add(some("ann", "1"))
        proxy.fault = "swallow"
        store.forget([key_of("ann")])
        proxy.fault = ""
        assert items(other, "ann") == ["item 1"]

        def answers() -> bool:
            assert of(store, "ann") == []
            return not store.degraded

        until(answers)
        assert store.known(some("ann", "1")) == [False]
        if then == "add":
            assert store.add(some("ann", "2")) == [True]
        else:
            store.needs_rebuild()
        assert items(other, "ann") == items(store, "ann") == (["item 2"] if then == "add" else [])


def test_a_single_lost_write_is_noticed_by_the_next(own, replica):
    store = replica(own)
    journal = some("ann", "1") + some("bob", "2")
    store.add(journal[:1])
    with own.client() as client:
        client.save()
    store.add(journal[1:])
    own.stop(signal.SIGKILL)
    own.start()
    journal += some("ann", "3")
    store.add(journal[2:])
    assert items(store, "bob") == ["item 2"] and store.needs_rebuild() and store.rebuild(journal)
    assert items(replica(own), "bob") == ["item 2"]


def test_a_full_server_takes_nothing_and_lists_go_on(replica):
    with fresh_redis("--maxmemory-policy", "noeviction") as full, full.client() as client:
        store = replica(full)
        client.set("other", b"x" * 2**21)
        client.config_set("maxmemory", "1mb")
        sent = some("ann", "1")
        assert store.add(sent) == [True] and not client.keys("*:p:*")
        assert store.known(sent) == [True] and store.add(sent) == [False]
        assert items(store, "ann") == ["item 1"]
        client.config_set("maxmemory", "0")
        until(store.needs_rebuild)
        until(lambda: store.rebuild(sent))
        assert items(replica(full), "ann") == ["item 1"]


def test_what_others_leave_in_redis_breaks_nothing(server, replica):
    store = replica(server, deployment="junk")
    name = b"bodega:junk:today:1:p:" + key_of("ann")
    store.add(some("ann", "1"))
    with server.client() as client:
        client.hset(
            name, mapping={b"12345678": b"short", b"87654321": b"x" * 60, b"other": b"", b"0" * 8: b"y" * 70_000}
        )
        assert items(store, "ann") == ["item 1"]
        row = struct.pack(">Q", 1) + struct.pack("<qqdB?HBH", now_us(), now_us(), 0.0, 0, False, 1, 0, 0) + b"\xff"
        client.hset(name, b"ABCDEFGH", row)
        assert items(store, "ann") == ["item 1", "\ufffd"]
        client.delete(name)
        client.set(name, "a text")
    assert items(store, "ann") == ["item 1"] and store.add(some("ann", "2")) == [True]
    assert store.degraded and "ResponseError" in str(store.fault)
    with server.client() as client:
        client.delete(name)
    until(store.needs_rebuild)


def test_without_the_driver_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(SettingsError, match=r"bodega\[redis\]"):
        RedisToday("redis://127.0.0.1:6379")


def test_neither_address_nor_password_is_shown(caplog):
    with fresh_redis(password="s3cret") as guarded, caplog.at_level(logging.DEBUG):
        good = RedisToday(guarded.url, **PATIENT)
        assert good.rebuild(some("ann", "1")) and not good.degraded
        bad = RedisToday(guarded.url.replace("s3cret", "gu3ss"), **PATIENT)
        assert bad.add(some("ann", "1")) == [True] and bad.degraded
        gone = RedisToday(f"redis://:s3cret@127.0.0.1:{guarded.port}/0", **PATIENT)
        guarded.stop()
        assert of(gone, "ann") == [] and gone.degraded
        told = [*map(repr, (good, bad, gone)), str(bad.fault), str(gone.fault), caplog.text]
        for store in (good, bad, gone):
            store.close()
    with pytest.raises(SettingsError) as refused:
        RedisToday("http://:s3cret@127.0.0.1:6379")
    with pytest.raises(SettingsError) as odd:
        RedisToday("redis://:s3cret@127.0.0.1:port")
    told += [str(refused.value), str(odd.value), repr(refused.value.__cause__), repr(odd.value.__cause__)]
    assert "AuthenticationError" in told[3] and "degraded=True" in told[1]
    for secret in ("s3cret", "gu3ss", "127.0.0.1", str(guarded.port)):
        assert not any(secret in text for text in told)
