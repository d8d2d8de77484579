"""What the caller does not want, and what the person has."""

from __future__ import annotations

import numpy as np
import pytest

from engine.policy.rules.exclusions import Exclusions
from engine.schema import LANES, NEVER
from engine.snapshot import Snapshot
from tests.policy.conftest import ITEMS
from tests.policy.moments import judged, moment_of, seen_of, slate_of

WEB, STORE = 0b0011, 0b1100


def test_excluded_items_go(shop: Snapshot) -> None:
    moment = moment_of(shop, exclude=frozenset([3, 1, 44]))
    assert judged(Exclusions(), slate_of([0, 1, 2, 3]), moment) == ([0, 2], {"excluded": 2})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["wine"], [1, 6, 20]),  # as a root, and deep in the path of item 20
        (["toys/2"], [2]),
        (["wine", "toys/2"], [1, 2, 6, 20]),
        (["nothing of the sort"], []),
    ],
)
def test_any_category_of_an_items_path_will_do(shop: Snapshot, names: list[str], expected: list[int]) -> None:
    kept, removed = judged(
        Exclusions(), slate_of([0, 1, 2, 3, 4, 6, 20]), moment_of(shop, only_categories=frozenset(names))
    )
    assert kept == expected
    assert removed == {"other_category": 7 - len(expected)}


def test_categories_are_those_of_the_path_for_every_item(shop: Snapshot) -> None:
    for name in ("food", "wine", "books/0", "toys/1"):
        kept, _ = judged(Exclusions(), slate_of(range(ITEMS)), moment_of(shop, only_categories=frozenset([name])))
        assert kept == [code for code in range(ITEMS) if name in shop.items.category_path(code)]


def test_what_was_bought_is_hidden_but_for_the_usual(shop: Snapshot) -> None:
    slate = slate_of([0, 1, 2])
    lanes = np.array([LANES.index("two_tower"), LANES.index("usual"), LANES.index("popular")], np.uint8)
    slate = type(slate)(slate.item, lanes, slate.basis, slate.score, slate.evidence)
    assert judged(Exclusions(), slate, moment_of(shop, seen=seen_of([2, 1, 0]))) == ([1], {"bought": 2})
    assert judged(Exclusions(hide_bought=False), slate, moment_of(shop, seen=seen_of([2, 1, 0]))) == ([0, 1, 2], {})


def test_what_was_bought_under_a_missing_grant_is_not_known(shop: Snapshot) -> None:
    seen = seen_of([0, 1, 2, 3], basis=[WEB, STORE, 0, NEVER])
    for granted, expected in ((WEB, [1, 3]), (STORE, [0, 3]), (0, [0, 1, 3]), (WEB | STORE, [3])):
        assert judged(Exclusions(), slate_of([0, 1, 2, 3]), moment_of(shop, seen=seen, granted=granted))[0] == expected


def test_one_item_counts_under_its_first_reason_only(shop: Snapshot) -> None:
    moment = moment_of(shop, exclude=frozenset([0, 2]), only_categories=frozenset(["food"]), seen=seen_of([0, 5]))
    kept, removed = judged(Exclusions(), slate_of([0, 5, 10, 2, 1]), moment)
    assert (kept, removed) == ([10], {"excluded": 2, "other_category": 1, "bought": 1})


def test_an_empty_slate_and_nothing_seen_are_fine(shop: Snapshot) -> None:
    moment = moment_of(shop, exclude=frozenset([1]), only_categories=frozenset(["food"]), seen=seen_of([]))
    assert judged(Exclusions(), slate_of([]), moment) == ([], {})
    assert judged(Exclusions(), slate_of([5]), moment) == ([5], {})
