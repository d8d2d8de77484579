"""No root category takes more than its share, unless the list would be short."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import PolicyError
from engine.policy.rules.category_cap import CategoryCap
from engine.snapshot import Snapshot
from tests.policy.conftest import ITEMS
from tests.policy.moments import judged, moment_of, slate_of

FOOD, WINE, NONE = [0, 5, 10, 15, 20], [1, 6, 11], [4, 9, 14]


def test_the_first_of_a_category_stay_and_the_others_make_room(shop: Snapshot) -> None:
    kept, removed = judged(CategoryCap(share=0.5), slate_of(FOOD + WINE), moment_of(shop, limit=4))
    assert (kept, removed) == ([0, 5, 1, 6], {"category_full": 4})


def test_what_was_pushed_out_fills_a_list_that_would_be_short(shop: Snapshot) -> None:
    kept, removed = judged(CategoryCap(share=0.4), slate_of([*FOOD, 1]), moment_of(shop, limit=5))
    assert (kept, removed) == ([0, 5, 1, 10, 15], {"category_full": 1})


def test_one_item_of_a_category_is_always_allowed(shop: Snapshot) -> None:
    kept, _ = judged(CategoryCap(share=0.01), slate_of([*FOOD, 1, 2, 3]), moment_of(shop, limit=4))
    assert kept == [0, 1, 2, 3]


def test_items_without_a_category_are_not_capped(shop: Snapshot) -> None:
    kept, removed = judged(CategoryCap(share=0.2), slate_of([*NONE, *FOOD]), moment_of(shop, limit=4))
    assert (kept, removed) == ([4, 9, 14, 0], {"category_full": 4})


def test_a_share_that_falls_on_a_whole_number_gives_that_number(shop: Snapshot) -> None:
    kept, _ = judged(CategoryCap(share=0.29), slate_of(range(ITEMS)), moment_of(shop, limit=100))
    assert len(kept) == ITEMS  # 29 of 100 allowed, 12 there
    for limit, share, most in ((10, 0.3, 3), (20, 0.35, 7), (50, 0.58, 29)):
        items = [code for code in range(ITEMS) if code % 5 == 0] * 4
        others = [code for code in range(ITEMS) if code % 5 == 4] * 5
        kept, _ = judged(CategoryCap(share=share), slate_of(items + others), moment_of(shop, limit=limit))
        assert sum(code % 5 == 0 for code in kept) == most


@pytest.mark.parametrize("items", [[], [0], [4]])
def test_short_slates_pass(shop: Snapshot, items: list[int]) -> None:
    assert judged(CategoryCap(), slate_of(items), moment_of(shop)) == (items, {})


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(PolicyError, match="category_cap: share is"):
        CategoryCap(share=share)


@given(items=st.lists(st.integers(0, ITEMS - 1), unique=True), limit=st.integers(1, 30), share=st.floats(0.01, 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_walking_down_the_list_gives(shop: Snapshot, items: list[int], limit: int, share: float) -> None:
    most, counts = max(1, int(share * limit + 1e-9)), dict.fromkeys(range(4), 0)
    inside, over = [], []
    for code in items:
        root = code % 5
        if root < 4 and counts[root] >= most:
            over.append(code)
        else:
            inside.append(code)
            counts[root] = counts.get(root, 0) + 1
    expected = inside + over[: max(0, limit - len(inside))]
    kept, removed = judged(CategoryCap(share=share), slate_of(items), moment_of(shop, limit=limit))
    assert kept == expected
    assert removed.get("category_full", 0) == len(items) - len(expected)
