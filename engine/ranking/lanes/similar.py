"""What goes with something they had: the nearest items by co-visits of a person's latest wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ranking.found import Found
from engine.ranking.people import People, Shop
from engine.schema import NO_ITEM

_DAY = 86_400_000_000
_PEOPLE_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class SimilarLane:
    """latest: how many of a person's latest distinct items are looked at. keep: candidates per person. half_life: days.
    trust: what a score is multiplied with beside other lanes'.
    """

    latest: float = 60
    keep: float = 60
    half_life: float = 90.0
    trust: float = 0.5

    def find(self, people: People, shop: Shop) -> Found:
        """Score by the three strongest reasons; rely on those three alone, so that the basis is minimal."""
        return Found.together(
            [
                self._block(people, shop, first, min(first + _PEOPLE_AT_ONCE, people.histories.users))
                for first in range(0, people.histories.users, _PEOPLE_AT_ONCE)
            ]
        )

    def _block(self, people: People, shop: Shop, first: int, last: int) -> Found:
        past = people.histories
        rows = slice(past.starts[first], past.starts[last])
        owner = np.repeat(np.arange(first, last), np.diff(past.starts[first : last + 1]))
        strength = past.weight[rows] * 0.5 ** ((people.moment - past.ts[rows]) / _DAY / self.half_life)
        item, bit = past.item[rows], np.uint64(1) << past.group[rows].astype(np.uint64)
        # The strongest event of each person and item speaks for it, and is the one relied on.
        order = np.lexsort((-strength, item, owner))
        owner, item, strength, bit = owner[order], item[order], strength[order], bit[order]
        fresh = np.ones(len(owner), bool)
        fresh[1:] = (owner[1:] != owner[:-1]) | (item[1:] != item[:-1])
        fresh &= strength > 0
        owner, item, strength, bit = owner[fresh], item[fresh], strength[fresh], bit[fresh]
        order = np.lexsort((item, -strength, owner))
        owner, item, strength, bit = owner[order], item[order], strength[order], bit[order]
        kept = np.arange(len(owner)) - np.searchsorted(owner, owner) < self.latest
        owner, item, strength, bit = owner[kept], item[kept], strength[kept], bit[kept]
        near, like = shop.neighbour[item], shop.likeness[item]
        source, place = np.nonzero(near != NO_ITEM)
        owner, found, value = owner[source], near[source, place], strength[source] * like[source, place]
        evidence, bit = item[source], bit[source]
        open_ = people.unseen(owner, found, shop.size)
        owner, found, value, evidence, bit = owner[open_], found[open_], value[open_], evidence[open_], bit[open_]
        order = np.lexsort((evidence, -value, found, owner))
        owner, found, value, evidence, bit = owner[order], found[order], value[order], evidence[order], bit[order]
        if not len(owner):
            return Found.nothing()
        edge = np.ones(len(owner), bool)
        edge[1:] = (owner[1:] != owner[:-1]) | (found[1:] != found[:-1])
        starts = np.flatnonzero(edge)
        nth = np.arange(len(owner)) - np.repeat(starts, np.diff(np.append(starts, len(owner))))
        value, bit = np.where(nth < 3, value, 0), np.where(nth < 3, bit, np.uint64(0))
        score = np.add.reduceat(value, starts)
        basis = np.bitwise_or.reduceat(bit, starts)
        owner, found, evidence = owner[starts], found[starts], evidence[starts]
        order = np.lexsort((found, -score, owner))
        order = order[np.arange(len(order)) - np.searchsorted(owner[order], owner[order]) < self.keep]
        owner, found, score, basis, evidence = owner[order], found[order], score[order], basis[order], evidence[order]
        # Likeness is no chance: spread the new wants of a person of middling mass over the lane's list.
        total = np.bincount(owner - first, score, last - first)[owner - first]
        mass = np.sqrt(np.bincount(owner - first, score, last - first))[owner - first]
        expected = self.trust * shop.fresh_rate * np.minimum(mass, 1.0) * score / np.maximum(total, 1e-12)
        return Found(owner, found, expected.astype(np.float32), basis, evidence)
