"""Every path of determinantal re-ranking picks what the reference picks; and the reference picks the largest determinant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import KernelError
from engine.kernels.rerank import cpu, dpp, dpp_of, reference

F32 = NDArray[np.float32]
STRENGTHS = [0.0, 1e-300, 0.01, 1 / 3, 0.5, 0.999, 1.0]


def case(count: int, width: int, seed: int = 0) -> tuple[F32, F32]:
    rng = np.random.default_rng(seed)
    return rng.random(count, np.float32), rng.standard_normal((count, width)).astype(np.float32)


def same(relevance: F32, vectors: F32, keep: int, strength: float) -> NDArray[np.int32]:
    found = dpp(relevance, vectors, keep, strength)
    np.testing.assert_array_equal(found, reference.dpp(relevance, vectors, keep, strength))
    assert found.dtype == np.int32
    assert len(found) == len(set(found.tolist())) == min(keep, len(relevance))
    rows = np.arange(len(vectors), dtype=np.int32)[::-1].copy()
    table = vectors[::-1].copy()
    relevance, table = relevance.copy(), table
    for array in (relevance, table, rows):
        array.flags.writeable = False
    np.testing.assert_array_equal(dpp_of(relevance, table, rows, keep, strength), found)
    return found


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    ("count", "width", "keep"),
    [(5, 123, 3), (123, 5, 123), (1, 1, 1), (3, 4, 9), (200, 64, 20), (97, 33, 20), (7, 1, 7), (60, 3, 1), (0, 4, 3)],
)
def test_the_fast_path_equals_the_reference(count: int, width: int, keep: int, strength: float) -> None:
    same(*case(count, width), keep, strength)


@given(
    count=st.integers(0, 40),
    width=st.integers(0, 9),
    keep=st.integers(0, 45),
    strength=st.one_of(st.sampled_from(STRENGTHS), st.floats(0, 1)),
    kinds=st.integers(1, 40),
    steps=st.integers(1, 50),
    zeros=st.floats(0, 1),
    power=st.integers(-44, 37),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=300)
def test_copies_ties_and_zero_vectors_change_no_pick(
    count: int, width: int, keep: int, strength: float, kinds: int, steps: int, zeros: float, power: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((kinds, width)).astype(np.float32)
    few[rng.random(kinds) < 0.3] *= np.float32(10.0**power)
    vectors = few[rng.integers(0, kinds, count)]
    vectors[rng.random(count) < zeros] = 0
    relevance = (rng.integers(0, steps, count) / steps).astype(np.float32)
    same(relevance, vectors, keep, strength)


@pytest.mark.parametrize("strength", [0.1, 1 / 3, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_each_pick_makes_the_determinant_as_large_as_can_be(strength: float, seed: int) -> None:
    relevance, vectors = case(25, 16, seed)
    wide = vectors.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1)[:, None]
    quality = np.exp((1 - strength) / (2 * strength) * relevance.astype(np.float64))
    kernel = quality[:, None] * (unit @ unit.T) * quality
    picked = same(relevance, vectors, 10, strength).tolist()
    for step in range(10):
        held = picked[:step]
        found = {
            each: float(np.linalg.slogdet(kernel[np.ix_([*held, each], [*held, each])])[1])
            for each in range(25)
            if each not in held
        }
        assert found[picked[step]] >= max(found.values()) - 1e-5


def test_no_strength_is_relevance_alone() -> None:
    relevance, vectors = case(50, 8)
    relevance[10:20] = relevance[10]
    expected = np.argsort(-relevance, kind="stable")
    np.testing.assert_array_equal(same(relevance, vectors, 50, 0.0), expected)


def test_copies_follow_by_relevance() -> None:
    vectors = np.array([[1, 0], [2, 0], [0, 3], [4, 0], [0, 0]], np.float32)
    relevance = np.array([0.5, 0.6, 0.1, 0.9, 0.2], np.float32)
    assert same(relevance, vectors, 5, 0.5).tolist() == [3, 4, 2, 1, 0]


@pytest.mark.parametrize("count", [1, 2, 31, 130])
def test_copies_of_one_candidate_keep_their_order(count: int) -> None:
    _, vectors = case(1, 61)
    picked = same(np.ones(count, np.float32), np.repeat(vectors, count, axis=0), count, 0.7)
    assert picked.tolist() == list(range(count))


def test_strength_buys_variety() -> None:
    relevance, vectors = case(200, 16)
    unit = reference.directions(vectors)

    def likeness(strength: float) -> float:
        picked = same(relevance, vectors, 20, strength)
        return float(np.abs(unit[picked] @ unit[picked].T).sum())

    likest = [likeness(strength) for strength in (0.0, 0.3, 0.6, 1.0)]
    assert likest == sorted(likest, reverse=True)


@pytest.mark.parametrize(
    ("relevance", "vectors", "rows", "keep", "strength", "named"),
    [
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), None, 1, 0.5, "relevance: expected"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float64), None, 1, 0.5, "vectors: expected.*float64"),
        (np.zeros(3, np.float32), np.zeros((2, 2), np.float32), None, 1, 0.5, "3 relevances for 2 vectors"),
        (np.full(2, np.inf, np.float32), np.zeros((2, 2), np.float32), None, 1, 0.5, "relevance holds NaN or inf"),
        (np.zeros(2, np.float32), np.full((2, 2), np.nan, np.float32), None, 1, 0.5, "vectors hold NaN"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), None, -1, 0.5, "keep is -1"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), None, 1, -0.1, "strength is -0.1"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), [0, 2], 1, 0.5, "rows point outside"),
        (np.zeros(2, np.float32), np.zeros((2, 2), np.float32), [0], 1, 0.5, r"rows: expected \(2,\) int32"),
    ],
)
def test_a_wrong_argument_is_named_in_the_error(
    relevance: F32, vectors: F32, rows: list[int] | None, keep: int, strength: float, named: str
) -> None:
    with pytest.raises(KernelError, match=named) as raised:
        if rows is None:
            dpp(relevance, vectors, keep, strength)
        else:
            dpp_of(relevance, vectors, np.array(rows, np.int32), keep, strength)
    assert raised.value.remedy


def test_the_compiled_path_refuses_rows_outside_the_table() -> None:
    relevance, table = case(2, 4)
    with pytest.raises(IndexError):
        cpu.dpp_of(relevance, table, np.array([0, 2], np.int32), 2, 0.5)
