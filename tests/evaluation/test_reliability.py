"""The reliability curve: honest chances lie on it, boasts above it, and bins of any people add up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from engine.evaluation.reliability import EDGES, curve, tallies


def figures(chance: np.ndarray, happened: np.ndarray, owner: np.ndarray, people: int) -> dict[str, float]:
    return curve({name: float(values.mean()) for name, values in tallies(chance, happened, owner, people).items()})


def test_honest_chances_have_no_error_to_speak_of_and_boasts_have_theirs() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(200_000)
    owner = rng.integers(0, 50, len(chance))
    honest = figures(chance, rng.random(len(chance)) < chance, owner, 50)
    assert honest["error"] < 0.01
    boasting = figures(chance, rng.random(len(chance)) < chance / 2, owner, 50)
    assert boasting["error"] == pytest.approx(0.25, abs=0.01)
    assert boasting["0.6-1.told"] == pytest.approx(0.8, abs=0.01)
    assert boasting["0.6-1.happened"] == pytest.approx(0.4, abs=0.01)


def test_each_chance_lies_in_the_bin_that_its_name_says() -> None:
    for low, high in pairwise(EDGES):
        told = figures(np.array([low]), np.array([True]), np.array([0]), 3)
        assert told[f"{low:g}-{high:g}.told"] == pytest.approx(low) and told[f"{low:g}-{high:g}.happened"] == 1.0
    assert figures(np.array([1.0]), np.array([True]), np.array([0]), 1)["0.6-1.told"] == 1.0


def test_people_in_shards_give_what_they_give_together() -> None:
    rng = np.random.default_rng(1)
    chance, owner = rng.random(3000), np.sort(rng.integers(0, 40, 3000))
    happened = rng.random(3000) < 0.3
    whole = tallies(chance, happened, owner, 40)
    first = owner < 15
    parts = (
        tallies(chance[first], happened[first], owner[first], 15),
        tallies(chance[~first], happened[~first], owner[~first] - 15, 25),
    )
    for name, values in whole.items():
        assert np.allclose(values, np.concatenate([part[name] for part in parts]))


def test_nothing_offered_is_no_figure() -> None:
    assert figures(np.empty(0), np.empty(0, bool), np.empty(0, int), 4) == {}
