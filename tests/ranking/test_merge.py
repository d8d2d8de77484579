"""The merged list against a slow reference that goes person by person and item by item."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ranking.found import Found
from engine.ranking.merge import merge
from engine.schema import ALTERNATIVES, LANES, NEVER, NO_ITEM, NO_LANE

NAMES = ("two_tower", "similar", "usual", "discovery", "a_lane_of_a_team")


def found_of(rows):
    columns = list(zip(*rows, strict=True)) or [()] * 5
    kinds = (np.int64, np.int32, np.float32, np.uint64, np.int32, np.float32)[: len(columns)]
    return Found(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def code(name):
    return LANES.index(name) if name in LANES else LANES.index("other")


def dominated(way, ways):
    """Another way asks for no more grants and scores no worse; of equals the first counts."""
    return any(
        other is not way and other["basis"] & ~way["basis"] == 0 and ways.index(other) < ways.index(way)
        for other in ways
    )


def slow_merge(lanes, keep, least_each, reasoned):
    every = [
        {"owner": o, "item": i, "score": s, "basis": b, "evidence": e, "without": w, "lane": code(name)}
        for name, rows in lanes.items()
        for o, i, s, b, e, w in rows
        if s > 0
    ]
    strong = set()
    for owner, lane, basis in {(way["owner"], way["lane"], way["basis"]) for way in every}:
        mine = [way for way in every if (way["owner"], way["lane"], way["basis"]) == (owner, lane, basis)]
        mine.sort(key=lambda way: (-way["score"], way["item"]))
        strong |= {(id(way)) for way in mine[:least_each]}
    result = []
    for owner in sorted({way["owner"] for way in every}):
        rows = []
        for item in sorted({way["item"] for way in every if way["owner"] == owner}):
            ways = [way for way in every if (way["owner"], way["item"]) == (owner, item)]
            ways.sort(key=lambda way: (-way["score"], way["basis"].bit_count(), way["lane"], way["basis"]))
            ways = [way for way in ways if not dominated(way, ways)]
            fewest = min(ways, key=lambda way: (way["basis"].bit_count(), ways.index(way)))
            chosen = [way for way in ways if way in ways[: ALTERNATIVES - 1] or way is fewest]
            if len(chosen) < ALTERNATIVES:
                chosen = ways[:ALTERNATIVES]
            rows.append((chosen, any(id(way) in strong for way in chosen)))
        rows.sort(key=lambda row: (-row[0][0]["score"], row[0][0]["item"]))
        kept = [ways for place, (ways, wanted) in enumerate(rows) if place < keep or wanted]
        for place, ways in enumerate(kept):
            for number, way in enumerate(ways):
                way["cause"] = place < reasoned and is_cause(way, number, kept, every)
        result += kept
    return result


def is_cause(way, number, kept, every):
    """Whether its item would be passed, or not be there, with what is left of it in place of its score."""
    inside = lambda other: number == 0 or other["basis"] & ~way["basis"] == 0  # noqa: E731
    proof, item = way["evidence"], way["item"]
    same = [other for other in every if (other["owner"], other["item"]) == (way["owner"], item) and inside(other)]
    left = max(other["without"] if other["evidence"] == proof else other["score"] for other in same)
    if proof == NO_ITEM or left <= 0:
        return proof != NO_ITEM
    others = [next((other for other in ways if inside(other)), None) for ways in kept]
    others = [other for other in others if other and item != other["item"] != proof != other["evidence"]]
    above = lambda score: {o["item"] for o in others if (-o["score"], o["item"]) < (-score, item)}  # noqa: E731
    return above(left) > above(way["score"])


@st.composite
def candidates(draw):
    lanes = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5)):
        keys = draw(
            st.lists(
                st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 5, 6, 7, 15])),
                unique=True,
                max_size=14,
            )
        )
        score = st.sampled_from([-1.0, 0.0, 0.125, 0.25, 0.5, 0.75])
        left = st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.5, 1.0])
        evidence = st.sampled_from([NO_ITEM, 0, 1, 5, 6, 7])
        lanes[name] = [(*key[:2], draw(score), key[2], draw(evidence), draw(left)) for key in keys]
    return lanes


@settings(max_examples=300, deadline=None)
@given(candidates(), st.integers(1, 6), st.integers(0, 3), st.integers(0, 4))
def test_merging_equals_the_slow_reference(lanes, keep, least_each, reasoned):
    merged = merge({name: found_of(rows) for name, rows in lanes.items()}, keep, least_each, reasoned)
    expected = slow_merge(lanes, keep, least_each, reasoned)
    assert len(merged.owner) == len(expected)
    for row, ways in enumerate(expected):
        blank = ALTERNATIVES - len(ways)
        assert (merged.owner[row], merged.item[row]) == (ways[0]["owner"], ways[0]["item"])
        assert merged.basis[row].tolist() == [way["basis"] for way in ways] + [NEVER] * blank
        assert merged.score[row].tolist() == [way["score"] for way in ways] + [0] * blank
        assert merged.lane[row].tolist() == [way["lane"] for way in ways] + [NO_LANE] * blank
        named = [way["evidence"] if way["cause"] else NO_ITEM for way in ways]
        assert merged.evidence[row].tolist() == named + [NO_ITEM] * blank


@settings(max_examples=200, deadline=None)
@given(candidates(), st.integers(1, 6), st.integers(0, 3))
def test_what_is_kept_can_be_justified_and_falls_back(lanes, keep, least_each):
    merged = merge({name: found_of(rows) for name, rows in lanes.items()}, keep, least_each)
    ways = {}
    for rows in lanes.values():
        for owner, item, score, basis, *_ in rows:
            if score > 0:
                ways.setdefault((owner, item), []).append((basis, score))
    for row in range(len(merged.owner)):
        stored = [
            (basis, score)
            for basis, score in zip(merged.basis[row].tolist(), merged.score[row].tolist(), strict=True)
            if basis != NEVER
        ]
        asked = ways[int(merged.owner[row]), int(merged.item[row])]
        assert 1 <= len(stored) <= ALTERNATIVES and set(stored) <= set(asked)
        assert [score for _, score in stored] == sorted((score for _, score in stored), reverse=True)
        assert stored[0][1] == max(score for _, score in asked)
        assert min(basis.bit_count() for basis, _ in stored) == min(basis.bit_count() for basis, _ in asked)
        for basis, score in stored:
            assert not any(
                (other, value) != (basis, score) and other & ~basis == 0 and value >= score for other, value in stored
            )
    keys = list(zip(merged.owner.tolist(), (-merged.score[:, 0]).tolist(), merged.item.tolist(), strict=True))
    assert keys == sorted(keys)


def test_nothing_found_is_nothing_merged():
    for lanes in ({}, {"usual": Found.nothing()}, {"usual": found_of([(0, 1, 0.0, 1, -1)])}):
        merged = merge(lanes, 5, 2)
        assert merged.item.shape == (0,) and merged.basis.shape == merged.score.shape == (0, ALTERNATIVES)


def test_a_lane_that_does_not_tell_what_its_evidence_is_worth_has_none_named():
    merged = merge({"a_lane_of_a_team": found_of([(0, 1, 0.5, 1, 7), (0, 2, 0.4, 1, 7)])}, 5, 2)
    assert (merged.evidence == NO_ITEM).all() and merged.item.tolist() == [1, 2]


def test_a_score_that_is_no_number_is_left_out():
    merged = merge({"usual": found_of([(0, 1, float("nan"), 1, -1), (0, 2, 0.5, 1, -1)])}, 5, 2)
    assert merged.item.tolist() == [2]


@pytest.mark.parametrize("keep", [1, 3])
def test_a_withdrawal_leaves_a_list_of_every_lane_and_basis(keep):
    strong = [(0, item, 0.9 - item / 100, 3, -1) for item in range(10)]
    weak = [(0, item, 0.001 - item / 1e6, 1, -1) for item in range(20, 30)]
    merged = merge({"two_tower": found_of(strong + weak)}, keep, 4)
    assert (merged.basis[:, 0] == 3).sum() == 4 and (merged.basis[:, 0] == 1).sum() == 4


def test_bases_of_all_64_bits_are_kept_apart():
    bit = 2**63
    merged = merge({"usual": found_of([(0, 1, 0.5, bit | 1, -1), (0, 1, 0.25, bit, -1)])}, 5, 1)
    assert merged.basis[0].tolist() == [bit | 1, bit, NEVER]
