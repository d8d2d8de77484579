"""The item table of a snapshot: what rules, replies and the live encoder need of an item, by its code."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.errors import SnapshotError
from engine.snapshot.layout import view


class ItemTable:
    """Items by code, 0..count-1, which is also the order of their ids.

    Arrays are read-only, and all but the booleans are views of the file. Ids, titles, categories and regions stay
    encoded in the file until one is asked for.
    """

    __slots__ = (
        "_categories", "_ids", "_paths", "_regions", "_titles", "available_from", "available_until", "count", "creator",
        "has_regions", "likeness", "neighbour", "popularity", "price", "root_category", "sensitive", "tail", "vector",
    )  # fmt: skip

    def __init__(self, batch: pa.RecordBatch) -> None:
        """
        Args:
            batch: in `schema.items_schema`, without nulls.
        """
        column = batch.column
        self.count: int = batch.num_rows
        self.root_category: NDArray[np.int32] = view(column("root_category"))  # row of the categories; -1: none
        self.creator: NDArray[np.int32] = view(column("creator"))  # -1: none
        self.price: NDArray[np.float32] = view(column("price"))  # NaN: none
        self.sensitive: NDArray[np.bool_] = view(column("sensitive"))
        self.available_from: NDArray[np.int64] = view(column("available_from"))  # microseconds since the epoch
        self.available_until: NDArray[np.int64] = view(column("available_until"))
        self.popularity: NDArray[np.float32] = view(column("popularity"))  # share of all wants
        self.tail: NDArray[np.bool_] = view(column("tail"))
        self.vector: NDArray[np.float32] = view(column("vector"))  # (count, width)
        self.neighbour: NDArray[np.int32] = view(column("neighbour"))  # (count, neighbours) code, or NO_ITEM
        self.likeness: NDArray[np.float32] = view(column("likeness"))  # (count, neighbours)
        self._ids = _Texts.of(column("item_id"))
        self._titles = _Texts.of(column("title"))
        self._categories = _TextLists.of(column("categories"))
        self._paths: pa.Array | Paths = column("categories")
        self._regions = _TextLists.of(column("regions"))
        self.has_regions: NDArray[np.bool_] = np.diff(self._regions.offsets) > 0
        self.has_regions.flags.writeable = False

    def __len__(self) -> int:
        return self.count

    def id_of(self, code: int) -> str:
        """The item id of a code.

        Raises:
            SnapshotError: there is no such code.
        """
        return self._ids.raw(self._in_range(code)).decode()

    def code_of(self, item_id: str) -> int:
        """The code of an item id, or -1: a binary search over the ids where they lie in the file."""
        try:
            wanted = item_id.encode()
        except UnicodeEncodeError:
            return -1
        code = bisect_left(range(self.count), wanted, key=self._ids.raw)
        return code if code < self.count and self._ids.raw(code) == wanted else -1

    def title(self, code: int) -> str:
        """The title of an item, '' where it has none."""
        return self._titles.raw(self._in_range(code)).decode()

    @property
    def paths(self) -> Paths:
        """Every item's categories as numbers; made when first asked for, in a tenth of a second for a million items."""
        if not isinstance(self._paths, Paths):  # two threads may make the same
            self._paths = Paths.of(self._paths)
        return self._paths

    def category_path(self, code: int) -> list[str]:
        """The categories of an item, root to leaf; empty where it has none."""
        return self._categories.of_row(self._in_range(code))

    def regions(self, code: int) -> list[str]:
        """The regions where an item may be shown; empty is everywhere."""
        return self._regions.of_row(self._in_range(code))

    def _in_range(self, code: int) -> int:
        if not 0 <= code < self.count:
            raise SnapshotError(
                f"There is no item {code}; the snapshot has 0..{self.count - 1}.",
                "Take codes and items from one snapshot.",
            )
        return int(code)


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """The categories of each item, root to leaf: codes[offsets[i]:offsets[i + 1]] of item i, and `names` by code."""

    names: tuple[str, ...]
    offsets: NDArray[np.int32]  # (count + 1,)
    codes: NDArray[np.int32]
    by_name: dict[str, int]

    @classmethod
    def of(cls, lists: pa.Array) -> Paths:
        """Of a column of lists of names."""
        found = lists.flatten().dictionary_encode()
        names = tuple(found.dictionary.to_pylist())
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(
            names, offsets, found.indices.to_numpy().astype(np.int32), {name: at for at, name in enumerate(names)}
        )


@dataclass(frozen=True, slots=True)
class _Texts:
    """A string column as offsets and bytes."""

    offsets: NDArray[np.int32]
    data: memoryview

    @classmethod
    def of(cls, array: pa.Array) -> _Texts:
        data = array.buffers()[2]
        return cls(_offsets(array), memoryview(data) if data is not None else memoryview(b""))

    def raw(self, row: int) -> bytes:
        offsets = self.offsets
        return bytes(self.data[offsets.item(row) : offsets.item(row + 1)])


@dataclass(frozen=True, slots=True)
class _TextLists:
    """A column of lists of strings as offsets and the strings of all rows."""

    offsets: NDArray[np.int32]
    texts: _Texts

    @classmethod
    def of(cls, array: pa.Array) -> _TextLists:
        return cls(_offsets(array), _Texts.of(array.values))

    def of_row(self, row: int) -> list[str]:
        return [self.texts.raw(place).decode() for place in range(self.offsets.item(row), self.offsets.item(row + 1))]


def _offsets(array: pa.Array) -> NDArray[np.int32]:
    buffer: Any = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.zeros(1, np.int32)
    return np.frombuffer(buffer, np.int32, len(array) + 1, array.offset * 4)
