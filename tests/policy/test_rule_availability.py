"""What cannot be had now and here is not shown."""

from __future__ import annotations

import pytest

from engine.policy.rules.availability import Availability, covers
from engine.snapshot import Snapshot
from tests.policy.moments import NOW, judged, moment_of, slate_of


def test_an_item_is_shown_from_its_start_until_just_before_its_end(shop: Snapshot) -> None:
    kept, removed = judged(Availability(), slate_of([59, 58, 57, 56, 55, 0]), moment_of(shop))
    assert kept == [59, 56, 0]
    assert removed == {"unavailable": 3}
    assert judged(Availability(), slate_of([55]), moment_of(shop, now_us=NOW + 1))[0] == [55]


@pytest.mark.parametrize(
    ("region", "expected"),
    [("DE", [50, 53]), ("DE-BY", [50, 51, 53]), ("de-by", [50, 51, 53]), ("DE-B", [50, 53]), ("DEX", []), ("US", [])],
)
def test_a_region_is_covered_by_itself_and_by_what_it_lies_in(shop: Snapshot, region: str, expected: list[int]) -> None:
    kept, removed = judged(Availability(), slate_of([50, 51, 52, 53, 54]), moment_of(shop, region=region))
    assert kept == expected
    assert removed.get("not_in_region", 0) == 5 - len(expected)


def test_an_unknown_region_gets_only_what_is_sold_everywhere(shop: Snapshot) -> None:
    kept, removed = judged(Availability(), slate_of([1, 50, 51, 52, 53, 54, 2]), moment_of(shop, region=""))
    assert (kept, removed) == ([1, 2], {"not_in_region": 5})


def test_an_empty_name_of_a_region_covers_nothing() -> None:
    assert not covers([""], "")
    assert not covers([""], "DE")
    assert not covers([], "DE")


@pytest.mark.parametrize("items", [[], [55], [50]])
def test_an_empty_list_is_an_answer(shop: Snapshot, items: list[int]) -> None:
    assert judged(Availability(), slate_of(items), moment_of(shop))[0] == []
