"""Consent per candidate: the best way that is granted, or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.consent.vocabulary import Vocabulary
from engine.policy import allowed, resolve
from engine.policy.rules.consent import Consent
from engine.schema import LANES, NEVER
from engine.snapshot import Snapshot
from tests.policy.moments import ALL, candidates_of, judged, moment_of, slate_of

WEB, STORE = 0b0011, 0b1100

masks = st.one_of(st.integers(0, 15), st.integers(0, 2**64 - 1), st.sampled_from([0, NEVER, 2**63, ALL]))


def test_the_best_granted_way_is_taken_with_its_own_score_and_evidence() -> None:
    rows = candidates_of((7, [("two_tower", WEB | STORE, 0.9, 3), ("similar", STORE, 0.5, 4), ("popular", 0, 0.1)]))
    for granted, lane, score, evidence in (
        (WEB | STORE, "two_tower", 0.9, 3),
        (STORE, "similar", 0.5, 4),
        (WEB, "popular", 0.1, -1),
        (0, "popular", 0.1, -1),
    ):
        slate = resolve(rows, granted)
        assert (LANES[slate.lane[0]], slate.evidence[0]) == (lane, evidence)
        assert slate.score[0] == np.float32(score)


def test_a_candidate_without_a_granted_way_is_dropped() -> None:
    rows = candidates_of((1, [("two_tower", WEB, 0.9)]), (2, [("two_tower", STORE, 0.8)]))
    assert resolve(rows, STORE).item.tolist() == [2]
    assert len(resolve(rows, 0)) == 0


def test_half_a_grant_is_no_grant() -> None:
    rows = candidates_of((1, [("two_tower", WEB, 0.9)]))
    assert len(resolve(rows, 0b01)) == len(resolve(rows, 0b10)) == 0


def test_a_sensitive_item_needs_the_sensitive_grant_of_its_source_too() -> None:
    vocabulary = Vocabulary(sources=("web", "store"))
    basis = vocabulary.with_sensitive(np.array([vocabulary.mask("profile", "web")], np.uint64))
    profile, sensitive = vocabulary.mask("profile", "web"), vocabulary.mask("sensitive", "web")
    elsewhere = vocabulary.mask("sensitive", "store")
    found = [allowed(basis, granted).item() for granted in (profile, profile | elsewhere, profile | sensitive)]
    assert found == [False, False, True]


@pytest.mark.parametrize("granted", [ALL, NEVER, -1, 2**64, 2**70 - 1])
def test_an_unused_way_is_never_taken_whatever_is_granted(granted: int) -> None:
    assert len(resolve(candidates_of((1, [("two_tower", NEVER, 9.0)])), granted)) == 0
    assert resolve(candidates_of((1, [("popular", 0, -5.0)])), granted).score.tolist() == [-5.0]


def test_a_score_that_is_no_number_is_not_shown() -> None:
    rows = candidates_of((1, [("two_tower", 0, float("nan"))]), (2, [("two_tower", 0, 0.5)]))
    assert resolve(rows, 0).item.tolist() == [2]
    broken = candidates_of((1, [("two_tower", WEB, float("nan")), ("popular", 0, 0.5)]))
    assert resolve(broken, 0).basis.tolist() == [0]


def test_equal_scores_keep_the_order_of_the_night() -> None:
    rows = candidates_of(*((item, [("popular", 0, 1.0)]) for item in (5, 3, 9, 1)))
    assert resolve(rows, 0).item.tolist() == [5, 3, 9, 1]


def test_no_candidates_make_an_empty_slate() -> None:
    assert len(resolve(candidates_of(), ALL)) == 0
    assert len(resolve(slate_of([]), ALL)) == 0


def test_the_rule_removes_what_relies_on_a_missing_grant(shop: Snapshot) -> None:
    slate = slate_of([1, 2, 3], basis=[0, WEB, STORE])
    assert judged(Consent(), slate, moment_of(shop, granted=WEB)) == ([1, 2], {"not_granted": 1})


@given(basis=masks, granted=masks)
def test_allowed_is_the_algebra_of_masks(basis: int, granted: int) -> None:
    expected = basis & ~granted == 0 and basis < 2**63  # no vocabulary has the last bit
    assert allowed(np.array([basis], np.uint64), granted).tolist() == [expected]


ways = st.tuples(st.sampled_from(["two_tower", "similar", "popular"]), masks, st.integers(-3, 3), st.integers(-1, 9))


@given(rows=st.lists(st.lists(ways, min_size=1, max_size=3), max_size=20), granted=masks)
def test_the_slate_is_what_a_plain_search_finds(rows: list[list[tuple[str, int, int, int]]], granted: int) -> None:
    slate = resolve(candidates_of(*enumerate(rows)), granted)
    expected = []
    for item, given_ways in enumerate(rows):
        inside = [way for way in given_ways if way[1] & ~granted == 0 and way[1] < 2**63]
        if inside:
            lane, basis, score, evidence = max(inside, key=lambda way: way[2])
            expected.append((item, LANES.index(lane), basis, float(score), evidence))
    expected.sort(key=lambda line: -line[3])
    columns = (slate.item, slate.lane, slate.basis, slate.score, slate.evidence)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
