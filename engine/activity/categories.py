"""Categories that people dismiss by name: in parts they stand among the items, under ids that no item can have.

A part outlives many catalogues, so it keeps the name. A night looks it up as it does the item ids: behind the codes of the items
come those of the categories. Once settled, each becomes an item of the category and a depth of that item's path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.activity.columns import AT_DEPTH, DEEPEST, DISMISSES, UNDO, padded
from engine.activity.merge import Packed
from engine.errors import DataError

PREFIX = "\0category:"  # no catalogue may have an item id that begins so, and no log is believed that names one
FLAG = "category:"  # and the category's name: what an event dismiss_category is about
Coded = tuple[NDArray[np.int32], pa.Array]


@dataclass(frozen=True, slots=True, eq=False)
class Categories:
    """C categories by name: ids (C,) as parts name them; item (C,), one of the category's, and depth (C,), 1 for a root, of the
    category in that item's path.
    """

    ids: pa.Array
    item: NDArray[np.int32]
    depth: NDArray[np.uint8]

    @classmethod
    def none(cls) -> Categories:
        """Of a catalogue without any."""
        return cls(pa.array([], pa.string()), np.empty(0, np.int32), np.empty(0, np.uint8))

    @classmethod
    def of(cls, paths: pa.Array | pa.ChunkedArray, sensitive: NDArray[np.bool_]) -> Categories:
        """Those that a catalogue names no deeper than DEEPEST.

        Args:
            paths: (I,) lists of names, root to leaf. sensitive: (I,) items whose events tell more than others. A category with
                an item that is not is no sensitive one, and an ordinary item stands for it.
        """
        lists = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
        steps = (
            pl.DataFrame({"path": pl.Series(pl.from_arrow(lists), dtype=pl.List(pl.String)), "sensitive": sensitive})
            .with_row_index("item")
            .with_columns(depth=pl.int_ranges(1, pl.col("path").list.len() + 1))
            .filter(pl.col("path").list.len() > 0)
            .explode("path", "depth")
            .filter(pl.col("path").is_not_null() & (pl.col("depth") <= DEEPEST))
            .sort("path", "sensitive", "depth", "item")
            .unique("path", keep="first", maintain_order=True)
        )
        ids = pa.array([PREFIX + name for name in steps["path"].to_list()], pa.string())
        return cls(ids, steps["item"].to_numpy().astype(np.int32), steps["depth"].to_numpy().astype(np.uint8))

    def resolved(self, events: Packed, items: int) -> Packed:
        """The events with items alone in their column `item`; a category that was named is told by the event's code.

        Args:
            items: I, the codes below which `item` is an item.

        Raises:
            DataError: an event of another kind names a category, which no part does that is whole.
        """
        rows = np.flatnonzero(events["item"] >= items)
        if not len(rows):
            return events
        code = events["item"][rows] - items
        if (events["event"][rows] != DISMISSES).any() or code.max() >= len(self.item):
            raise DataError(
                "A part of the log is damaged: an event names a category as its item.", "Remove the store of parts."
            )
        events = events.copy()
        events["event"][rows] = AT_DEPTH + self.depth[code]
        events["item"][rows] = self.item[code]
        return events


def about_categories(batch: pa.RecordBatch, items: Coded, event: NDArray[np.uint8]) -> Coded:
    """The item column of a batch, in which events that dismiss a category, or take that back, name it where a flag does.

    Args:
        items: (N,) codes, and the names that they stand for. event: (N,) codes.
    """
    codes, names = items
    forged = pc.starts_with(names, PREFIX)
    if pc.any(forged).as_py():
        names = pc.if_else(forged, "", names)
    rows = np.flatnonzero((event == DISMISSES) | (event == UNDO + DISMISSES))
    if not len(rows) or "flags" not in batch.schema.names:
        return codes, names
    flags = batch.column("flags").take(pa.array(rows))
    flat = flags.flatten()
    told = np.flatnonzero(pc.fill_null(pc.starts_with(flat, FLAG), False).to_numpy(zero_copy_only=False))
    row, first = np.unique(pc.list_parent_indices(flags).to_numpy()[told], return_index=True)
    named = pc.utf8_slice_codeunits(flat.take(pa.array(told[first])), len(FLAG)).dictionary_encode()
    real = padded(pc.not_equal(named.dictionary, "").to_numpy(zero_copy_only=False), False)[named.indices.to_numpy()]
    codes = codes.copy()
    codes[rows[row[real]]] = len(names) + named.indices.to_numpy()[real]
    ids = pc.binary_join_element_wise(pa.scalar(PREFIX), named.dictionary.cast(pa.string()), "")
    return codes, pa.concat_arrays([names.cast(pa.string()), ids])
