"""That was a gift: the purchase that is meant weighs as one that was flagged, and nothing else changes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.activity.mapping import EventRule
from engine.schema import EVENTS, PURCHASE
from tests.activity.logs import ALL, CANCELLING, Row, Shop, row, settled_alike


def bought(item: str, day: float, **rest: Any) -> Row:
    return row(item, "purchase", day, **rest)


def gift(item: str, day: float, **rest: Any) -> Row:
    return row(item, "gift", day, **rest)


def weights(shop: Shop, rows: list[Row]) -> list[tuple[str, int, float]]:
    """Item, day and weight of each purchase that is left, whatever the order of the rows."""
    told = settled_alike(shop, rows).activity.select(["item", "ts", "weight", "event"]).to_pylist()
    return [
        (shop.items[each["item"]], each["ts"].timetuple().tm_yday - 1, each["weight"])
        for each in told
        if each["event"] == PURCHASE
    ]


@pytest.mark.parametrize(
    ("rows", "light"),
    [
        ([bought("a", 1), bought("a", 3), gift("a", 4)], [("a", 3)]),
        ([bought("a", 1), gift("a", 2), bought("a", 3)], [("a", 1)]),
        ([bought("a", 1), bought("a", 3), gift("a", 4), gift("a", 5)], [("a", 3)]),
        ([bought("a", 1), gift("a", 1)], [("a", 1)]),
        ([gift("a", 1), bought("a", 2)], []),
        ([bought("a", 1), bought("b", 2), gift("b", 3)], [("b", 2)]),
        ([bought("a", 1), gift("a", 2, source="store")], [("a", 1)]),
        ([bought("a", 1, user_id="bob"), gift("a", 2)], []),
        ([bought("a", 1, user_id=None), gift("a", 2, user_id=None), bought("a", 3)], []),
        ([bought("a", 1), row("a", "return", 2), bought("a", 0.5), gift("a", 3)], [("a", 0)]),
        ([bought("a", 1, flags=["gift"]), bought("a", 2), gift("a", 3)], [("a", 1), ("a", 2)]),
        ([bought("a", 1), gift("a", 70)], []),
    ],
)
def test_the_latest_purchase_of_the_item_before_it_is_the_gift(
    shop: Shop, rows: list[Row], light: list[tuple[str, int]]
) -> None:
    shop.data.gift_weight = 0.25
    found = weights(shop, rows)
    assert [(item, day) for item, day, weight in found if weight == 0.25] == light
    assert all(weight in (0.25, 1.0) for *_, weight in found)


def test_a_gift_that_was_taken_back_counts_again(shop: Shop) -> None:
    shop.data.events = CANCELLING | {"gift": EventRule(means="gift"), "kept it": EventRule(undoes="gift")}
    assert weights(shop, [bought("a", 1), gift("a", 2)]) == [("a", 1, 0.0)]
    assert weights(shop, [bought("a", 1), gift("a", 2), row("a", "kept it", 3)]) == [("a", 1, 1.0)]


def test_what_was_erased_is_no_gift(shop: Shop) -> None:
    shop.erased = {"ann": 1.5}
    assert weights(shop, [bought("a", 1), gift("a", 2)]) == []


def test_a_gift_shipped_twice_under_one_event_id_is_one(shop: Shop) -> None:
    said = gift("a", 4, event_id="g")
    assert weights(shop, [bought("a", 1), bought("a", 3), said, said]) == [("a", 1, 1.0), ("a", 3, 0.0)]


DEEDS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["purchase", "gift", "view"])), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=st.lists(DEEDS, min_size=1, max_size=4))
def test_gifts_do_what_one_walk_through_the_days_does(shop: Shop, people: list[list[tuple[str, str]]]) -> None:
    names = [f"person {number}" for number in range(len(people))]
    shop.granted = dict.fromkeys(names, ALL)
    rows = [
        row(item, event, day, user_id=name)
        for name, deeds in zip(names, people, strict=True)
        for day, (item, event) in enumerate(deeds)
    ]
    expected: dict[tuple[str, int], int] = defaultdict(int)  # by item and day, purchases that were for oneself
    for deeds in people:
        last: dict[str, int] = {}
        mine: set[tuple[str, int]] = set()
        for day, (item, event) in enumerate(deeds):
            if event == "purchase":
                last[item] = day
                mine.add((item, day))
            elif event == "gift" and item in last:
                mine.discard((item, last[item]))
        for each in mine:
            expected[each] += 1
    (settled,) = shop.settle(rows)
    found: dict[tuple[str, int], int] = defaultdict(int)
    for each in settled.activity.to_pylist():
        if each["event"] == EVENTS.index("purchase") and each["weight"] > 0:
            found[shop.items[each["item"]], each["ts"].timetuple().tm_yday - 1] += 1
    assert found == expected
