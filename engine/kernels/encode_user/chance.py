"""From a person's vector to how much they will want each item: a softmax over the catalogue, times how much they want at all.

Night and day ask the same functions, so what is encoded again stands on the scale of what was stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels.encode_user.reference import F32, MICROSECONDS_A_DAY

F64 = NDArray[np.float64]
SAMPLE = 4096  # items that stand for all in the softmax's denominator
ONLOOKER = 0.1  # least mass: of somebody who wanted so little, or so long ago, that next to nothing is left
_AT_ONCE = 1024


def nearest_decay(rates: F32, half_life: float) -> int:
    """Which of the tower's decays is nearest to a half-life in days: the one by which a person's mass fades."""
    wanted = np.log(np.log(2) / half_life)
    return int(np.abs(np.log(np.maximum(rates.astype(np.float64), 1e-12)) - wanted).argmin())


def faded(weights: NDArray[np.floating], last: NDArray[np.int64], moment: int, rate: float) -> F64:
    """Weights as they count at a moment; of groups of events, or of single ones.

    Linear in the events, so the mass of any groups is the sum of theirs, and a snapshot's sums hold it already.

    Args:
        weights: (G,) relative to `last`, (G,) microseconds since the epoch. moment: likewise, no earlier. rate: per day.
    """
    result: F64 = weights.astype(np.float64) * np.exp(-float(rate) * ((moment - last) / MICROSECONDS_A_DAY))
    return result


def step_of(count: int) -> int:
    """Every how many-th item of a catalogue stands in the sample."""
    return max(1, -(-count // SAMPLE))


def log_mass(users: F32, sample: F32, count: int) -> F64:
    """(U,) log of the sum of exp(score) over a catalogue, estimated from an even sample where it is large.

    Args:
        users: (U, D). sample: (S, D) every `step_of(count)`-th item, contiguous. count: items of the catalogue.
    """
    total = np.empty(len(users))
    for first in range(0, len(users), _AT_ONCE):
        total[first : first + _AT_ONCE] = log_sum(users[first : first + _AT_ONCE] @ sample.T, count)
    return total


def log_sum(scores: F32, count: int) -> F64:
    """(U,) as `log_mass`, of scores (U, S) of the sample, S at least 1."""
    highest = scores.max(1)
    shares = np.exp(scores - highest[:, None])
    result: F64 = highest + np.log(shares.sum(1, dtype=np.float64)) + np.log(count / scores.shape[1])
    return result


def expected_wants(scores: F32, whole: F64, mass: F64, rate: float) -> F32:
    """Wants within the horizon that each score stands for.

    Args:
        scores: (U, P) of the items found for each person, distinct ones; -inf for none.
        whole: (U,) `log_mass`. A sample may miss the very items that hold it: it is never less than that of the items found.
        mass: (U,) of each person's wants, at least `ONLOOKER`.
        rate: wants per square root of mass.
    """
    least = np.logaddexp.reduce(scores, axis=1, dtype=np.float64)
    chance = np.exp(scores - np.maximum(least, whole)[:, None])
    result: F32 = (rate * np.sqrt(mass)[:, None] * chance).astype(np.float32)
    return result
