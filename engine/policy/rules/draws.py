"""Chance from a seed: the same seed and number give the same draw, on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types


@njit(types.uint64(types.uint64, types.uint64), cache=True, nogil=True)
def mixed(seed: Any, number: Any) -> Any:
    """64 bits that look random, after `number` steps from a seed: SplitMix64 (Steele, Lea & Flood 2014,
    doi:10.1145/2660193.2660195).
    """
    state = seed + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@njit(types.float64(types.uint64, types.uint64), cache=True, nogil=True)
def chance(seed: Any, number: Any) -> Any:
    """A number in [0, 1), evenly spread."""
    return np.float64(mixed(seed, number) >> np.uint64(11)) / 9007199254740992.0
