"""What thirty days of lists came to: for each person, so that arms can be compared on the same people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.activity.simulator.items import ROOT_OF, Items
from engine.activity.simulator.people import People

F64 = NDArray[np.float64]
_ALPHA = 0.01  # Steck 2018: of the other distribution, so that no divergence is infinite
_DRAWS = 1000


@dataclass(eq=False)
class Course:
    """Sums over the days of one arm; arrays of (U,) unless said otherwise. A phase is the first third of the days or the last."""

    people: People
    items: Items
    days: int
    creators: NDArray[np.int64]  # (I,) -1: none
    tail: NDArray[np.bool_]  # (I,)
    sums: dict[str, F64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        users, leaves = len(self.people.group), len(ROOT_OF)
        for name in ("visits", "clicks", "satisfied", "early_visits", "early_clicks", "late_visits", "late_satisfied",
                     "lists", "ild", "kl", "tail", "slots", "usual", "usual_bought", "early_kl", "late_kl"):  # fmt: skip
            self.sums[name] = np.zeros(users)
        self.exposures = np.zeros(len(self.items.leaf))
        self.leaves = np.zeros((2, users, leaves))  # shown by leaf in the first and in the last phase
        self._promised: list[tuple[int, int, int]] = []  # usual items offered: person, item, day

    def lists(self, day: int, persons: NDArray[np.int64], given: Sequence[NDArray[np.int64]]) -> None:
        """Take in what some people were shown: rows of items, best first."""
        interest = self.people.interest_at(day / max(1, self.days - 1))
        phase = self._phase(day)
        for person, shown in zip(persons.tolist(), given, strict=True):
            if not len(shown):
                continue
            self.exposures[shown] += 1
            sums, style = self.sums, self.items.style[shown]
            sums["lists"][person] += 1
            sums["slots"][person] += len(shown)
            sums["tail"][person] += self.tail[shown].sum()
            alike = style @ style.T
            pairs = len(shown) * (len(shown) - 1)
            sums["ild"][person] += (pairs - (alike.sum() - np.trace(alike))) / max(1, pairs)
            wanted = np.zeros(len(ROOT_OF))
            has = self.people.interests[person] >= 0
            np.add.at(wanted, ROOT_OF[self.people.interests[person][has]], interest[person][has])
            found = np.bincount(ROOT_OF[self.items.leaf[shown]], minlength=len(wanted)).astype(float)
            divergence = _kl(wanted, found)
            sums["kl"][person] += divergence
            if phase >= 0:
                np.add.at(self.leaves[phase, person], self.items.leaf[shown], 1)

    def visited(
        self, day: int, persons: NDArray[np.int64], clicks: NDArray[np.int64], worth: NDArray[np.bool_]
    ) -> None:
        """Take in the visits that began with a list."""
        first, last = day < self.start + 5, self._phase(day) == 1
        for name, values in (("visits", np.ones(len(persons))), ("clicks", clicks), ("satisfied", worth)):
            np.add.at(self.sums[name], persons, values)
            if first and name != "satisfied":
                np.add.at(self.sums[f"early_{name}"], persons, values)
            if last and name != "clicks":
                np.add.at(self.sums[f"late_{name}"], persons, values)

    start: int = 0  # the first of the days that count

    def _phase(self, day: int) -> int:
        third = (self.days - self.start) / 3
        return 0 if day < self.start + third else 1 if day >= self.days - third else -1

    def promised(self, person: int, item: int, day: int) -> None:
        """An item was offered as one that is due again."""
        self._promised.append((person, item, day))

    def kept(self, bought: Mapping[tuple[int, int], Sequence[int]], within: int) -> tuple[int, int]:
        """How many first offers of an item to a person, and how many were bought within some days."""
        offers: dict[tuple[int, int], int] = {}
        for person, item, day in self._promised:
            if day + within < self.days:
                offers.setdefault((person, item), day)
        good = sum(any(day <= at <= day + within for at in bought.get(pair, ())) for pair, day in offers.items())
        return len(offers), good

    def ratios(self, rows: NDArray[np.integer] | None = None) -> dict[str, float]:
        """The figures over some people, all where none are named; a person who came twice counts twice."""
        took = {name: float(values.sum() if rows is None else values[rows].sum()) for name, values in self.sums.items()}

        def over(one: str, other: str) -> float:
            return took[one] / max(took[other], 1e-9)

        leaves = self.leaves if rows is None else self.leaves[:, rows]
        return {
            "clicks_a_visit": over("clicks", "visits"),
            "early_clicks_a_visit": over("early_clicks", "early_visits"),
            "satisfaction": over("satisfied", "visits"),
            "late_satisfaction": over("late_satisfied", "late_visits"),
            "satisfied_visits": took["satisfied"],
            "late_satisfied_visits": took["late_satisfied"],
            "visits": took["visits"],
            "intra_list_distance": over("ild", "lists"),
            "miscalibration": over("kl", "lists"),
            "tail_share": over("tail", "slots"),
            "bubble": _bubble(leaves),
        }

    def shop_wide(self) -> dict[str, float]:
        """Figures that have no meaning for one person."""
        known = self.creators >= 0
        by_creator = np.bincount(self.creators[known], self.exposures[known])
        return {"coverage": float((self.exposures > 0).mean()), "creator_gini": gini(by_creator)}


def _bubble(leaves: F64) -> float:
    """By how much the shelf that a person is shown most takes a larger share at the end than at the beginning; mean of who came
    in both.
    """
    total = leaves.sum(2)
    both = (total > 0).all(0)
    if not both.any():
        return 0.0
    top = leaves.max(2)[:, both] / total[:, both]
    return float((top[1] - top[0]).mean())


def _kl(wanted: F64, found: F64) -> float:
    """KL(wanted || found), found mixed with a little of what is wanted (Steck 2018, doi:10.1145/3240323.3240372)."""
    p, q = wanted / max(wanted.sum(), 1e-12), found / max(found.sum(), 1e-12)
    q = (1 - _ALPHA) * q + _ALPHA * p
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def gini(values: F64) -> float:
    """0: all alike; towards 1: one has everything."""
    ordered = np.sort(values.astype(float))
    total = ordered.sum()
    if not total:
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * (ranks * ordered).sum() / total - len(ordered) - 1) / len(ordered))


def interval(ours: Sequence[Course], theirs: Sequence[Course], name: str, draws: int = _DRAWS) -> tuple[float, float]:
    """The middle 95 % of ours over theirs less 1, people drawn with replacement: the same ones for both, over all seeds."""
    return paired(
        lambda picks: [
            (one.ratios(rows)[name], other.ratios(rows)[name])
            for one, other, rows in zip(ours, theirs, picks, strict=True)
        ],
        [len(each.people.group) for each in ours],
        draws,
    )


def paired(
    figures: Callable[[list[NDArray[np.int64]]], list[tuple[float, float]]], sizes: Sequence[int], draws: int
) -> tuple[float, float]:
    """As `interval`, of any figures."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        pairs = figures([rng.integers(0, size, size) for size in sizes])
        mine, other = (float(np.mean(side)) for side in zip(*pairs, strict=True))
        found.append(mine / other - 1 if other else 0.0)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
