"""A list is varied as far as relevance lets it be."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import PolicyError
from engine.policy.rules.diversity import Diversity
from engine.snapshot import Snapshot
from tests.policy.conftest import ITEMS
from tests.policy.moments import judged, moment_of, slate_of

COPIES = list(range(10, 20))


def test_copies_of_the_first_item_wait_when_variety_counts(shop: Snapshot) -> None:
    slate = slate_of([*COPIES, 30, 31, 32])
    moment = moment_of(shop, limit=4)
    kept, removed = judged(Diversity(strength=0.9), slate, moment)
    assert kept[0] == 10
    assert set(kept[1:4]) == {30, 31, 32}
    assert removed == {}
    assert sorted(kept) == sorted(slate.item.tolist())


def test_strength_zero_leaves_the_order(shop: Snapshot) -> None:
    items = [*COPIES, 30, 31]
    assert judged(Diversity(strength=0), slate_of(items), moment_of(shop))[0] == items


def test_a_request_sets_its_own_strength(shop: Snapshot) -> None:
    items = [*COPIES, 30, 31]
    slate = slate_of(items)
    assert judged(Diversity(strength=0.9), slate, moment_of(shop, diversity=0.0))[0] == items
    asked = judged(Diversity(strength=0), slate, moment_of(shop, diversity=0.9))
    assert asked == judged(Diversity(strength=0.9), slate, moment_of(shop))
    assert asked[0] != items


def test_only_the_pool_enters_the_list_and_the_rest_keeps_its_order(shop: Snapshot) -> None:
    kept, _ = judged(Diversity(strength=1, pool=3), slate_of([10, 11, 12, 30, 31, 32]), moment_of(shop, limit=4))
    assert sorted(kept[:3]) == [10, 11, 12]
    assert kept[3:] == [30, 31, 32]


def test_the_scale_of_scores_does_not_count(shop: Snapshot) -> None:
    slate = slate_of(range(40))
    steep = type(slate)(slate.item, slate.lane, slate.basis, slate.score**9, slate.evidence)
    assert judged(Diversity(strength=0.4), slate, moment_of(shop)) == judged(
        Diversity(strength=0.4), steep, moment_of(shop)
    )


@pytest.mark.parametrize("items", [[], [0], [20, 21, 22]])
def test_short_slates_and_items_without_a_vector_pass(shop: Snapshot, items: list[int]) -> None:
    assert judged(Diversity(strength=0.5), slate_of(items), moment_of(shop))[0] == items


@pytest.mark.parametrize("parameters", [{"strength": 1.5}, {"strength": float("nan")}, {"pool": 0}])
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="diversity: "):
        Diversity(**parameters)  # type: ignore[arg-type]


@given(
    items=st.lists(st.integers(0, ITEMS - 1), unique=True),
    limit=st.integers(1, 70),
    strength=st.floats(0, 1),
    pool=st.integers(1, 70),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_new_order_is_a_permutation(
    shop: Snapshot, items: list[int], limit: int, strength: float, pool: int
) -> None:
    kept, removed = judged(Diversity(strength=strength, pool=pool), slate_of(items), moment_of(shop, limit=limit))
    assert sorted(kept) == sorted(items)
    assert removed == {}
    assert kept[:1] == items[:1]  # the best candidate stays the best
