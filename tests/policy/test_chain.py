"""A whole chain: nothing without its grants leaves it, and nothing vanishes without a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.consent.vocabulary import Level
from engine.errors import PolicyError
from engine.policy import Chain, Effect, Moment, Outcome, Rule, Slate, Verdict
from engine.policy.rules.availability import Availability
from engine.policy.rules.category_cap import CategoryCap
from engine.policy.rules.consent import Consent
from engine.policy.rules.diversity import Diversity
from engine.policy.rules.exclusions import Exclusions
from engine.schema import LANES, NEVER
from engine.snapshot import Candidates, Snapshot
from tests.policy.conftest import ITEMS, ROOTS
from tests.policy.moments import ALL, NOW, candidates_of, judged, moment_of, seen_of, slate_of

WEB, STORE = 0b0011, 0b1100
masks = st.one_of(st.integers(0, 15), st.sampled_from([0, NEVER, 2**63, ALL]), st.integers(0, 2**64 - 1))


def chain_of(*rules: Rule) -> Chain:
    return Chain("home", "00000000", (*rules, Consent()), 20, Level.FULL)


def counted(outcome: Outcome) -> Counter[tuple[str, str]]:
    return Counter({(effect.rule, effect.reason): effect.count for effect in outcome.effects})


def columns(slate: Slate) -> list[list[Any]]:
    return [column.tolist() for column in (slate.item, slate.lane, slate.basis, slate.score, slate.evidence)]


def test_every_removal_is_told_with_its_rule_and_reason(shop: Snapshot) -> None:
    rows = [(item, [("two_tower", WEB, 100.0 - item)]) for item in (0, 1, 5, 10, 15, 55)]
    rows.append((2, [("two_tower", STORE, 1000.0)]))
    chain = chain_of(Availability(), Exclusions(), CategoryCap(share=0.5))
    outcome = chain.run(candidates_of(*rows), moment_of(shop, granted=WEB, limit=2, exclude=frozenset([5])))
    assert outcome.slate.item.tolist() == [0, 1]
    assert outcome.effects == (
        Effect("consent", "not_granted", 1),
        Effect("availability", "unavailable", 1),
        Effect("exclusions", "excluded", 1),
        Effect("category_cap", "category_full", 2),
    )


def test_what_was_only_too_far_down_is_counted_too(shop: Snapshot) -> None:
    outcome = chain_of().run(slate_of(range(30)), moment_of(shop, limit=8))
    assert outcome.slate.item.tolist() == list(range(8))
    assert outcome.effects == (Effect("limit", "beyond_limit", 22),)


def test_without_grants_only_what_relies_on_nobody_is_shown(shop: Snapshot, surfaces: dict[str, Chain]) -> None:
    rows = candidates_of(
        (1, [("two_tower", WEB, 0.9), ("popular", 0, 0.2)]),
        (2, [("similar", STORE, 0.8)]),
        (3, [("popular", 0, 0.3)]),
    )
    for chain in surfaces.values():
        slate = chain.run(rows, moment_of(shop, granted=0)).slate
        assert slate.item.tolist() == [3, 1]
        assert {LANES[lane] for lane in slate.lane} == {"popular"}


def test_withdrawing_a_source_narrows_the_list_to_what_is_left(shop: Snapshot) -> None:
    rows = candidates_of((1, [("two_tower", WEB | STORE, 0.9), ("similar", STORE, 0.4)]), (2, [("usual", WEB, 0.5)]))
    both, store = (chain_of().run(rows, moment_of(shop, granted=granted)).slate for granted in (WEB | STORE, STORE))
    assert (both.item.tolist(), store.item.tolist()) == ([1, 2], [1])
    assert LANES[store.lane[0]] == "similar"


def test_a_list_of_anyone_runs_through_the_same_chain(shop: Snapshot, surfaces: dict[str, Chain]) -> None:
    slate = Slate.of_anyone(*shop.fallback(), LANES.index("popular"))
    outcome = surfaces["home"].run(slate, moment_of(shop, granted=0))
    assert len(outcome.slate) == 20
    assert not outcome.slate.basis.any()


def test_the_cap_holds_in_the_final_list_whatever_diversity_does(shop: Snapshot) -> None:
    chain = chain_of(CategoryCap(share=0.3), Diversity(strength=0.8))
    slate = chain.run(slate_of(range(50)), moment_of(shop, limit=10)).slate
    roots = Counter(shop.items.root_category[slate.item].tolist())
    assert all(count <= 3 for root, count in roots.items() if root >= 0)


@dataclass(frozen=True, slots=True)
class Faulty:
    """Keeps and removes what a test tells it to."""

    name: ClassVar[str] = "faulty"
    kept: tuple[int, ...]
    removed: int

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        return Verdict(np.array(self.kept, np.intp), {"because": self.removed})


@pytest.mark.parametrize(
    ("kept", "removed", "named"),
    [
        ((0, 0, 1), 0, "twice"),
        ((0, -3), 1, "twice"),
        ((0, 9), 1, "outside its slate of 3"),
        ((0,), 1, "kept 1 and removed 1 of 3"),
        ((0, 1, 2), 1, "kept 3 and removed 1 of 3"),
    ],
)
def test_a_rule_that_does_not_account_for_everything_is_refused_by_name(
    shop: Snapshot, kept: tuple[int, ...], removed: int, named: str
) -> None:
    with pytest.raises(PolicyError, match=f"'faulty'.*{named}"):
        chain_of(Faulty(kept, removed)).run(slate_of([1, 2, 3]), moment_of(shop))


@pytest.mark.parametrize("rules", [(), (Availability(),), (Consent(), Availability())])
def test_a_chain_that_does_not_end_in_consent_cannot_be_made(rules: tuple[Rule, ...]) -> None:
    with pytest.raises(PolicyError, match=r"Policy 'home': the last rule.*consent"):
        Chain("home", "00000000", rules, 20, Level.FULL)


def test_a_rule_that_poses_as_consent_does_not_pass_for_it() -> None:
    @dataclass(frozen=True)
    class Lax(Consent):
        def __call__(self, slate: Slate, moment: Moment) -> Verdict:
            return Verdict(np.arange(len(slate)))

    with pytest.raises(PolicyError, match="the last rule"):
        Chain("home", "00000000", (Lax(),), 20, Level.FULL)


def test_a_limit_below_one_is_refused(shop: Snapshot) -> None:
    with pytest.raises(PolicyError, match="limit is 0"):
        Chain("home", "00000000", (Consent(),), 0, Level.FULL)
    with pytest.raises(PolicyError, match="asked for 0"):
        chain_of().run(slate_of([1]), moment_of(shop, limit=0))


@st.composite
def lists_of_candidates(draw: st.DrawFn) -> Candidates:
    items = draw(st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=40))
    way = st.tuples(st.sampled_from(LANES), masks, st.integers(-4, 4).map(float), st.integers(-1, ITEMS - 1))
    return candidates_of(*((item, draw(st.lists(way, min_size=1, max_size=3))) for item in items))


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[frozenset[Any]]:
    return st.one_of(st.just(frozenset()), st.frozensets(values, max_size=6))


requests = st.fixed_dictionaries(
    {
        "granted": masks,
        "limit": st.integers(1, 30),
        "region": st.sampled_from(["", "DE", "DE-BY", "FR"]),
        "now_us": st.integers(NOW - 2, NOW + 2),
        "exclude": some(st.integers(0, ITEMS - 1)),
        "only_categories": some(st.sampled_from([*ROOTS, "food/1", "wine/2"])),
        "diversity": st.none() | st.floats(0, 1),
        "seen": st.none()
        | st.lists(st.tuples(st.integers(0, ITEMS - 1), masks), max_size=9).map(
            lambda rows: seen_of([item for item, _ in rows], [basis for _, basis in rows])
        ),
    }
)


@given(
    candidates=lists_of_candidates(),
    request=requests,
    surface=st.sampled_from(["home", "email", "item_page", "basket"]),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_item_without_its_grants_leaves_a_chain_and_none_vanishes(
    shop: Snapshot, surfaces: dict[str, Chain], candidates: Candidates, request: dict[str, Any], surface: str
) -> None:
    moment = moment_of(shop, surface=surface, **request)
    outcome = surfaces[surface].run(candidates, moment)
    item, lane, basis, score, evidence = columns(outcome.slate)
    for line in zip(item, lane, basis, score, evidence, strict=True):
        assert line[2] & ~request["granted"] == 0
        assert line[2] != NEVER
        row = candidates.item.tolist().index(line[0])
        ways = zip(
            *(c[row].tolist() for c in (candidates.lane, candidates.basis, candidates.score, candidates.evidence)),
            strict=True,
        )
        assert line[1:] in list(ways)
        assert line[0] not in request["exclude"]
    assert len(set(item)) == len(item) <= request["limit"]
    assert len(item) + sum(effect.count for effect in outcome.effects) == len(candidates)
    assert all(effect.count > 0 for effect in outcome.effects)
    again = surfaces[surface].run(candidates, moment)
    assert columns(again.slate) == columns(outcome.slate)
    assert counted(again) == counted(outcome)


@given(
    items=st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=50),
    request=requests,
    rule=st.sampled_from([Availability(), Exclusions(), CategoryCap(0.3), Diversity(0.5, 20), Consent()]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_rule_keeps_or_counts_each_candidate_and_repeats_itself(
    shop: Snapshot, items: list[int], request: dict[str, Any], rule: Rule
) -> None:
    judged(rule, slate_of(items, basis=[code % 16 for code in items]), moment_of(shop, **request))
