"""The simple rankers rank as they say, at their full strength."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation import baselines

SHARES = np.array([0.1, 0.4, 0.0, 0.3, 0.2])
STARTS = np.array([0, 3, 3, 5], np.int64)
ITEMS = np.array([0, 0, 4, 3, 4], np.int32)  # the first wanted item 0 twice, the second nothing


def test_popularity_is_the_same_for_everybody_and_leaves_out_what_nobody_wants():
    lists = baselines.popularity(3, SHARES, 5, None)
    assert lists.tolist() == [[1, 3, 4, 0, -1]] * 3


def test_what_is_hidden_from_a_person_is_hidden_from_that_person_alone():
    hidden = (np.array([0, 1, 1, 2], np.int64), np.array([1, 3], np.int32))
    lists = baselines.popularity(3, SHARES, 2, hidden)
    assert lists.tolist() == [[3, 4], [1, 3], [1, 4]]


def test_frequency_comes_first_then_popularity_breaks_ties_and_fills():
    lists = baselines.personal_frequency(STARTS, ITEMS, SHARES, 4, None)
    assert lists.tolist() == [[0, 4, 1, 3], [1, 3, 4, 0], [3, 4, 1, 0]]


def test_item_to_item_sums_likeness_over_distinct_items():
    neighbour = np.array([[1, 2], [0, -1], [0, -1], [1, 4], [3, 1]], np.int32)
    likeness = np.array([[0.5, 0.4], [0.5, 0], [0.4, 0], [0.3, 0.2], [0.2, 0.6]], np.float32)
    lists = baselines.item_to_item(STARTS, ITEMS, neighbour, likeness, 3, None)
    # The first: 0 gives 1 and 2, 4 gives 3 and 1; wanting 0 twice counts once.
    assert lists.tolist() == [[1, 2, 3], [-1, -1, -1], [1, 3, 4]]


@pytest.mark.parametrize("people", [0, 1, 255, 256, 257, 600])
def test_lists_do_not_depend_on_how_the_people_are_cut(people, monkeypatch):
    rng = np.random.default_rng(people)
    sizes = rng.integers(0, 6, people)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    items = rng.integers(0, 9, starts[-1]).astype(np.int32)
    shares = rng.random(9)
    whole = baselines.personal_frequency(starts, items, shares, 5, None)
    monkeypatch.setattr(baselines, "_PEOPLE_AT_ONCE", 7)
    np.testing.assert_array_equal(baselines.personal_frequency(starts, items, shares, 5, None), whole)
