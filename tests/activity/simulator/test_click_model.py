"""The click model: from the top, with patience, and satisfaction apart from attraction."""

from __future__ import annotations

import numpy as np
import pytest

from engine.activity.simulator.clicks import look


def test_looks_stop_after_satisfaction_and_skip_empty_slots() -> None:
    shown = np.array([[True, True, True], [False, True, True], [False, False, False]])
    sure = np.ones(shown.shape)
    looks = look(shown, sure, sure, np.random.default_rng(0))
    assert looks.examined.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    assert (looks.satisfied == looks.clicked).all()


@pytest.mark.parametrize("shape", [(0, 12), (1, 1), (5, 123)])
def test_looks_take_odd_shapes(shape: tuple[int, int]) -> None:
    looks = look(np.ones(shape, bool), np.full(shape, 0.5), np.full(shape, 0.5), np.random.default_rng(1))
    assert looks.examined.shape == shape
    assert not (looks.clicked & ~looks.examined).any()
    assert not (looks.satisfied & ~looks.clicked).any()


def test_equal_items_are_clicked_less_further_down() -> None:
    shape = (20_000, 10)
    looks = look(np.ones(shape, bool), np.full(shape, 0.3), np.full(shape, 0.5), np.random.default_rng(2))
    clicks = looks.clicked.mean(axis=0)
    assert (np.diff(clicks) < 0).all()
    # Who looks clicks at the same rate anywhere, and goes on with patience x (1 - clicked and satisfied).
    assert looks.clicked.sum() / looks.examined.sum() == pytest.approx(0.3, abs=0.01)
    assert clicks[1] / clicks[0] == pytest.approx(0.86 * 0.85, abs=0.03)
