"""Exact top-K for one person: the reference's bits, whatever the margin lets through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.top_k import reference
from engine.kernels.top_k.one import best, longest, rough_scores, slack


def found(vector, items, rows, k):
    """Once by hiding the other rows, once by naming these."""
    room = slack(vector, longest(items))
    rough = rough_scores(vector, items, room)
    named = best(vector, items, rough[rows], k, room, rows.astype(np.int32))
    hidden = np.full(len(items), -np.inf, np.float32)
    hidden[rows] = rough[rows]
    hiding = best(vector, items, hidden, k, room)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(named, hiding, strict=True))
    return named


def expected(vector, items, rows, k):
    hidden = np.setdiff1d(np.arange(len(items)), rows).astype(np.int32)
    ids, scores = reference.top_k(vector[None], items, k, np.array([0, len(hidden)]), hidden)
    real = ids[0] >= 0
    return ids[0][real], scores[0][real]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 60),
    st.sampled_from([1, 5, 64, 123]),
    st.integers(1, 70),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e18]),
    st.booleans(),
)
def test_the_best_of_any_rows_are_those_of_the_reference(seed, count, width, k, size, ties):
    rng = np.random.default_rng(seed)
    draw = (lambda *shape: rng.integers(-1, 2, shape)) if ties else (lambda *shape: rng.standard_normal(shape))
    items, vector = (draw(count, width) * size).astype(np.float32), draw(width).astype(np.float32)
    rows = np.flatnonzero(rng.random(count) < 0.7)
    ids, scores = found(vector, items, rows, k)
    wanted, values = expected(vector, items, rows, k)
    assert ids.tolist() == wanted.tolist() and scores.tobytes() == values.tobytes()


@pytest.mark.parametrize("count", [4001, 40_000])
def test_scores_that_float32_cannot_tell_apart_are_told_apart(count):
    """All items within a few units of the last place of one another: the rough order says nothing."""
    rng = np.random.default_rng(count)
    items = np.ones((count, 64), np.float32) + rng.integers(0, 3, (count, 64)).astype(np.float32) * np.float32(2**-22)
    vector = np.full(64, 1 / 3, np.float32)
    ids, scores = found(vector, items, np.arange(count), 20)
    wanted, values = expected(vector, items, np.arange(count), 20)
    assert ids.tolist() == wanted.tolist() and scores.tobytes() == values.tobytes()
    rough = np.argsort(-rough_scores(vector, items, 0.0), kind="stable")[:20]
    assert rough.tolist() != wanted.tolist()


def test_where_float32_overflows_the_exact_scores_decide():
    items = np.array([[3e38, -3e38, 1.0], [1e38, 1e38, 0.0], [0.0, 0.0, 5.0]], np.float32)
    vector = np.array([1.0, 1.0, 2.0], np.float32)
    ids, scores = found(vector, items, np.arange(3), 3)
    assert ids.tolist() == [1, 2, 0] and scores.tolist() == [np.float32(2e38), 10.0, 2.0]


def test_the_longest_norm_of_a_large_table_is_found_in_any_part_of_it():
    items = np.ones((70_000, 2), np.float32)
    items[66_000] = 3.0, 4.0
    assert longest(items) == 5.0 and longest(items[:0]) == 0.0
