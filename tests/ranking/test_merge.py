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
    kinds = (np.int64, np.int32, np.float32, np.uint64, np.int32)
    return Found(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def code(name):
    return LANES.index(name) if name in LANES else LANES.index("other")


def dominated(way, ways):
    """Another way asks for no more grants and scores no worse; of equals the first counts."""
    return any(
        other is not way and other["basis"] & ~way["basis"] == 0 and ways.index(other) < ways.index(way)
        for other in ways
    )


def slow_merge(lanes, keep, least_each):
    every = [
        {"owner": o, "item": i, "score": s, "basis": b, "evidence": e, "lane": code(name)}
        for name, rows in lanes.items()
        for o, i, s, b, e in rows
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
        result += [ways for place, (ways, wanted) in enumerate(rows) if place < keep or wanted]
    return result


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
        lanes[name] = [(owner, item, draw(score), basis, item + 100) for owner, item, basis in keys]
    return lanes


@settings(max_examples=300, deadline=None)
@given(candidates(), st.integers(1, 6), st.integers(0, 3))
def test_merging_equals_the_slow_reference(lanes, keep, least_each):
    merged = merge({name: found_of(rows) for name, rows in lanes.items()}, keep, least_each)
    expected = slow_merge(lanes, keep, least_each)
    assert len(merged.owner) == len(expected)
    for row, ways in enumerate(expected):
        blank = ALTERNATIVES - len(ways)
        assert (merged.owner[row], merged.item[row]) == (ways[0]["owner"], ways[0]["item"])
        assert merged.basis[row].tolist() == [way["basis"] for way in ways] + [NEVER] * blank
        assert merged.score[row].tolist() == [way["score"] for way in ways] + [0] * blank
        assert merged.lane[row].tolist() == [way["lane"] for way in ways] + [NO_LANE] * blank
        assert merged.evidence[row].tolist() == [way["evidence"] for way in ways] + [NO_ITEM] * blank


@settings(max_examples=200, deadline=None)
@given(candidates(), st.integers(1, 6), st.integers(0, 3))
def test_what_is_kept_can_be_justified_and_falls_back(lanes, keep, least_each):
    merged = merge({name: found_of(rows) for name, rows in lanes.items()}, keep, least_each)
    ways = {}
    for rows in lanes.values():
        for owner, item, score, basis, _ in rows:
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
