"""How often what people had is wanted again, by item, and how much they want that is new: counted from the log before a moment.

For windows of the horizon's length that end at the moment and before it, count the wants of people who had the item, per unit
of their decayed earlier wants. Few counts are shrunk to the mean of the item's category, and that to the shop's (empirical Bayes,
Robbins 1956), so an item bought twice is not called a habit. The counts are sums over people, so shards add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.kernels.encode_user import ONLOOKER, faded
from engine.two_tower.histories import Histories

_DAY = 86_400_000_000
WINDOWS = 3
PRIOR = 30.0  # decayed wants that a mean is worth
# Where nothing could be counted yet, as in a log shorter than the horizon: wants per unit of mass, and of its root.
AGAIN, FRESH = 0.05, 1.0
CURVE = 0.7  # the tenth purchase says less than the second


@dataclass(frozen=True, slots=True, eq=False)
class Habits:
    """again (I,): wants of people who had the item. mass (I,): their decayed earlier wants, curved. fresh, roots: new wants of
    all people with a past, and the sum of the square roots of their interest, faded.
    """

    again: NDArray[np.float64]
    mass: NDArray[np.float64]
    fresh: float
    roots: float

    def __add__(self, other: Habits) -> Habits:
        return Habits(
            self.again + other.again, self.mass + other.mass, self.fresh + other.fresh, self.roots + other.roots
        )

    def hazard(self, kind: NDArray[np.integer]) -> NDArray[np.float64]:
        """(I,) wants within the horizon per unit of curved mass.

        Args:
            kind: (I,) code of each item's category, -1 for none: coffee is bought again, books are not, and an item with few
                counts of its own is taken for one of its kind.
        """
        mean = (self.again.sum() + AGAIN) / (self.mass.sum() + 1)
        place = kind + 1
        again, mass = np.bincount(place, self.again), np.bincount(place, self.mass)
        of_kind = ((again + PRIOR * mean) / (mass + PRIOR))[place]
        result: NDArray[np.float64] = (self.again + PRIOR * of_kind) / (self.mass + PRIOR)
        return result

    @property
    def fresh_rate(self) -> float:
        """New wants within the horizon per square root of a person's mass, as engine/ranking/people.py has it."""
        return (self.fresh + FRESH) / (self.roots + 1)


def masses(
    histories: Histories, moment: int, wanted: float, half_life: float, items: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sorted (person * items + item) pairs wanted before a moment, and their decayed mass: one want a day counts once."""
    counts = (histories.weight >= wanted) & (histories.ts <= moment)
    pair = histories.owner[counts] * items + histories.item[counts]
    day = histories.ts[counts] // _DAY
    order = np.lexsort((day, pair))
    pair, day = pair[order], day[order]
    once = np.ones(len(pair), bool)
    once[1:] = (pair[1:] != pair[:-1]) | (day[1:] != day[:-1])
    pair, day = pair[once], day[once]
    age = np.maximum(0.0, moment / _DAY - day)
    every, place = np.unique(pair, return_inverse=True)
    return every, np.bincount(place, 0.5 ** (age / half_life), len(every)).astype(np.float64)


def tally(
    histories: Histories,
    items: int,
    moment: int,
    wanted: float,
    half_life: float,
    horizon_days: float,
    rate: float | None = None,
) -> Habits:
    """Count one shard.

    Args:
        histories: events that may train.
        items: I.
        moment: nothing later is counted, microseconds since the epoch.
        wanted: least interest weight of a want.
        half_life: days of an item's mass.
        horizon_days: length of a window.
        rate: per day, by which a person's interest fades: that of the tower's decay which the lanes' mass goes by; None: that of
            half_life.
    """
    again, mass = np.zeros(items), np.zeros(items)
    fresh = roots = 0.0
    step = int(horizon_days * _DAY)
    fades = np.log(2) / half_life if rate is None else rate
    owner, likes, real = histories.owner, histories.weight > 0, histories.weight >= wanted
    for window in range(1, WINDOWS + 1):
        begin = moment - window * step
        past = likes & (histories.ts <= begin)
        if not past.any():
            continue
        share = 0.5 ** (window - 1)  # what the last window says counts most
        interest = np.bincount(
            owner[past], faded(histories.weight[past], histories.ts[past], begin, fades), histories.users
        )
        known = np.bincount(owner[past], minlength=histories.users) > 0
        roots += share * float(np.sqrt(np.maximum(interest[known], ONLOOKER)).sum())
        had, weight = masses(histories, begin, wanted, half_life, items)
        inside = real & (histories.ts > begin) & (histories.ts <= begin + step)
        got = np.unique(owner[inside] * items + histories.item[inside])
        repeat = np.isin(got, had, assume_unique=True)
        fresh += share * float(known[got[~repeat] // items].sum())
        again += share * np.bincount(got[repeat] % items, minlength=items)
        mass += share * np.bincount(had % items, weight**CURVE, items)
    return Habits(again, mass, fresh, roots)
