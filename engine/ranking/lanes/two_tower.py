"""What the model thinks they would want: exact top-K over the catalogue, once for each stored profile."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.kernels.encode_user import expected_wants, log_mass, step_of
from engine.kernels.top_k import top_k
from engine.ranking.found import Found
from engine.ranking.people import People, Shop
from engine.schema import NO_ITEM

_HIDDEN_AT_ONCE = 1 << 25  # pairs of a person and an item of a dismissed category, about 12 bytes each


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
    sample = np.ascontiguousarray(shop.vectors[:: step_of(shop.size)])
    parts = []
    for profile in people.profiles:
        whole = log_mass(profile.vectors, sample, shop.size)  # of all at once: products of other shapes round otherwise
        for block in _blocks(people, profile.rows, shop.size):
            asked, vectors = profile.rows[block], profile.vectors[block]
            starts, hidden = _hidden(people, asked, profile.groups, sub)
            ids, scores = top_k(vectors, shop.vectors[rows], keep, starts, hidden, people.device)
            expected = expected_wants(scores, whole[block], profile.mass[block], trust * shop.fresh_rate)
            user, place = np.nonzero(ids != NO_ITEM)
            parts.append(
                Found(
                    asked[user],
                    rows[ids[user, place]].astype(np.int32),
                    expected[user, place],
                    profile.basis[block][user],
                    np.full(len(user), NO_ITEM, np.int32),
                )
            )
    return Found.together(parts)


def _blocks(people: People, rows: NDArray[np.int64], items: int) -> list[slice]:
    """Stretches of a profile's people, of as many who dismissed a category as may hide items at once."""
    turns = np.cumsum(np.isin(rows, people.dismissed.owner)) // max(1, _HIDDEN_AT_ONCE // max(items, 1))
    edges = [0, *(np.flatnonzero(np.diff(turns)) + 1).tolist(), len(rows)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _hidden(
    people: People, rows: NDArray[np.int64], groups: int, sub: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """What is not to be found for some people: where each one's part begins, and rows of the items that `sub` numbers."""
    lengths = np.diff(people.seen_starts)[rows]
    flat = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows_seen = np.repeat(people.seen_starts[rows], lengths) + flat
    # What hides an item is an event as well: one outside the profile has no say in its list.
    told = (people.seen_basis[rows_seen] & np.uint64(groups)) != 0
    owner, item = np.repeat(np.arange(len(rows)), lengths)[told], people.seen_item[rows_seen][told]
    if len(people.dismissed.owner):
        theirs, refused = people.dismissed.hidden(rows)
        owner, item = np.concatenate([owner, theirs]), np.concatenate([item, refused])
        order = np.argsort(owner, kind="stable")
        owner, item = owner[order], item[order]
    hidden = sub[item]
    owner, hidden = owner[hidden >= 0], hidden[hidden >= 0]
    return np.searchsorted(owner, np.arange(len(rows) + 1)).astype(np.int64), hidden
