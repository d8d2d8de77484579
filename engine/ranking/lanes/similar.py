"""What goes with something they had: the nearest items by co-visits of a person's latest wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.ranking.found import Found
from engine.ranking.people import People, Shop
from engine.schema import DELICATE, NO_ITEM
from engine.two_tower.histories import Histories

_DAY = 86_400_000_000
_PEOPLE_AT_ONCE = 512
_REASONS = 3
_GROUPS = 2 * DELICATE


@dataclass(frozen=True, slots=True)
class SimilarLane:
    """latest: how many of a person's latest distinct items are looked at, of each group of events. keep: candidates per person
    and profile. half_life: days. trust: what a score is multiplied with beside other lanes'.
    """

    latest: float = 60
    keep: float = 60
    half_life: float = 90.0
    trust: float = 0.05

    def find(self, people: People, shop: Shop) -> Found:
        """Score by the three strongest reasons, and rely on the groups of events behind those three alone.

        What is looked at is chosen group by group, and a score is set beside the groups relied on alone: so no event
        outside the basis has a part in a candidate, and it stays as it is when the others are withdrawn. Asked once for each
        stored profile, so that what several groups speak for is still found on those that are left.
        """
        around, users = shop.likeness.sum(1), people.histories.users
        step = max(1, min(_PEOPLE_AT_ONCE, 2**32 // max(shop.size, 1)))  # a pair of person and item fits 32 bits
        parts = []
        for profile in people.profiles:
            past = people.histories.of_some(profile.rows).within(profile.groups)
            parts += [
                self._block(people, past, shop, around, first, min(first + step, users))
                for first in range(0, users, step)
            ]
        return Found.together(parts).distinct()

    def _block(
        self, people: People, past: Histories, shop: Shop, around: NDArray[np.float32], first: int, last: int
    ) -> Found:
        owner, group, item, strength = self._latest(past, people.moment, first, last)
        used = np.unique(past.group)
        bases, slot = people.bases[used], np.searchsorted(used, group)
        reach = np.bincount((owner - first) * len(used) + slot, strength * around[item], (last - first) * len(used))
        reach = reach.reshape(last - first, len(used))
        order = np.lexsort((group, -strength, item, owner))
        owner, group, item, strength = owner[order], group[order], item[order], strength[order]
        spoken = np.cumsum(_fresh(owner, item)) - 1
        told = _Told(np.searchsorted(used, group), strength * around[item], np.flatnonzero(_fresh(owner, item)))
        near = shop.neighbour[item]
        source, place = np.nonzero(near != NO_ITEM)
        value = (strength[source] * shop.likeness[item[source], place]).astype(np.float32)
        open_ = people.unseen(owner[source], near[source, place], shop.size, group[source]) & (value > 0)
        open_[open_] = ~people.dismissed.refuses(owner[source[open_]], near[source[open_], place[open_]])
        source, place, value = source[open_], place[open_], value[open_]
        # An item that several groups speak for is one reason: that of its strongest event that does not hide what is found.
        _, once = np.unique(spoken[source] * near.shape[1] + place, return_index=True)
        source, place, value = source[once], place[once], value[once]
        owner, group, evidence, found = owner[source], group[source], item[source], near[source, place]
        spoken = spoken[source]
        # One key sorts by person, item and falling value: the bits of positive floats rise with them. Ties: lowest evidence.
        pair = ((owner - first) * shop.size + found).astype(np.uint64)
        key = (pair << np.uint64(32)) | (~value.view(np.uint32)).astype(np.uint64)
        order = np.argsort(key, kind="stable")
        owner, group, evidence, spoken = owner[order], group[order], evidence[order], spoken[order]
        found, value = found[order], value[order]
        starts = np.flatnonzero(_fresh(owner, found))
        if not len(starts):
            return Found.nothing()
        nth = np.arange(len(owner)) - np.repeat(starts, np.diff(np.append(starts, len(owner))))
        score, basis = _added(nth < _REASONS, value, people.bases[group], starts)
        left, basis_left = _added((nth > 0) & (nth <= _REASONS), value, people.bases[group], starts)
        owner, found, evidence, spoken = owner[starts], found[starts], evidence[starts], spoken[starts]
        order = np.lexsort((found, -score, owner))
        order = order[_nth(owner[order]) < self.keep]
        owner, found, evidence = owner[order], found[order], evidence[order]
        # Likeness is no chance: it is set beside all the likeness around the events relied on, and new wants grow with the
        # square root of what was wanted, as in the two-tower lane.
        scale, around_them = self.trust * shop.fresh_rate, reach[owner - first]
        relied = (bases & ~basis[order, None]) == 0
        expected = scale * score[order] / np.sqrt(np.maximum(_in_order(around_them * relied), 1.0))
        # Without the evidence the next reasons are what is left, and it is no longer part of what they are set beside.
        relied = (bases & ~basis_left[order, None]) == 0
        total = _in_order(around_them * relied) - told.of(spoken[order], relied)
        without = scale * left[order] / np.sqrt(np.maximum(total, 1.0))
        return Found(owner, found, expected.astype(np.float32), basis[order], evidence, without.astype(np.float32))

    def _latest(
        self, past: Histories, moment: int, first: int, last: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int32], NDArray[np.float64]]:
        """Each group's latest distinct items of some people, by the strongest event of each: owner, group, item, strength."""
        rows = slice(past.starts[first], past.starts[last])
        owner = np.repeat(np.arange(first, last), np.diff(past.starts[first : last + 1]))
        item, group = past.item[rows], past.group[rows]
        strength = past.weight[rows] * 0.5 ** ((moment - past.ts[rows]) / _DAY / self.half_life)
        order = np.lexsort((-strength, item, group, owner))
        order = order[_fresh(owner[order], group[order], item[order]) & (strength[order] > 0)]
        order = order[np.lexsort((item[order], -strength[order], group[order], owner[order]))]
        order = order[_nth(owner[order] * _GROUPS + group[order]) < self.latest]
        return owner[order], group[order], item[order], strength[order]


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """How much likeness is around the events that lie behind each reason; several groups may tell of one item.

    group (n,): among those that there are, G. amount (n,). starts (m,): where those of each item of a person begin.
    """

    group: NDArray[np.int64]
    amount: NDArray[np.float64]
    starts: NDArray[np.int64]

    def of(self, reasons: NDArray[np.int64], relied: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(R,) of some reasons, that of the groups (R, G) that are relied on."""
        sizes = np.diff(np.append(self.starts, len(self.group)))[reasons]
        place = np.repeat(np.arange(len(reasons)), sizes)
        row = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + self.starts[reasons][place]
        amount = self.amount[row] * relied[place, self.group[row]]
        return np.bincount(place, amount, len(reasons)).astype(np.float64)


def _added(
    counts: NDArray[np.bool_], value: NDArray[np.float32], bases: NDArray[np.uint64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """The values that count of each stretch, together, and what they rely on."""
    return (
        np.add.reduceat(np.where(counts, value, 0), starts),
        np.bitwise_or.reduceat(np.where(counts, bases, np.uint64(0)), starts),
    )


def _in_order(amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) sums of (R, G), G at least 1, from left to right: so groups that count for nothing change no bit."""
    result: NDArray[np.float64] = amounts.cumsum(1)[:, -1]
    return result


def _fresh(*columns: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which rows of sorted columns differ from the row before."""
    edge = np.ones(len(columns[0]), bool)
    edge[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return edge


def _nth(sorted_: NDArray[np.integer]) -> NDArray[np.int64]:
    """Each row's place among its equals."""
    return np.arange(len(sorted_)) - np.searchsorted(sorted_, sorted_)
