"""What goes with something they had: the nearest items by co-visits of a person's latest wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.ranking.found import Found
from engine.ranking.people import People, Shop
from engine.schema import NO_ITEM

_DAY = 86_400_000_000
_PEOPLE_AT_ONCE = 512
_REASONS = 3


@dataclass(frozen=True, slots=True)
class SimilarLane:
    """latest: how many of a person's latest distinct items are looked at, of each group of events. keep: candidates per person.
    half_life: days. trust: what a score is multiplied with beside other lanes'.
    """

    latest: float = 60
    keep: float = 60
    half_life: float = 90.0
    trust: float = 0.05

    def find(self, people: People, shop: Shop) -> Found:
        """Score by the three strongest reasons, and rely on the groups of events behind those three alone.

        What is looked at is chosen group by group, and a score is set beside the groups relied on alone: so no event
        outside the basis has a part in a candidate, and it stays as it is when the others are withdrawn.
        """
        around, users = shop.likeness.sum(1), people.histories.users
        step = max(1, min(_PEOPLE_AT_ONCE, 2**32 // max(shop.size, 1)))  # a pair of person and item fits 32 bits
        return Found.together(
            [self._block(people, shop, around, first, min(first + step, users)) for first in range(0, users, step)]
        )

    def _block(self, people: People, shop: Shop, around: NDArray[np.float32], first: int, last: int) -> Found:
        owner, group, item, strength = self._latest(people, first, last)
        reach = np.zeros((last - first, 64))
        np.add.at(reach, (owner - first, group), strength * around[item])
        order = np.lexsort((group, -strength, item, owner))
        owner, group, item, strength = owner[order], group[order], item[order], strength[order]
        near = shop.neighbour[item]
        source, place = np.nonzero(near != NO_ITEM)
        value = (strength[source] * shop.likeness[item[source], place]).astype(np.float32)
        open_ = people.unseen(owner[source], near[source, place], shop.size, group[source]) & (value > 0)
        source, place, value = source[open_], place[open_], value[open_]
        # An item that several groups speak for is one reason: that of its strongest event that does not hide what is found.
        spoken = np.cumsum(_fresh(owner, item))
        _, once = np.unique(spoken[source] * near.shape[1] + place, return_index=True)
        source, place, value = source[once], place[once], value[once]
        owner, group, evidence, found = owner[source], group[source], item[source], near[source, place]
        # One key sorts by person, item and falling value: the bits of positive floats rise with them. Ties: lowest evidence.
        pair = ((owner - first) * shop.size + found).astype(np.uint64)
        key = (pair << np.uint64(32)) | (~value.view(np.uint32)).astype(np.uint64)
        order = np.argsort(key, kind="stable")
        owner, group, evidence = owner[order], group[order], evidence[order]
        found, value = found[order], value[order]
        starts = np.flatnonzero(_fresh(owner, found))
        if not len(starts):
            return Found.nothing()
        nth = np.arange(len(owner)) - np.repeat(starts, np.diff(np.append(starts, len(owner))))
        counts = nth < _REASONS
        score = np.add.reduceat(np.where(counts, value, 0), starts)
        basis = np.bitwise_or.reduceat(np.where(counts, np.uint64(1) << group.astype(np.uint64), np.uint64(0)), starts)
        owner, found, evidence = owner[starts], found[starts], evidence[starts]
        order = np.lexsort((found, -score, owner))
        order = order[_nth(owner[order]) < self.keep]
        owner, found, score, basis, evidence = owner[order], found[order], score[order], basis[order], evidence[order]
        # Likeness is no chance: it is set beside all the likeness around the events relied on, and new wants grow with the
        # square root of what was wanted, as in the two-tower lane.
        relied = (basis[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        total = (reach[owner - first] * relied).sum(1)
        expected = self.trust * shop.fresh_rate * score / np.sqrt(np.maximum(total, 1.0))
        return Found(owner, found, expected.astype(np.float32), basis, evidence)

    def _latest(
        self, people: People, first: int, last: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int32], NDArray[np.float64]]:
        """Each group's latest distinct items of some people, by the strongest event of each: owner, group, item, strength."""
        past = people.histories
        rows = slice(past.starts[first], past.starts[last])
        owner = np.repeat(np.arange(first, last), np.diff(past.starts[first : last + 1]))
        item, group = past.item[rows], past.group[rows]
        strength = past.weight[rows] * 0.5 ** ((people.moment - past.ts[rows]) / _DAY / self.half_life)
        order = np.lexsort((-strength, item, group, owner))
        order = order[_fresh(owner[order], group[order], item[order]) & (strength[order] > 0)]
        order = order[np.lexsort((item[order], -strength[order], group[order], owner[order]))]
        order = order[_nth(owner[order] * 64 + group[order]) < self.latest]
        return owner[order], group[order], item[order], strength[order]


def _fresh(*columns: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which rows of sorted columns differ from the row before."""
    edge = np.ones(len(columns[0]), bool)
    edge[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return edge


def _nth(sorted_: NDArray[np.integer]) -> NDArray[np.int64]:
    """Each row's place among its equals."""
    return np.arange(len(sorted_)) - np.searchsorted(sorted_, sorted_)
