"""What every store of today's state promises: one suite, run on the embedded one and on a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import SettingsError
from engine.live.embedded import EmbeddedToday
from engine.live.events import LiveEvent
from engine.live.redis import RedisToday
from engine.live.today import TodayStore
from engine.schema import EVENTS
from tests.redis_server import RedisServer, fresh_redis
from tests.today_events import MINUTE, NOON, Clock, did, key_of, rows

NewStore = Callable[..., TodayStore]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with fresh_redis() as running:
        yield running


@pytest.fixture(scope="module", params=["embedded", "redis"])
def new_store(request: pytest.FixtureRequest) -> Iterator[NewStore]:
    """new_store(clock, ...) is empty, and shares nothing with another."""
    opened: list[TodayStore] = []

    def new(clock: Callable[[], int], **bounds: Any) -> TodayStore:
        if request.param == "embedded":
            return EmbeddedToday(clock=clock, **bounds)
        server = request.getfixturevalue("server")
        # Patient: this machine may be busy, and here it is not about a server that is slow.
        store = RedisToday(server.url, clock=clock, deployment=str(next(_numbers)), read_seconds=10, **bounds)
        assert store.rebuild([])
        opened.append(store)
        return store

    yield new
    for store in opened:
        assert isinstance(store, RedisToday)
        assert not store.degraded and not store.needs_rebuild()
        store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(new_store: NewStore, clock: Clock) -> TodayStore:
    return new_store(clock, hours=1.0, people=100, events_each=5)


class Model:
    """The same, as plainly as it can be said."""

    def __init__(self, span: int, most: int) -> None:
        self.span, self.most = span, most
        self.people: dict[bytes, list[LiveEvent]] = {}  # in the order in which they came
        self.nobody: set[str] = set()

    def live(self, key: bytes, now: int) -> list[LiveEvent]:
        return [event for event in self.people.get(key, []) if event.received >= now - self.span]

    def known(self, event: LiveEvent, now: int) -> bool:
        if not event.key:
            return event.event_id in self.nobody
        return event.event_id in {held.event_id for held in self.live(event.key, now)}

    def add(self, events: list[LiveEvent], now: int) -> list[bool]:
        told = []
        for event in events:
            told.append(not self.known(event, now))
            if not event.key:
                self.nobody.add(event.event_id)
            elif told[-1] and event.received >= now - self.span:
                self.people[event.key] = [*self.live(event.key, now), event]
        for key in {event.key for event in events if event.key}:
            held = self.live(key, now)
            shown = EVENTS.index("impression")
            leaving = sorted(held, key=lambda event: (event.event != shown, event.ts, event.received))
            gone = {id(event) for event in leaving[: max(len(held) - self.most, 0)]}
            self.people[key] = [event for event in held if id(event) not in gone]
        return told

    def of(self, keys: list[bytes], now: int) -> list[tuple[object, ...]]:
        held = [event for key in dict.fromkeys(keys) for event in self.live(key, now)]
        ordered = sorted(held, key=lambda event: (event.ts, event.received))
        found: list[tuple[object, ...]] = []
        for place, event in enumerate(ordered):
            alike = [place]
            if EVENTS[event.event] == "impression":
                what = (event.event, event.item_id, event.source)
                alike = [at for at, other in enumerate(ordered) if (other.event, other.item_id, other.source) == what]
            if place == alike[-1]:
                told = (event.item_id, event.event, event.ts, event.received, len(alike), event.source, event.value)
                found.append((*told, "gift" in event.flags, event.category))
        return found


PEOPLE = ["", "ann", "bob", "zoë"]
# Received before now by sevens and looked at by tens of minutes: nothing new is so near to its end that Redis drops it by itself.
events = st.builds(
    lambda person, number, item, event, at, late, source, value, flags, category: (
        person,
        {"event_id": f"e{number}", "item": item, "event": event, "source": source, "flags": flags, "value": value},
        at,
        late,
        category,
    ),
    st.sampled_from(PEOPLE),
    st.integers(0, 9),
    st.sampled_from(["tea", "té ", "茶", ""]),
    st.sampled_from(["view", "purchase", "dismiss_category", "impression", "impression"]),
    st.integers(-3, 3),
    st.integers(0, 9),
    st.sampled_from(["web", "app"]),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([(), ("gift",), ("sale", "gift")]),
    st.sampled_from(["", "drinks"]),
)
steps = st.one_of(
    st.tuples(st.just("add"), st.lists(events, max_size=12)),
    st.tuples(st.just("known"), st.lists(events, max_size=4)),
    st.tuples(st.just("wait"), st.integers(1, 5)),
    st.tuples(st.just("forget"), st.lists(st.sampled_from(PEOPLE[1:]), max_size=2)),
    st.tuples(st.just("trim"), st.none()),
)


@given(history=st.lists(steps, max_size=14), most=st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_any_history_is_told_as_the_model_tells_it(new_store, history, most):
    clock = Clock()
    follow(history, clock, new_store(clock, hours=1.0, people=100, events_each=most), Model(60 * MINUTE, most))


@given(history=st.lists(steps, max_size=10), most=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_any_history_is_told_alike_by_replicas_that_took_none_of_it(server, history, most):
    clock, deployment = Clock(), f"others {next(_numbers)}"

    class Others:
        """Each call is of a replica that holds nothing itself: what is told is what Redis holds."""

        def __getattr__(self, name: str) -> Any:
            def call(*given: Any) -> Any:
                bounds = {"hours": 1.0, "people": 100, "events_each": most, "deployment": deployment}
                store = RedisToday(server.url, clock=clock, read_seconds=10, **bounds)
                assert store.rebuild([])
                told = getattr(store, name)(*given)
                assert not store.degraded
                store.close()
                return told

            return call

    follow(history, clock, Others(), Model(60 * MINUTE, most))


def follow(history: list[Any], clock: Clock, store: Any, model: Model) -> None:
    """Do what the history says, and compare what is told after each step."""
    versions: dict[bytes, object] = {}

    def made(parts: list[Any]) -> list[LiveEvent]:
        return [
            did(person, at=NOON + at, received=clock.now - late * 7 * MINUTE, category=category, **told)
            for person, told, at, late, category in parts
        ]

    for what, with_this in history:
        if what == "add":
            batch = made(with_this)
            assert store.add(batch) == model.add(batch, clock.now)
        elif what == "known":
            batch = made(with_this)
            assert store.known(batch) == [model.known(event, clock.now) for event in batch]
        elif what == "wait":
            clock.now += with_this * 10 * MINUTE
        elif what == "forget":
            store.forget([key_of(person) for person in with_this])
            for person in with_this:
                model.people.pop(key_of(person), None)
        else:
            store.trim(clock.now)
        for asked in (["ann"], ["bob"], ["zoë", "ann"], ["ann", "bob", "ann"], ["nobody"], []):
            keys = [key_of(person) for person in asked]
            today = store.of(keys)
            told = rows(today)
            assert told == model.of(keys, clock.now)
            assert repr(versions.setdefault(today.version, told)) == repr(told)
    assert len({repr(told) for told in versions.values()}) == len(versions)


def test_columns_have_their_types_and_nobody_may_write_to_them(store):
    store.add(
        [
            did("ann", "1", "té", "purchase", NOON + 2, value=2.5, flags=("gift",), source="store"),
            did("ann", "2", "", "dismiss_category", NOON + 1, received=NOON + 3, category="Möbel"),
        ]
    )
    today = store.of([key_of("ann")])
    assert today.items == ("", "té") and today.sources == ("web", "store") and today.categories == ("Möbel", "")
    kinds = {"events": "u1", "ts": "i8", "received": "i8", "counts": "i4", "values": "f8", "gifts": "?"}
    for name, kind in kinds.items():
        column = getattr(today, name)
        assert column.dtype == np.dtype(kind) and column.shape == (2,) and not column.flags.writeable
    assert today.ts.tolist() == [NOON + 1, NOON + 2] and today.received.tolist() == [NOON + 3, NOON + 2]
    assert np.isnan(today.values[0]) and today.values[1] == 2.5 and today.gifts.tolist() == [False, True]
    assert len(today) == 2


def test_nothing_is_known_of_a_stranger(store):
    today = store.of([key_of("stranger")])
    assert len(today) == 0 and rows(today) == [] and today.version == store.of([]).version
    assert store.add([]) == store.known([]) == []


def test_an_unchanged_answer_is_made_once(store):
    store.add([did("ann", "1")])
    first = store.of([key_of("ann")])
    assert store.of([key_of("ann")]) is first
    store.add([did("ann", "2")])
    assert store.of([key_of("ann")]).version != first.version


def test_impressions_go_before_what_somebody_did_and_the_oldest_first(store):
    store.add([did("ann", f"seen {at}", f"item {at}", "impression", NOON + at) for at in range(10)])
    assert store.of([key_of("ann")]).items == tuple(f"item {at}" for at in range(5, 10))
    store.add([did("ann", f"bought {at}", f"item {at}", "purchase", NOON - 60 + at) for at in range(4)])
    assert store.of([key_of("ann")]).items == ("item 0", "item 1", "item 2", "item 3", "item 9")
    store.add([did("ann", "late", "old", "purchase", NOON - 120), did("ann", "new", "new", "impression", NOON + 99)])
    assert store.of([key_of("ann")]).items == ("old", "item 0", "item 1", "item 2", "item 3")


def test_an_item_that_is_shown_again_and_again_is_one_row_a_source(store):
    store.add([did("ann", f"{at}", "tea", "impression", NOON + at) for at in range(3)])
    store.add([did("ann", "app", "tea", "impression", NOON + 1, source="app"), did("ann", "view", "tea")])
    today = store.of([key_of("ann")])
    assert list(zip(today.sources, today.counts.tolist(), today.ts.tolist(), strict=True)) == [
        ("web", 1, NOON),
        ("app", 1, NOON + 1),
        ("web", 3, NOON + 2),
    ]


def test_what_is_of_the_same_moment_stays_in_the_order_in_which_it_came(new_store, clock):
    store = new_store(clock, events_each=700)
    names = [f"item {number * 7919 % 601}" for number in range(600)]
    for start, end in ((0, 1), (1, 301), (301, 600)):
        store.add([did("ann", name, name) for name in names[start:end]])
    assert list(store.of([key_of("ann")]).items) == names


def test_an_event_counts_once_over_threads_and_somebody_is_told_so(new_store, clock):
    store = new_store(clock, events_each=500)
    sent = [did(person, str(number)) for number in range(100) for person in ("ann", "bob", "")]
    start = Barrier(8)

    def send(turn: int) -> list[tuple[bool, LiveEvent]]:
        start.wait()
        mine = sent[turn * 30 :] + sent[: turn * 30]
        told: list[tuple[bool, LiveEvent]] = []
        for at in range(0, len(mine), 7):
            told += zip(store.add(mine[at : at + 7]), mine[at : at + 7], strict=True)
        return told

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for told in pool.map(send, range(8)) for answer in told]
    new = [(event.key, event.event_id) for first, event in answers if first]
    assert len(answers) == 8 * 300 and len(new) == 300 == len(set(new))
    assert len(store.of([key_of("ann")])) == 100
    assert all(store.known(sent)) and not any(store.add(sent))


def test_the_same_id_of_two_people_is_two_events(store):
    assert store.add([did("ann", "1"), did("bob", "1"), did("", "1"), did("ann", "1"), did("", "1")]) == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_of_nobody_the_latest_ids_are_told_from_new_ones_and_the_oldest_are_let_go(new_store, clock):
    store = new_store(clock, anonymous=20)
    sent = [did("", str(number)) for number in range(100)]
    assert store.add(sent) == [True] * 100
    assert store.known(sent)[-10:] == [True] * 10 and store.add(sent[-10:]) == [False] * 10
    assert sum(store.known(sent)) <= 20
    assert len(store.of([b""])) == 0


def test_what_is_too_old_is_neither_told_nor_in_the_way(store, clock):
    store.add([did("ann", str(number)) for number in range(5)])
    clock.now += 59 * MINUTE
    store.add([did("ann", "5", "new", at=clock.now)])
    assert len(store.of([key_of("ann")])) == 5
    clock.now += 2 * MINUTE
    assert store.of([key_of("ann")]).items == ("new",)
    assert store.known([did("ann", "1"), did("ann", "5")]) == [False, True]
    # What comes too late to count is not held, and says nothing of the past.
    assert store.add([did("ann", "6", at=NOON)]) == [True] == store.add([did("ann", "6", at=NOON)])
    assert store.add([did("ann", "1", at=clock.now)]) == [True]
    assert store.of([key_of("ann")]).items == ("new", "tea")


def test_the_forgotten_are_gone_and_may_come_again(store):
    store.add([did("ann", "1"), did("bob", "1")])
    store.forget([key_of("ann"), key_of("stranger")])
    assert len(store.of([key_of("ann")])) == 0 and len(store.of([key_of("bob")])) == 1
    assert store.add([did("ann", "1", "again")]) == [True]
    assert store.of([key_of("ann"), key_of("bob")]).items == ("again", "tea")


def test_figures_are_of_what_is_held(store, clock):
    empty = store.figures()
    assert (empty.people, empty.events, empty.anonymous) == (0, 0, 0)
    store.add([did(person, str(number)) for person in ("ann", "bob", "") for number in range(7)])
    held = store.figures()
    assert (held.people, held.events, held.anonymous) == (2, 10, 7) and held.bytes > empty.bytes
    clock.now += 3 * 60 * MINUTE
    store.trim(clock.now)
    freed = store.figures()
    assert (freed.people, freed.events) == (0, 0)
    store.close()
    assert store.figures().people == 0


@pytest.mark.parametrize("bound", ["hours", "people", "events_each"])
def test_a_bound_that_holds_nothing_is_refused(new_store, clock, bound):
    with pytest.raises(SettingsError, match=f"live.{bound}"):
        new_store(clock, **{bound: 0})
