"""A bucket in order: however the rows came, each event counts once, as consented, in one order of bytes."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.activity.settle import WEIGHTS, settle_bucket
from engine.schema import ACTIVITY, EVENTS, POPULARITY, PURCHASE
from tests.activity.logs import (
    ALL,
    CANCELLING,
    KEYS,
    PROFILE,
    TRAIN,
    Row,
    Shop,
    as_bytes,
    micros,
    popularity,
    row,
    settled_alike,
)

# --- shape ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 5, 123])
def test_any_number_of_rows_gives_the_schemas_without_a_warning(shop: Shop, rows: int) -> None:
    shop.buckets = 3  # with one person two of them are empty
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = shop.settle([row(day=number / 10) for number in range(rows)], moments=(59, 3))
    assert all(each.activity.schema == ACTIVITY for each in found)
    assert all(table.schema == POPULARITY for each in found for table in each.popularity)
    assert [len(each.popularity) for each in found] == [2, 2, 2]
    assert sum(each.activity.num_rows for each in found) == rows


def test_rows_are_sorted_by_person_time_item_and_event(shop: Shop) -> None:
    rows = [
        row(item, event, day, user_id=who)
        for who in ("ann", "bob") for item in "ab" for event in ("view", "like") for day in (1, 2)
    ]  # fmt: skip
    random.Random(5).shuffle(rows)
    (settled,) = shop.settle(rows)
    order = [tuple(each.values()) for each in settled.activity.select(["user_key", "ts", "item", "event"]).to_pylist()]
    assert order == sorted(order)
    assert len(order) == 16


def test_each_event_weighs_what_it_says_of_interest(shop: Shop) -> None:
    shop.data.weights = {"click": 0.75}
    there = [name for name in EVENTS if name not in ("return", "impression")]  # one takes back, one is not carried
    (settled,) = shop.settle([row("abc"[at % 3], name, at) for at, name in enumerate(there)])
    found = dict(zip(settled.activity["event"].to_pylist(), settled.activity["weight"].to_pylist(), strict=True))
    expected = {EVENTS.index(name): WEIGHTS.get(name, 0.0) for name in there} | {EVENTS.index("click"): 0.75}
    assert found == pytest.approx(expected)


# --- one event, one row -----------------------------------------------------------------------------------------------


def test_an_event_id_counts_once_however_often_and_wherever_it_comes(shop: Shop) -> None:
    once = row(event_id="e1", day=1)
    again = row(event_id="e2", day=1)  # the same deed, really done twice
    assert shop.kept([once, again, once], [once], [again]) == [("a", 1), ("a", 1)]
    parts = shop.split([once, again, once], [once])
    settled = settle_bucket(0, 1, shop.tonight(parts, 59, (59,), 30))
    assert parts.abouts[0].counts["-duplicate"] == settled.counts["-duplicate"] == 1


def test_one_event_id_on_different_rows_is_settled_alike_in_any_order(shop: Shop) -> None:
    rows = [row("b", "purchase", 2, event_id="e"), row("a", "view", 3, event_id="e"), row("c", day=1, event_id="e")]
    found = {tuple(shop.kept(*[[each] for each in order])) for order in (rows, rows[::-1], rows[1:] + rows[:1])}
    assert found == {(("a", 3),)}


def test_without_an_event_id_only_a_whole_row_is_a_duplicate(shop: Shop) -> None:
    plain = row("a", "purchase", 1, value=2.0, session_id="s")
    others = [
        plain | {name: value}
        for name, value in {
            "user_id": "bob",
            "item_id": "b",
            "event": "view",
            "ts": row(day=1.00001)["ts"],
            "value": 3.0,
            "source": "store",
            "session_id": "t",
            "flags": ["gift"],
        }.items()
    ]
    (settled,) = shop.settle([plain, plain, *others], [plain, plain | {"event_id": ""}])
    assert settled.activity.num_rows == 1 + len(others)


def test_rows_with_and_without_an_event_id_do_not_touch_each_other(shop: Shop) -> None:
    assert len(shop.kept([row(), row(event_id="e"), row(event_id="f")])) == 3


MOMENTS = st.sampled_from([0.0, 1.0, 58.0])
ROWS = st.builds(
    row,
    item=st.sampled_from("ab"),
    event=st.sampled_from(["purchase", "purchase", "view", "cancel"]),
    day=MOMENTS,
    user_id=st.sampled_from(["ann", "ann", "bob", "eve", None]),
    value=st.sampled_from([None, 0.0, 1.0, 2.5, -3.0]),
    source=st.sampled_from(["web", "store"]),
    event_id=st.sampled_from([None, None, "", "e1", "e2", "e3"]),
    session_id=st.sampled_from([None, "s"]),
    flags=st.sampled_from([None, ["gift"]]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=25), data=st.data())
def test_shuffled_repeated_and_split_up_input_gives_the_same_bytes(shop: Shop, rows: list[Row], data: Any) -> None:
    shop.buckets, shop.data.events, shop.data.events_per_user = 2, CANCELLING, 4
    shop.granted = {"ann": ALL, "bob": PROFILE[0] | TRAIN[1]}
    plain = shop.settle(rows, moments=(59, 1))
    repeated = rows + (data.draw(st.lists(st.sampled_from(rows), max_size=10)) if rows else [])
    shuffled = data.draw(st.permutations(repeated))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shuffled)), max_size=3)))
    files = [shuffled[start:end] for start, end in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
    mixed = shop.settle(*files, moments=(59, 1), run=data.draw(st.sampled_from([1, 3, 1000])))
    for one, other in zip(plain, mixed, strict=True):
        assert as_bytes(one.activity) == as_bytes(other.activity)
        assert [as_bytes(each) for each in one.popularity] == [as_bytes(each) for each in other.popularity]


def test_what_ties_in_time_is_put_in_order_by_all_that_is_kept_of_it(shop: Shop) -> None:
    shop.granted = {"ann": PROFILE[0]}  # so that the sources differ in what may be done with them
    ties = [row(source=source, flags=flags) for source in ("web", "store") for flags in (None, ["gift"])]
    assert settled_alike(shop, ties).activity.num_rows == 2
    shop.granted = {"ann": ALL}
    activity = settled_alike(shop, ties).activity
    assert activity["source"].to_pylist() == [0, 0, 1, 1]
    assert activity["weight"].to_pylist() == pytest.approx([0.1, 0.0, 0.1, 0.0])


def test_sums_of_fractions_do_not_depend_on_the_order_of_people(shop: Shop) -> None:
    draw = random.Random(4)
    rows = [row("a", "purchase", draw.random() * 50, user_id=f"person {number}") for number in range(300)]
    rows += [row("a", "view", draw.random() * 50, user_id=None) for _ in range(300)]
    assert popularity(settled_alike(shop, rows))["a"][1] == 300


# --- time -------------------------------------------------------------------------------------------------------------


def test_nothing_after_the_night_s_time_counts_and_what_is_at_it_does(shop: Shop) -> None:
    rows = [row("a", day=10), row("b", day=10.00001), row("c", day=9)]
    (settled,) = shop.settle(rows, as_of=10, moments=(10,))
    assert settled.activity["item"].to_pylist() == [2, 0]
    assert set(popularity(settled)) == {"a", "c"}
    assert settled.counts["-after_as_of"] == 1


def test_retention_is_by_event_and_holds_for_popularity_too(shop: Shop) -> None:
    shop.data.retention_days = {"view": 5, "cart": 0}
    rows = [row("a", "view", 4.99), row("b", "view", 5), row("c", "purchase", 0), row("d", "cart", 10)]
    (settled,) = shop.settle([*rows, row("a", "cart", 9)], as_of=10, moments=(10,))
    assert settled.activity["item"].to_pylist() == [2, 1, 3]
    assert set(popularity(settled)) == {"b", "c", "d"}
    assert settled.expired == {"view": 1, "cart": 1}


def test_only_the_latest_events_of_a_person_are_kept(shop: Shop) -> None:
    shop.data.events_per_user = 3
    rows = [row(day=day) for day in range(10)] + [row("b", day=0, user_id="bob")]
    random.Random(3).shuffle(rows)
    (settled,) = shop.settle(rows)
    by_person = defaultdict(list)
    for each in settled.activity.to_pylist():
        by_person[each["user_key"]].append((each["ts"].timestamp() * 1e6 - micros(0)) / 86_400e6)
    assert by_person == {KEYS.rotating.derive("ann"): [7, 8, 9], KEYS.rotating.derive("bob"): [0]}
    assert settled.counts["-over_events_per_user"] == 7


# --- gifts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gift_weight", [0.0, 0.25])
def test_a_gift_says_little_of_the_giver_and_all_of_the_item(shop: Shop, gift_weight: float) -> None:
    shop.data.gift_weight = gift_weight
    (settled,) = shop.settle([row("a", "purchase", 58, flags=["gift"]), row("b", "purchase", 58)])
    assert settled.activity["weight"].to_pylist() == pytest.approx([gift_weight, 1.0])
    wanted = popularity(settled)
    assert wanted["a"] == wanted["b"]


# --- popularity -------------------------------------------------------------------------------------------------------


def test_a_person_counts_once_an_item_and_each_anonymous_event_alone(shop: Shop) -> None:
    rows = [row("a", "purchase", day) for day in range(50, 58)]
    rows += [row("b", "purchase", 58, user_id=None, session_id=str(number)) for number in range(3)]
    rows += [row("c", "purchase", 58, user_id=name) for name in ("ann", "bob")]
    (settled,) = shop.settle(rows, as_of=58, moments=(58,), half_life=1.0)
    assert popularity(settled) == {"a": (0.5, 1), "b": (3.0, 0), "c": (2.0, 2)}


def test_the_strongest_want_of_a_person_is_the_one_that_counts(shop: Shop) -> None:
    rows = [row("a", "purchase", 56), row("a", "view", 58), row("b", "purchase", 48), row("b", "view", 58)]
    (settled,) = shop.settle(rows, as_of=58, moments=(58,), half_life=1.0)
    assert popularity(settled)["a"] == (0.25, 1)
    assert popularity(settled)["b"][0] == pytest.approx(0.1)


def test_what_nobody_wanted_is_not_popular(shop: Shop) -> None:
    (settled,) = shop.settle([row("a", "impression"), row("b", "dismiss"), row("c", "return")])
    assert popularity(settled) == {}
    assert settled.activity.num_rows == 1


def test_each_moment_sees_nothing_later_than_itself(shop: Shop) -> None:
    (settled,) = shop.settle([row("a", day=1), row("b", day=2), row("c", day=3)], moments=(59, 2, 0))
    assert [set(popularity(settled, place)) for place in range(3)] == [{"a", "b", "c"}, {"a", "b"}, set()]


# --- consent ----------------------------------------------------------------------------------------------------------


def test_without_a_grant_nothing_personal_is_kept_and_the_item_still_counts(shop: Shop) -> None:
    shop.granted = {"ann": 0}
    (settled,) = shop.settle([row("a", "purchase"), row("a", "purchase", user_id="eve"), row("a", user_id=None)])
    assert settled.activity.num_rows == 0
    assert popularity(settled)["a"][1] == 2
    assert (settled.counts["-no_grant"], settled.counts["-anonymous"]) == (2, 1)
    assert (settled.people, settled.unprofiled) == (2, 2)


def test_a_grant_of_one_source_keeps_that_source_alone(shop: Shop) -> None:
    shop.granted = {"ann": PROFILE[1], "bob": TRAIN[0]}
    rows = [row(source=source, user_id=name) for name in ("ann", "bob") for source in ("web", "store")]
    (settled,) = shop.settle(rows)
    ann, bob = KEYS.rotating.derive_many(["ann", "bob"])
    kept = settled.activity.select(["user_key", "source", "trainable", "profilable"]).to_pylist()
    assert sorted(tuple(each.values()) for each in kept) == sorted([(ann, 1, False, True), (bob, 0, True, False)])


def test_events_that_may_not_be_used_do_not_push_out_those_that_may(shop: Shop) -> None:
    shop.granted, shop.data.events_per_user = {"ann": PROFILE[0]}, 2
    rows = [row("a", day=1), row("b", day=2), *(row("c", day=day, source="store") for day in range(3, 9))]
    assert shop.kept(rows) == [("a", 1), ("b", 2)]


def test_the_code_of_a_purchase_is_that_of_the_schema(shop: Shop) -> None:
    (settled,) = shop.settle([row(event="purchase")])
    assert settled.activity["event"].to_pylist() == [PURCHASE]
    assert settled.activity["user_key"].type == pa.binary(16)
