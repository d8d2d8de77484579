"""What the footer of a Parquet file says of its row groups, read here: pyarrow ends the process over some lies in it.

Source: parquet.thrift of the Parquet format 2.12, in Thrift's compact protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.errors import FileRefused

LARGEST_CHUNK = 1 << 30  # bytes of one column of one row group, decompressed
MOST_ROWS = 1 << 28  # of one row group
MOST_ROWS_OF_A_FILE = 1 << 30
MOST_GROUPS = 1 << 15  # the format counts them in 16 bits
_MOST = 4_000_000  # units of a footer: a value is one, a struct _STRUCT more, as it takes the more memory in pyarrow
_STRUCT = 8
_DEEPEST = 32
_GROUPS, _GROUP_COLUMNS, _GROUP_ROWS, _ABOUT_COLUMN = 4, 1, 3, 3
_ENCODINGS, _VALUES, _UNPACKED, _PACKED, _DATA_AT, _DICTIONARY_AT, _STATISTICS, _PAGES = 2, 5, 6, 7, 9, 11, 12, 13
_NULLS, _SMALLEST = 3, 6
_PAGE_KIND, _PAGE_ENCODING, _DATA = 1, 2, (0, 3)
_DICTIONARIES = {2, 8}  # PLAIN_DICTIONARY and RLE_DICTIONARY
_BESIDE = {0, 3, 4}  # PLAIN, of the dictionary itself, and those of levels, RLE and BIT_PACKED
_CODE, _DICTIONARY = 4, 1 << 20  # bytes a row that names an entry takes at most, and bytes of a usual dictionary


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group: bytes as they lie in the file and unpacked.

    complete: it has neither null nor ''. coded: all of it names entries of one dictionary.
    """

    packed: int
    unpacked: int
    complete: bool
    coded: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: its rows, and the columns that are read, by their place among all."""

    rows: int
    chunks: dict[int, Chunk]


class _TooLarge(Exception):
    pass


def checked_groups(path: str, footer: dict[int, Any], leaves: dict[int, bool], size: int) -> list[Group]:
    """The row groups of a file of `size` bytes.

    Args:
        leaves: columns by their place among all, and whether they have one value a row.

    Raises:
        FileRefused: the footer says itself that the file is too large, or that something lies outside it.
    """
    found, total = [], 0
    for place, group in enumerate(footer.get(_GROUPS, [])):
        rows = group[_GROUP_ROWS]
        total += rows
        if not 0 <= rows <= MOST_ROWS or total > MOST_ROWS_OF_A_FILE:
            raise FileRefused(path, "too_large", f"it says that it has {total} rows up to row group {place}")
        if place >= MOST_GROUPS:
            raise FileRefused(path, "too_large", f"it has more than {MOST_GROUPS} row groups")
        chunks = {}
        for leaf, flat in leaves.items():
            about, where = group[_GROUP_COLUMNS][leaf][_ABOUT_COLUMN], f"column {leaf} of row group {place}"
            values = about[_VALUES]
            if values < rows or (flat and values > rows):
                raise FileRefused(path, "bad_footer", f"{where} has {values} values for {rows} rows")
            chunks[leaf] = _chunk(path, about, rows, where, size)
        found.append(Group(rows, chunks))
    return found


def _chunk(path: str, about: dict[int, Any], rows: int, where: str, size: int) -> Chunk:
    packed, unpacked, start = about[_PACKED], about[_UNPACKED], about[_DATA_AT]
    if 0 < about.get(_DICTIONARY_AT, 0) < start:
        start = about[_DICTIONARY_AT]
    if unpacked > LARGEST_CHUNK:
        raise FileRefused(path, "too_large", f"{where} unpacks to {unpacked / 2**20:,.0f} MiB")
    if unpacked < 0 or start < 0 or not 0 <= packed <= size - start:
        raise FileRefused(path, "bad_footer", f"{where} lies outside the file")
    told = about.get(_STATISTICS, {})
    complete = told.get(_NULLS) == 0 and bool(told.get(_SMALLEST))
    return Chunk(packed, unpacked, complete, _coded(about, rows))


def _coded(about: dict[int, Any], rows: int) -> bool:
    """Whether no page of a chunk gave up on its dictionary; pyarrow would make one of what it then finds, at twice the cost."""
    encodings = set(about[_ENCODINGS])
    if not encodings & _DICTIONARIES or encodings - _DICTIONARIES - _BESIDE:
        return False
    if _PAGES in about:
        return all(page[_PAGE_ENCODING] in _DICTIONARIES for page in about[_PAGES] if page[_PAGE_KIND] in _DATA)
    return bool(about[_UNPACKED] <= _CODE * rows + _DICTIONARY)


def decoded(path: str, content: bytes) -> dict[int, Any]:
    """A struct of Thrift's compact protocol: values by field id, structs as such dicts.

    Raises:
        FileRefused: it holds more than any sound footer. IndexError, ValueError, KeyError: it is broken.
    """
    try:
        return _Reader(content).struct(0)
    except _TooLarge as error:
        raise FileRefused(path, "too_large", "its footer lists too much") from error


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self._at, self._left = content, 0, _MOST

    def struct(self, depth: int) -> dict[int, Any]:
        content, number = self._content, 0
        fields: dict[int, Any] = {}
        self._left -= _STRUCT
        if self._left < 0:
            raise _TooLarge
        if depth > _DEEPEST:
            raise ValueError("structs stand too deep in each other")
        while True:
            head = content[self._at]
            self._at += 1
            kind = head & 15
            if not kind:
                return fields
            number = number + (head >> 4) if head >> 4 else self._whole()
            fields[number] = self._value(kind, depth) if kind > 2 else kind == 1

    def _varint(self) -> int:
        content, at = self._content, self._at
        byte = content[at]
        number, shift = byte & 127, 7
        while byte > 127:
            at += 1
            byte = content[at]
            number |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise ValueError("a number is too long")
        self._at = at + 1
        return number

    def _whole(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)

    def _bytes(self, size: int) -> bytes:
        start = self._at
        self._at += size
        if self._at > len(self._content):
            raise IndexError("a text goes beyond the end")
        return self._content[start : self._at]

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if kind in (4, 5, 6):
            return self._whole()
        if kind == 8:
            return self._bytes(self._varint())
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            head = self._bytes(1)[0]
            count, kind = head >> 4, head & 15
            if count == 15:
                count = self._varint()
            if count > self._left:
                raise _TooLarge
            return [self._value(kind, depth + 1) for _ in range(count)]
        if kind in (1, 2, 3):
            return self._bytes(1)[0]
        if kind == 7:
            return self._bytes(8)
        raise ValueError(f"a value is of kind {kind}")
