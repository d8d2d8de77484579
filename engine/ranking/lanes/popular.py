"""What everybody wants, and nobody in particular: lists that rely on no grant, for the shop and for each part of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.ranking.found import Found
from engine.ranking.people import People, Shop


@dataclass(frozen=True, slots=True)
class PopularLane:
    """keep: items a list. least_people: an item wanted by fewer is left out, so that no list shows one person's taste."""

    keep: float = 200
    least_people: float = 2

    def find(self, people: People, shop: Shop) -> Found:
        """Nothing per person: the lists below are stored once and fill whatever personal lanes leave open."""
        return Found.nothing()

    def lists(
        self, popularity: NDArray[np.float64], people: NDArray[np.int64], root: NDArray[np.int32], categories: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Rows of the fallback table: category (-1: the whole shop), item, score, best first.

        Args:
            popularity: (I,) share of all wants. people: (I,) how many wanted it. root: (I,) root category or -1.
            categories: how many root categories there are.
        """
        allowed = (popularity > 0) & (people >= self.least_people)
        order = np.lexsort((np.arange(len(popularity)), -popularity))
        order = order[allowed[order]]
        rows: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        for category in range(-1, categories):
            inside = order if category < 0 else order[root[order] == category]
            items: NDArray[np.int32] = inside[: int(self.keep)].astype(np.int32)
            rows.append((np.full(len(items), category, np.int32), items))
        category_column = np.concatenate([category for category, _ in rows])
        item_column = np.concatenate([items for _, items in rows])
        return category_column, item_column, popularity[item_column].astype(np.float32)
