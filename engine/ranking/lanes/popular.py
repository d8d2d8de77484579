"""What everybody wants, and nobody in particular: lists that rely on no grant, for the shop and for each part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.ranking.found import Found
from engine.ranking.people import People, Shop
from engine.schema import FALLBACK


@dataclass(frozen=True, slots=True)
class PopularLane:
    """keep: items a list. least_people: an item wanted by fewer is left out, so that no list shows one person's taste."""

    keep: float = 200
    least_people: float = 2

    def find(self, people: People, shop: Shop) -> Found:
        """Nothing per person: the lists below are stored once and fill whatever personal lanes leave open."""
        return Found.nothing()

    def lists(
        self,
        popularity: NDArray[np.float64],
        people: NDArray[np.int64],
        root: NDArray[np.int32],
        categories: int,
        sold: Mapping[str, NDArray[np.bool_]],
    ) -> pa.Table:
        """The fallback table: a list of the whole shop and one of each category; and of the whole shop for each region.

        Args:
            popularity: (I,) share of all wants. people: (I,) how many wanted it. root: (I,) root category or -1.
            categories: how many root categories there are.
            sold: by region, '' among them, (I,) what may be shown there.
        """
        allowed = (popularity > 0) & (people >= self.least_people)
        order = np.lexsort((np.arange(len(popularity)), -popularity))
        order = order[allowed[order]]
        tables = []
        for region in sorted(sold):
            there = order[sold[region][order]]
            for category in range(-1, categories if not region else 0):
                inside = there if category < 0 else there[root[there] == category]
                items = inside[: int(self.keep)]
                columns = [[region] * len(items), np.full(len(items), category), items, popularity[items]]
                arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, FALLBACK, strict=True)]
                tables.append(pa.table(arrays, schema=FALLBACK))
        return pa.concat_tables(tables)


def sold_in(regions: Sequence[Sequence[str] | None]) -> dict[str, NDArray[np.bool_]]:
    """By region that any item names, and for '': (I,) which items may be shown there. An item of DE may in DE-BY."""
    everywhere = np.array([not any(each or ()) for each in regions], np.bool_)
    named = [{name.upper() for name in each or () if name} for each in regions]
    sold = {"": everywhere}
    for region in sorted(set().union(*named)):
        wider = {region[:end] for end in (*(place for place, mark in enumerate(region) if mark == "-"), len(region))}
        sold[region] = everywhere | np.array([bool(wider & each) for each in named], np.bool_)
    return sold
