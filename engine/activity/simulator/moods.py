"""What a visit does to the next one: who finds what satisfies comes more often, who does not may leave for good."""

from __future__ import annotations

import numpy as np

from engine.activity.simulator.draws import Bools, Floats, Ints, ranks
from engine.activity.simulator.people import NEVER
from engine.activity.simulator.settings import ShopSettings

_START = 0.5
_FRESHNESS = 0.15  # weight of the last visit against all those before it


class Moods:
    """How satisfied each person has been lately, 0..1, and since when they stay away.

    The mood is the exponentially weighted share of satisfying visits. The rate of visits is multiplied by
    4 ** (returning x (mood - 1/2)), and after each visit that did not satisfy, a person leaves for good with the chance
    churn x (1 - mood).
    """

    def __init__(self, settings: ShopSettings) -> None:
        self._settings = settings
        self.mood: Floats = np.full(settings.users, _START)
        self.left: Ints = np.full(settings.users, NEVER)  # the last day on which somebody came

    @property
    def gone(self) -> Bools:
        """(U,) who has left for good."""
        return np.asarray(self.left != NEVER)

    def eagerness(self) -> Floats:
        """(U,) what the rate of visits is multiplied by; 0 for who has left."""
        return np.asarray(4 ** (self._settings.returning * (self.mood - 0.5)) * ~self.gone)

    def learn(self, person: Ints, satisfied: Bools, day: int, rng: np.random.Generator) -> Ints:
        """Take the visits of a day in, in their order.

        Args:
            person: (V,) who came.
            satisfied: (V,) whether the visit was worth it.

        Returns:
            The people who left for good, ascending.
        """
        luck = rng.random(len(person))
        turn = ranks(person, np.argsort(person, kind="stable"))
        leaving = []
        for nth in range(int(turn.max(initial=-1)) + 1):  # a person's visits one after another
            rows = np.flatnonzero(turn == nth)
            who = person[rows]
            self.mood[who] += _FRESHNESS * (satisfied[rows] - self.mood[who])
            hazard = self._settings.churn * (1 - self.mood[who]) * ~satisfied[rows]
            leaving.append(who[luck[rows] < hazard])
        left = np.unique(np.concatenate([np.zeros(0, np.int64), *leaving]))
        self.left[left] = day
        return left
