"""The usual: what a person wants again and again, when it is due.

The chance of another want is the item's own habit rate times the person's decayed wants of it (habits.py). Where a person has
bought it often enough to have a cadence, what is not due within the horizon waits: the fraction of the mean gap that will have
passed by then (a renewal process seen from its mean, Cox 1962, Renewal Theory).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.ranking.found import Found
from engine.ranking.habits import CURVE
from engine.ranking.people import People, ProfileVectors, Shop, is_purchase
from engine.schema import DELICATE, EVENTS
from engine.two_tower.histories import Histories

_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Cadence:
    """A person's purchases of an item, one row a pair, sorted by person and item. mass: decayed, one a day at most."""

    owner: NDArray[np.int64]
    item: NDArray[np.int32]
    purchases: NDArray[np.int64]
    gap_days: NDArray[np.float64]
    last: NDArray[np.int64]
    mass: NDArray[np.float64]
    basis: NDArray[np.uint64]


def cadence(histories: Histories, moment: int, half_life: float) -> Cadence:
    """Count purchases by person and item; several on one day are one visit."""
    bought = is_purchase(histories) & (histories.weight > 0)
    owner, item, ts = histories.owner[bought], histories.item[bought], histories.ts[bought]
    bit = np.uint64(1) << (histories.group[bought] % DELICATE).astype(np.uint64)
    order = np.lexsort((ts, item, owner))
    owner, item, ts, bit = owner[order], item[order], ts[order], bit[order]
    edge, visit = np.ones(len(owner), bool), np.ones(len(owner), bool)
    edge[1:] = (owner[1:] != owner[:-1]) | (item[1:] != item[:-1])
    visit[1:] = edge[1:] | (ts[1:] // _DAY != ts[:-1] // _DAY)
    starts = np.flatnonzero(edge)
    if not len(starts):
        none, zero = np.empty(0, np.int64), np.empty(0)
        return Cadence(none, none.astype(np.int32), none, zero, none, zero, none.astype(np.uint64))
    ends = np.append(starts[1:], len(owner)) - 1
    visits = np.add.reduceat(visit.astype(np.int64), starts)
    gap = np.where(visits > 1, (ts[ends] - ts[starts]) / _DAY / np.maximum(visits - 1, 1), 0.0)
    faded = visit * 0.5 ** (np.maximum(moment - ts, 0) / _DAY / half_life)
    return Cadence(
        owner[starts],
        item[starts],
        visits,
        gap.astype(np.float64),
        ts[ends],
        np.add.reduceat(faded, starts).astype(np.float64),
        np.bitwise_or.reduceat(bit, starts),
    )


def _dismissed(histories: Histories, known: Cadence, items: int) -> NDArray[np.bool_]:
    """Which pairs their person dismissed after the last purchase."""
    rows = histories.event == EVENTS.index("dismiss")
    pair = histories.owner[rows] * items + histories.item[rows]
    bought = known.owner * items + known.item
    place = np.searchsorted(bought, pair)
    again = place < len(bought)
    again[again] = (bought[place[again]] == pair[again]) & (histories.ts[rows][again] > known.last[place[again]])
    return np.bincount(place[again], minlength=len(bought)) > 0


@dataclass(frozen=True, slots=True)
class UsualLane:
    """keep: candidates per person. trust: what a score is multiplied with beside other lanes'. rhythm: visits from which a
    person's own gap counts.
    """

    keep: float = 100
    trust: float = 1.0
    rhythm: float = 4

    def find(self, people: People, shop: Shop) -> Found:
        """Everything bought before and neither dismissed since nor of a category that was, by the chance that it is wanted
        within the horizon.

        Asked once for each stored profile, so that what one source says does not fall with another. A dismissal counts for
        all of them, whichever source it came by: nobody should have to say it twice.
        """
        everything = cadence(people.histories, people.moment, people.settings.mass_days)
        gone = _dismissed(people.histories, everything, shop.size)
        gone |= people.dismissed.refuses(everything.owner, everything.item)
        pairs = (everything.owner * shop.size + everything.item)[gone]
        found = Found.together([self._of_profile(people, shop, profile, pairs) for profile in people.profiles])
        return found.distinct()

    def _of_profile(self, people: People, shop: Shop, profile: ProfileVectors, gone: NDArray[np.int64]) -> Found:
        past = people.histories.within(profile.groups)
        known = cadence(past, people.moment, people.settings.mass_days)
        chance = 1 - np.exp(-shop.hazard[known.item] * known.mass**CURVE)
        waited = (people.moment - known.last) / _DAY + people.settings.horizon_days
        due = np.where(known.purchases >= self.rhythm, np.minimum(1.0, waited / np.maximum(known.gap_days, 1e-9)), 1.0)
        score = (self.trust * chance * due).astype(np.float32)
        order = np.lexsort((known.item, -score, known.owner))
        open_ = np.isin(known.owner, profile.rows) & np.isin(known.owner * shop.size + known.item, gone, invert=True)
        order = order[open_[order]]
        order = order[np.arange(len(order)) - np.searchsorted(known.owner[order], known.owner[order]) < self.keep]
        item, score = known.item[order], score[order]
        return Found(known.owner[order], item, score, known.basis[order], item, np.zeros_like(score))
