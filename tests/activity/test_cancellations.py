"""A cancellation takes back what was bought, as far as it goes and no further."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.activity.logs import ALL, CANCELLING, KEYS, Row, Shop, popularity, row, settled_alike


def bought(day: float, value: float | None = None, **rest: Any) -> Row:
    return row("a", "purchase", day, value=value, **rest)


def cancelled(day: float, value: float | None = None, **rest: Any) -> Row:
    return row("a", "cancel", day, value=value, **rest)


@pytest.mark.parametrize(
    ("rows", "days"),
    [
        ([bought(1, 5)], [1]),
        ([bought(1, 5), cancelled(2, 5)], []),
        ([bought(1, 5), cancelled(2, -5)], []),
        ([bought(1, 5), cancelled(1, 5)], []),
        ([bought(1, 5), cancelled(2, 4)], [1]),
        ([bought(1, 5), cancelled(2, 4), cancelled(3, 1)], []),
        ([bought(1, 5), cancelled(2, 9), bought(3, 2)], [3]),
        ([cancelled(1, 5), bought(2, 5)], [2]),
        ([bought(1, 5), bought(2, 5), cancelled(3, 5)], [1]),
        ([bought(1, 5), bought(2, 3), cancelled(3, 4)], [1]),
        ([bought(1, 1), bought(2, 3), cancelled(3, 4)], []),
        ([bought(1, 1), cancelled(2, 1), bought(3, 1), cancelled(4, 1), bought(5, 1)], [5]),
        ([bought(1, 0.1), bought(2, 0.2), cancelled(3, 0.3)], []),
        ([bought(1), cancelled(2)], []),
        ([bought(1), bought(2), cancelled(3)], [1]),
        ([bought(1), bought(2), cancelled(3), cancelled(4)], []),
        ([bought(1), cancelled(2), cancelled(3), bought(4)], [4]),
        ([bought(1, 9.99), cancelled(2)], []),
        ([bought(1), cancelled(2, 3)], []),
        ([bought(1, 0), bought(2, 0), cancelled(3, 0)], [1]),
    ],
)
def test_a_cancellation_takes_the_latest_purchases_back(shop: Shop, rows: list[Row], days: list[int]) -> None:
    shop.data.events = CANCELLING
    assert shop.kept(rows) == [("a", day) for day in days]
    (settled,) = shop.settle(rows)
    assert settled.counts["-undone_or_undoing"] == len(rows) - len(days)
    assert set(popularity(settled)) == ({"a"} if days else set())


def test_a_cancellation_touches_no_other_person_item_or_event(shop: Shop) -> None:
    shop.data.events = CANCELLING
    others = [bought(1, user_id="bob"), bought(1, user_id=None), row("b", "purchase", 1), row("a", "view", 1)]
    (settled,) = shop.settle([*others, cancelled(2), cancelled(2, user_id=None), cancelled(2, user_id="eve")])
    assert settled.activity.num_rows == 3
    assert popularity(settled)["a"][1] == 2  # bob and the view; nobody in particular makes it 3 purchases
    assert settled.counts["-undone_or_undoing"] == 3


def test_a_purchase_may_be_cancelled_at_another_source(shop: Shop) -> None:
    shop.data.events = CANCELLING
    assert shop.kept([bought(1, 2, source="web"), cancelled(2, 2, source="store")]) == []


def test_what_is_cancelled_after_the_night_s_time_is_not_yet_cancelled(shop: Shop) -> None:
    shop.data.events = CANCELLING
    assert shop.kept([bought(1, 2), cancelled(20, 2)], as_of=10) == [("a", 1)]


def left_over(rows: list[tuple[str, int]]) -> int:
    """How many purchases stand after a plain stack has taken the cancellations."""
    stack: list[int] = []
    for event, value in rows:
        if event == "purchase":
            stack.append(value)
            continue
        while value and stack:
            taken = min(value, stack[-1])
            stack[-1] -= taken
            value -= taken
            if not stack[-1]:
                stack.pop()
    return len(stack)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    people=st.lists(
        st.lists(st.tuples(st.sampled_from(["purchase", "cancel"]), st.integers(1, 6)), max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_cancellations_do_what_a_stack_does(shop: Shop, people: list[list[tuple[str, int]]]) -> None:
    shop.data.events = CANCELLING
    names = [f"person {number}" for number in range(len(people))]
    shop.granted = dict.fromkeys(names, ALL)
    rows = [
        row("a", event, day, value=float(value), user_id=name)
        for name, deeds in zip(names, people, strict=True)
        for day, (event, value) in enumerate(deeds)
    ]
    (settled,) = shop.settle(rows)
    counts: dict[bytes, int] = defaultdict(int)
    for key in settled.activity["user_key"].to_pylist():
        counts[key] += 1
    assert [counts[KEYS.rotating.derive(name)] for name in names] == [left_over(deeds) for deeds in people]


def test_of_purchases_that_tie_the_same_one_is_cancelled_in_any_order(shop: Shop) -> None:
    shop.data.events = CANCELLING
    ties = [
        row("a", "purchase", 1, value=value, source=source, flags=flags)
        for value in (2.0, 3.0) for source in ("web", "store") for flags in (None, ["gift"])
    ]  # fmt: skip
    for value in (3.0, 5.0, 8.0, 17.0):
        cancel = row("a", "cancel", 2, value=value)
        assert 0 < settled_alike(shop, [*ties, cancel]).activity.num_rows < len(ties)
