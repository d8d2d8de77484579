"""Spacing and calibration: the fast paths pick what the references pick, and the references do what they promise."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import KernelError
from engine.kernels.rerank import calibrate, cpu, reference, space

I32 = NDArray[np.int32]
SIZES = [(0, 3), (1, 1), (5, 0), (7, 9), (123, 20), (200, 20), (200, 200), (500, 33)]


def spaced(values: I32, keep: int, window: int, most: int) -> list[int]:
    found = space(values, keep, window, most)
    np.testing.assert_array_equal(found, reference.space(values, keep, window, most))
    assert found.dtype == np.int32
    assert sorted(found.tolist()) == list(range(len(values)))
    return found.tolist()


@pytest.mark.parametrize(("count", "keep"), SIZES)
@pytest.mark.parametrize(("window", "most"), [(1, 1), (3, 1), (5, 2), (400, 3), (4, 9)])
def test_fast_spacing_equals_the_reference(count: int, keep: int, window: int, most: int) -> None:
    for kinds in (1, 3, 40):
        spaced(np.random.default_rng(count).integers(-1, kinds, count).astype(np.int32), keep, window, most)


@given(
    values=st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**31), 2**31 - 1)), max_size=60),
    keep=st.integers(0, 70),
    window=st.integers(1, 70),
    most=st.integers(1, 5),
)
@settings(deadline=None, max_examples=300)
def test_a_window_holds_at_most_so_many_wherever_something_fits(
    values: list[int], keep: int, window: int, most: int
) -> None:
    order = spaced(np.array(values, np.int32), keep, window, most)
    for place, chosen in enumerate(order[:keep]):
        near = [values[each] for each in order[max(0, place - window + 1) : place]]
        fitting = [each for each in sorted(order[place:]) if values[each] < 0 or near.count(values[each]) < most]
        assert chosen == (fitting or sorted(order[place:]))[0]
    assert order[keep:] == sorted(order[keep:])


def test_equal_values_stand_apart_and_the_others_keep_their_order() -> None:
    assert spaced(np.array([7, 7, 7, 3, 3, -1], np.int32), 6, 2, 1) == [0, 3, 1, 4, 2, 5]


def test_codes_that_fall_on_one_another_are_told_apart() -> None:
    """More codes than a byte, all multiples of a power of two: many share a slot."""
    values = (np.arange(300, dtype=np.int64) * 65_536 % 2**31).astype(np.int32)
    values[150:] = values[:150]
    spaced(values, 300, 200, 1)


def mix(kinds: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    target = rng.dirichlet(np.full(kinds, 0.5))
    target[rng.random(kinds) < 0.2] = 0
    return target


def calibrated(
    relevance: NDArray[np.float32],
    categories: I32,
    target: NDArray[np.float64],
    keep: int,
    weight: float,
    bound: float | None = None,
) -> list[int]:
    found = calibrate(relevance, categories, target, keep, weight, bound)
    limit = -inf if bound is None else bound
    expected = reference.calibrate(relevance, categories, target, keep, weight, limit)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32
    assert len(found) == len(set(found.tolist())) == min(keep, len(relevance))
    return found.tolist()


@pytest.mark.parametrize(("count", "keep"), SIZES[:-1])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 1.0])
def test_fast_calibration_equals_the_reference(count: int, keep: int, weight: float) -> None:
    rng = np.random.default_rng(count)
    categories = rng.integers(-1, 12, count).astype(np.int32)
    calibrated(rng.random(count, np.float32), categories, mix(12, count), min(keep, 40), weight)


@given(
    count=st.integers(0, 30),
    kinds=st.integers(0, 9),
    keep=st.integers(0, 35),
    weight=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
    bound=st.one_of(st.none(), st.floats(0, 3)),
    steps=st.integers(1, 50),
    scale=st.sampled_from([1.0, -1.0, 1e-30, 1e30]),
    least=st.sampled_from([1.0, 1e-200, 5e-324]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=300)
def test_ties_and_odd_targets_change_no_pick(
    count: int, kinds: int, keep: int, weight: float, bound: float | None, steps: int, scale: float, least: float,
    seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    relevance = (scale * rng.integers(0, steps, count) / steps).astype(np.float32)
    target = mix(kinds, seed) if kinds else np.zeros(0)
    target[::2] *= least
    calibrated(relevance, rng.integers(-1, kinds, count).astype(np.int32), target, keep, weight, bound)


def steck(shares: list[int], target: NDArray[np.float64], kept: float = 0.01) -> float:
    """KL(target || the list's shares mixed with the target), as the paper writes it."""
    held = [share for share in shares if share >= 0]
    total = 0.0
    for kind, wanted in enumerate(target.tolist()):
        share = held.count(kind) / len(held) if held else 0.0
        total += wanted * log(wanted / ((1 - kept) * share + kept * wanted)) if wanted > 0 else 0.0
    return total


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_each_pick_is_the_best_of_the_papers_objective(weight: float) -> None:
    rng = np.random.default_rng(3)
    relevance, categories = rng.random(60, np.float32), rng.integers(-1, 6, 60).astype(np.int32)
    target = mix(6, 4)
    picked = calibrated(relevance, categories, target, 15, weight)
    for step in range(15):

        def objective(each: int, held: tuple[int, ...] = tuple(picked[:step])) -> float:
            chosen = [*held, each]
            divergence = steck([int(categories[one]) for one in chosen], target)
            return (1 - weight) * float(relevance[chosen].sum(dtype=np.float64)) - weight * divergence

        left = [each for each in range(60) if each not in picked[:step]]
        assert objective(picked[step]) >= max(map(objective, left)) - 1e-12


def test_a_small_interest_keeps_its_place() -> None:
    relevance = np.linspace(1, 0.5, 100, dtype=np.float32)
    categories = np.repeat(np.array([0, 1], np.int32), 50)
    target = np.array([0.8, 0.2])
    shares = [
        int((categories[calibrated(relevance, categories, target, 20, weight)] == 1).sum()) for weight in (0, 0.99)
    ]
    assert shares == [0, 4]


def test_within_the_bound_relevance_alone_counts() -> None:
    rng = np.random.default_rng(5)
    relevance, categories = rng.random(80, np.float32), rng.integers(0, 5, 80).astype(np.int32)
    target, bound = mix(5, 6), 0.3
    picked = calibrated(relevance, categories, target, 20, 0.8, bound)
    within = 0
    for step in range(1, 20):
        if steck(categories[picked[:step]].tolist(), target) > bound:
            continue
        within += 1
        left = [each for each in range(80) if each not in picked[:step]]
        assert relevance[picked[step]] == relevance[left].max()
    assert within > 3
    assert relevance[picked].sum() > relevance[calibrated(relevance, categories, target, 20, 0.8)].sum()


def test_ties_go_to_the_more_relevant_then_to_the_first() -> None:
    relevance = np.array([0.1, 0.5, 0.5, 0.3], np.float32)
    categories = np.zeros(4, np.int32)
    assert calibrated(relevance, categories, np.ones(1), 4, 1.0) == [1, 2, 3, 0]


def test_read_only_arrays_are_taken_and_left_as_they_were() -> None:
    rng = np.random.default_rng(7)
    relevance, codes, target = rng.random(30, np.float32), rng.integers(-1, 4, 30).astype(np.int32), mix(4, 8)
    before = relevance.tobytes(), codes.tobytes(), target.tobytes()
    for array in (relevance, codes, target):
        array.flags.writeable = False
    assert len(cpu.calibrate(relevance, codes, target, 9, 0.5, -inf)) == 9
    assert len(cpu.space(codes, 9, 3, 1)) == 30
    assert (relevance.tobytes(), codes.tobytes(), target.tobytes()) == before


def test_the_compiled_spacing_stays_inside_its_arrays_for_any_number() -> None:
    values = np.array([1, 1, 2, -1, 2, 1], np.int32)
    for keep in (-5, 0, 6, 99):
        for window in (-3, 0, 1, 99):
            for most in (-1, 0, 1):
                assert sorted(cpu.space(values, keep, window, most).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("values", "keep", "window", "most", "named"),
    [
        (np.zeros((2, 2), np.int32), 1, 1, 1, r"values: expected \(N,\).*\(2, 2\)"),
        (np.zeros(2, np.int64), 1, 1, 1, "values.*int64"),
        (np.zeros(2, np.int32), -1, 1, 1, "keep is -1"),
        (np.zeros(2, np.int32), 1, 0, 1, "window is 0"),
        (np.zeros(2, np.int32), 1, 1, 0, "most is 0"),
    ],
)
def test_a_wrong_argument_of_spacing_is_named(values: I32, keep: int, window: int, most: int, named: str) -> None:
    with pytest.raises(KernelError, match=named) as raised:
        space(values, keep, window, most)
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"relevance": np.zeros(2, np.float64)}, "relevance.*float64"),
        ({"relevance": np.full(2, np.nan, np.float32)}, "relevance holds NaN"),
        ({"categories": np.zeros(3, np.int32)}, r"categories: expected \(2,\) int32"),
        ({"categories": np.array([0, 2], np.int32)}, "categories point outside the target"),
        ({"target": np.zeros(2, np.float32)}, "target: expected.*float32"),
        ({"target": np.array([0.5, -0.1])}, "target holds a share"),
        ({"target": np.array([0.5, np.nan])}, "target holds a share"),
        ({"keep": -1}, "keep is -1"),
        ({"weight": 1.1}, "weight is 1.1"),
    ],
)
def test_a_wrong_argument_of_calibration_is_named(changed: dict[str, object], named: str) -> None:
    given: dict[str, object] = {
        "relevance": np.zeros(2, np.float32),
        "categories": np.zeros(2, np.int32),
        "target": np.full(2, 0.5),
        "keep": 1,
        "weight": 0.5,
    } | changed
    with pytest.raises(KernelError, match=named) as raised:
        calibrate(**given)  # type: ignore[arg-type]
    assert raised.value.remedy
