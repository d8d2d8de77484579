"""Every path of maximal marginal relevance picks what the reference picks, in its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import KernelError
from engine.kernels.rerank import cpu, mmr, mmr_of, reference

F32 = NDArray[np.float32]
BALANCES = [0.0, 0.1, 0.5, 0.7, 0.999, 1.0]


def case(count: int, width: int, seed: int = 0) -> tuple[F32, F32]:
    rng = np.random.default_rng(seed)
    return rng.random(count, np.float32), rng.standard_normal((count, width)).astype(np.float32)


def scattered(vectors: F32) -> tuple[F32, NDArray[np.int32]]:
    """The vectors as rows of a larger read-only table."""
    rng = np.random.default_rng(len(vectors))
    rows = rng.permutation(2 * len(vectors) + 1)[: len(vectors)].astype(np.int32)
    table = rng.standard_normal((2 * len(vectors) + 1, vectors.shape[1])).astype(np.float32)
    table[rows] = vectors
    table.flags.writeable = rows.flags.writeable = False
    return table, rows


def same(relevance: F32, vectors: F32, keep: int, balance: float) -> NDArray[np.int32]:
    found = mmr(relevance, vectors, keep, balance)
    np.testing.assert_array_equal(found, reference.mmr(relevance, vectors, keep, balance))
    table, rows = scattered(vectors)
    np.testing.assert_array_equal(found, mmr_of(relevance, table, rows, keep, balance))
    assert found.dtype == np.int32
    assert len(found) == len(set(found.tolist())) == min(keep, len(relevance))
    return found


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(
    ("count", "width", "keep"),
    [(5, 123, 3), (123, 5, 123), (1, 1, 1), (3, 4, 9), (200, 64, 20), (97, 33, 20), (7, 1, 7), (60, 3, 1)],
)
def test_the_fast_path_equals_the_reference(count: int, width: int, keep: int, balance: float) -> None:
    same(*case(count, width), keep, balance)


@given(
    count=st.integers(0, 40),
    width=st.integers(0, 9),
    keep=st.integers(0, 45),
    balance=st.one_of(st.sampled_from(BALANCES), st.floats(0, 1)),
    kinds=st.integers(1, 40),
    steps=st.integers(1, 50),
    zeros=st.floats(0, 1),
    power=st.integers(-44, 37),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=300)
def test_copies_ties_and_zero_vectors_change_no_pick(
    count: int, width: int, keep: int, balance: float, kinds: int, steps: int, zeros: float, power: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((kinds, width)).astype(np.float32)
    few[rng.random(kinds) < 0.3] *= np.float32(10.0**power)
    vectors = few[rng.integers(0, kinds, count)]
    vectors[rng.random(count) < zeros] = 0
    relevance = (rng.integers(0, steps, count) / steps).astype(np.float32)
    same(relevance, vectors, keep, balance)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 31, 130])
@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_copies_of_one_candidate_keep_their_order(count: int, balance: float) -> None:
    _, vectors = case(1, 61)
    picked = same(np.ones(count, np.float32), np.repeat(vectors, count, axis=0), count, balance)
    assert picked.tolist() == list(range(count))


@pytest.mark.parametrize(
    ("balance", "expected"), [(1.0, [0, 1, 2]), (0.9, [0, 1, 2]), (0.5, [0, 2, 1]), (0.0, [0, 2, 1])]
)
def test_a_near_copy_waits_only_when_variety_counts(balance: float, expected: list[int]) -> None:
    vectors = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)
    assert same(np.array([1, 0.9, 0.5], np.float32), vectors, 3, balance).tolist() == expected


def test_a_zero_vector_is_like_nothing() -> None:
    vectors = np.array([[1, 0], [2, 0], [0, 0]], np.float32)
    assert same(np.array([1, 0.9, 0.2], np.float32), vectors, 3, 0.5).tolist() == [0, 2, 1]


def test_opposite_vectors_are_drawn_to_each_other() -> None:
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert same(np.array([1, 0.5, 0.4], np.float32), vectors, 3, 0.5).tolist() == [0, 2, 1]


@pytest.mark.parametrize("scale", [1e-44, 1e-20, 1e20, 2e38])
def test_the_length_of_a_vector_does_not_count(scale: float) -> None:
    directions = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)
    relevance = np.array([0.9, 0.8, 0.5, 0.1], np.float32)
    scaled = directions * np.array([[1], [scale], [scale], [scale]], np.float32)
    np.testing.assert_array_equal(same(relevance, scaled, 4, 0.6), same(relevance, directions, 4, 0.6))


def test_cosines_are_exact_in_any_order_of_addition() -> None:
    unit = reference.directions(case(50, 64)[1])
    forwards = unit @ unit.T
    backwards = np.zeros_like(forwards)
    for d in reversed(range(64)):
        backwards += unit[:, d, None] * unit[None, :, d]
    np.testing.assert_array_equal(forwards, backwards)


def test_nothing_in_nothing_out() -> None:
    assert mmr(np.empty(0, np.float32), np.empty((0, 4), np.float32), 5, 0.5).shape == (0,)
    assert mmr(*case(3, 4), 0, 0.5).shape == (0,)


@given(near=st.integers(1, 1 << 12), balance=st.floats(0, 0.999), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_closer_calls_than_float32_can_tell_are_decided_exactly(near: int, balance: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.repeat(rng.standard_normal((8, 61)).astype(np.float32), 6, axis=0)
    vectors.view(np.int32)[...] += rng.integers(0, near, vectors.shape, np.int32)  # so many steps of float32 apart
    relevance = np.repeat(rng.random(8, np.float32), 6)
    relevance.view(np.int32)[...] += rng.integers(0, 2, len(relevance), np.int32)
    same(relevance, vectors, 30, balance)


@pytest.mark.parametrize("relevance", [3e38, -3e38, 1e-45])
def test_relevance_of_any_size_is_taken_as_it_is(relevance: float) -> None:
    scores, vectors = case(40, 7)
    scores[::3] = relevance
    for balance in BALANCES:
        same(scores, vectors, 40, balance)


def test_the_input_is_left_as_it_was() -> None:
    relevance, vectors = case(30, 5)
    before = relevance.tobytes(), vectors.tobytes()
    rows = np.arange(30, dtype=np.int32)
    for array in (relevance, vectors, rows):
        array.flags.writeable = False  # as views of a mapped file are
    assert len(cpu.mmr_of(relevance, vectors, rows, 10, 0.5)) == 10
    assert (relevance.tobytes(), vectors.tobytes()) == before


def test_arrays_with_gaps_are_taken_too() -> None:
    relevance, vectors = case(60, 10)
    expected = mmr(relevance[::2].copy(), vectors[::2, 1::2].copy(), 9, 0.6)
    np.testing.assert_array_equal(mmr(relevance[::2], vectors[::2, 1::2], 9, 0.6), expected)
    np.testing.assert_array_equal(mmr(relevance[::2], np.asfortranarray(vectors)[::2, 1::2], 9, 0.6), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_never_bring_a_candidate_twice(value: float) -> None:
    table = case(30, 8)[1]
    table[::2] = value
    table[1::4, 3] = value
    rows = np.arange(30, dtype=np.int32)
    for place in (cpu.mmr_of, cpu.dpp_of):
        assert sorted(place(np.ones(30, np.float32), table, rows, 30, 0.5).tolist()) == list(range(30))


@pytest.mark.parametrize("row", [-1, 3, 2**31 - 1])
def test_nothing_is_read_from_outside_the_table(row: int) -> None:
    relevance, table = case(3, 4)
    rows = np.array([0, row, 1], np.int32)
    with pytest.raises(KernelError, match="rows point outside the table"):
        mmr_of(relevance, table, rows, 2, 0.5)
    with pytest.raises(IndexError):
        cpu.mmr_of(relevance, table, rows, 2, 0.5)
    with pytest.raises(IndexError, match="differ in number"):
        cpu.mmr_of(relevance, table, rows[:2], 2, 0.5)


@pytest.mark.parametrize(
    ("relevance", "vectors", "keep", "balance", "named"),
    [
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), 1, 0.5, r"relevance: expected \(N,\).*\(2, 2\)"),
        (np.zeros(2, np.float64), np.zeros((2, 2), np.float32), 1, 0.5, "relevance.*float64"),
        (np.zeros(2, np.float32), np.zeros(2, np.float32), 1, 0.5, r"vectors: expected \(N, D\).*\(2,\)"),
        (np.zeros(3, np.float32), np.zeros((2, 2), np.float32), 1, 0.5, "3 relevances for 2 vectors"),
        (np.full(2, np.nan, np.float32), np.zeros((2, 2), np.float32), 1, 0.5, "NaN"),
        (np.zeros(2, np.float32), np.full((2, 2), np.inf, np.float32), 1, 0.5, "infinity"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), -1, 0.5, "keep is -1"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), 1, 1.5, "balance is 1.5"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), 1, float("nan"), "balance is nan"),
    ],
)
def test_a_wrong_argument_is_named_in_the_error(
    relevance: F32, vectors: F32, keep: int, balance: float, named: str
) -> None:
    with pytest.raises(KernelError, match=named) as raised:
        mmr(relevance, vectors, keep, balance)
    assert raised.value.remedy
