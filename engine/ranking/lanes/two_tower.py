"""What the model thinks they would want: exact top-K over the catalogue, once for each stored profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.kernels.top_k import top_k
from engine.ranking.found import Found
from engine.ranking.people import People, Shop
from engine.schema import NO_ITEM

SAMPLE = 4096  # items that stand for all in the softmax's denominator


@dataclass(frozen=True, slots=True)
class TwoTowerLane:
    """keep: candidates per person and profile. trust: what a score is multiplied with beside other lanes'."""

    keep: float = 120
    trust: float = 0.5

    def find(self, people: People, shop: Shop) -> Found:
        """Unseen items by the chance that the person's next new want is this one, times how much they want that is new."""
        return search(people, shop, np.ones(shop.size, bool), int(self.keep), self.trust)


def search(people: People, shop: Shop, among: NDArray[np.bool_], keep: int, trust: float) -> Found:
    """The tower's best among some items, for every profile of every person."""
    rows = np.flatnonzero(among)
    if not len(rows):
        return Found.nothing()
    sub = np.full(shop.size, -1, np.int32)
    sub[rows] = np.arange(len(rows))
    parts = []
    for profile in people.profiles:
        lengths = np.diff(people.seen_starts)[profile.rows]
        flat = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows_seen = np.repeat(people.seen_starts[profile.rows], lengths) + flat
        owner = np.repeat(np.arange(len(profile.rows)), lengths)
        # What hides an item is an event as well: one outside the profile has no say in its list.
        told = (people.seen_basis[rows_seen] & np.uint64(profile.groups)) != 0
        hidden = sub[people.seen_item[rows_seen]]
        owner, hidden = owner[told & (hidden >= 0)], hidden[told & (hidden >= 0)]
        starts = np.searchsorted(owner, np.arange(len(profile.rows) + 1)).astype(np.int64)
        ids, scores = top_k(profile.vectors, shop.vectors[rows], keep, starts, hidden, people.device)
        # A sample may miss the very items that hold the mass: it is never less than that of the items found.
        least = np.logaddexp.reduce(scores, axis=1, dtype=np.float64)
        chance = np.exp(scores - np.maximum(least, log_mass(profile.vectors, shop.vectors))[:, None])
        expected = trust * shop.fresh_rate * np.sqrt(profile.mass)[:, None] * chance
        user, place = np.nonzero(ids != NO_ITEM)
        parts.append(
            Found(
                profile.rows[user],
                rows[ids[user, place]].astype(np.int32),
                expected[user, place].astype(np.float32),
                profile.basis[user],
                np.full(len(user), NO_ITEM, np.int32),
            )
        )
    return Found.together(parts)


def log_mass(users: NDArray[np.float32], items: NDArray[np.float32]) -> NDArray[np.float64]:
    """(U,) log of the sum of exp(score) over the catalogue, estimated from an even sample of items when there are many."""
    step = max(1, -(-len(items) // SAMPLE))
    sample = np.ascontiguousarray(items[::step])
    total = np.empty(len(users))
    for first in range(0, len(users), 1024):
        scores = users[first : first + 1024] @ sample.T
        highest = scores.max(1)
        scores -= highest[:, None]
        total[first : first + 1024] = highest + np.log(np.exp(scores, out=scores).sum(1, dtype=np.float64))
    result: NDArray[np.float64] = total + np.log(len(items) / len(sample))
    return result
