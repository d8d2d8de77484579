"""Metrics equal slow plain references, and say what they promise at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation import metrics


def offsets(sets):
    return np.concatenate([[0], np.cumsum([len(each) for each in sets])]).astype(np.int64)


def flat(sets):
    return np.array([item for each in sets for item in sorted(each)], np.int32)


@st.composite
def judged(draw):
    people = draw(st.integers(1, 6))
    items = draw(st.integers(1, 12))
    length = draw(st.integers(1, 14))
    lists = np.full((people, length), -1, np.int32)
    for row in range(people):
        order = draw(st.permutations(range(items)))
        shown = order[: draw(st.integers(0, min(items, length)))]
        lists[row, : len(shown)] = shown
    wanted = [draw(st.sets(st.integers(0, items - 1), min_size=1)) for _ in range(people)]
    return lists, wanted


@given(judged(), st.integers(1, 15))
def test_recall_and_ndcg_equal_their_definitions(case, k):
    lists, wanted = case
    hit = metrics.hits(lists, offsets(wanted), flat(wanted))
    counts = np.array([len(each) for each in wanted])
    for row, each in enumerate(wanted):
        shown = [item for item in lists[row][:k].tolist() if item >= 0]
        assert metrics.recall(hit, counts, k)[row] == pytest.approx(len(each & set(shown)) / len(each))
        gain = sum(1 / math.log2(place + 2) for place, item in enumerate(lists[row][:k].tolist()) if item in each)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, len(each))))
        assert metrics.ndcg(hit, counts, k)[row] == pytest.approx(gain / best)


def test_a_perfect_list_scores_one_and_an_empty_one_zero():
    lists = np.array([[4, 2], [-1, -1]], np.int32)
    wanted = [{2, 4}, {0}]
    hit = metrics.hits(lists, offsets(wanted), flat(wanted))
    counts = np.array([2, 1])
    assert metrics.recall(hit, counts, 2).tolist() == [1, 0]
    assert metrics.ndcg(hit, counts, 2).tolist() == [1, 0]


def test_nobody_to_judge_is_no_error():
    none = np.empty((0, 5), np.int32)
    hit = metrics.hits(none, np.zeros(1, np.int64), np.empty(0, np.int32))
    assert metrics.recall(hit, np.empty(0, np.int64), 5).shape == (0,)
    assert metrics.coverage(none, 7) == 0 and metrics.tail_share(none, np.ones(7, bool)) == (0, 0)


def test_coverage_and_tail_share_count_items_and_places():
    lists = np.array([[0, 1, -1], [1, 3, -1]], np.int32)
    assert metrics.coverage(lists, 5) == 3 / 5
    assert metrics.tail_share(lists, np.array([True, False, False, True, False]))[0] == 2 / 4


def test_intra_list_distance_is_one_minus_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((9, 5)).astype(np.float32)
    vectors[3] = 0
    lists = np.array([[0, 4, 7, 3], [2, -1, -1, -1], [5, 6, -1, -1]], np.int32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    expected = []
    for row in lists:
        shown = [item for item in row.tolist() if item >= 0]
        pairs = [(a, b) for a in shown for b in shown if a < b]
        expected.append(1 - np.mean([unit[a] @ unit[b] for a, b in pairs]) if pairs else 0)
    np.testing.assert_allclose(metrics.intra_list_distance(lists, vectors), expected, atol=1e-6)


def test_a_list_in_a_persons_own_mix_is_calibrated_and_a_lopsided_one_is_not():
    category = np.array([0, 0, 1, 1], np.int32)
    mix = np.array([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])
    lists = np.array([[0, 2], [0, 1], [0, 1]], np.int32)
    even, lopsided, unknown = metrics.miscalibration(mix, lists, category)
    assert even == pytest.approx(0, abs=1e-9)
    # Steck's smoothing keeps what is missing from the list finite: 0.5 log(0.5 / 0.995) + 0.5 log(0.5 / 0.005)
    assert lopsided == pytest.approx(0.5 * math.log(0.5 / 0.995) + 0.5 * math.log(0.5 / 0.005))
    assert math.isnan(unknown)
