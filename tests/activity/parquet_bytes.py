"""Parquet files taken apart and put together again, so that any byte of them can lie.

A struct of Thrift's compact protocol is a list of fields [id, type, value]; a list is (type of its elements, elements).
"""

from __future__ import annotations

import copy
import io
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Fields = list[list[Any]]
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
WHOLE = (I16, I32, I64)
# Field ids of parquet.thrift.
SCHEMA, ROWS, GROUPS, KEYS_AND_VALUES = 2, 3, 4, 5  # of the footer
COLUMNS, GROUP_ROWS = 1, 3  # of a row group
OFFSET, ABOUT = 2, 3  # of a column chunk
VALUES, UNPACKED, PACKED, DATA_AT, INDEX_AT, DICTIONARY_AT = 5, 6, 7, 9, 10, 11  # of what is about it
PAGE_UNPACKED, PAGE_PACKED, PAGE_CRC, PAGE_DATA, PAGE_DICTIONARY, PAGE_DATA_2 = 2, 3, 4, 5, 7, 8  # of a page header

PLAIN = {"use_dictionary": False, "compression": "none"}
CHUNK = (GROUPS, 0, COLUMNS, 0, ABOUT)  # of `file_of`, the way to its first column


def written(table: pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def file_of(rows: int = 1000, **how: Any) -> bytes:
    return written(pa.table({"x": [f"name {row}" for row in range(rows)], "y": list(range(rows))}), **how)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _zigzag(number: int) -> bytes:
    return varint(((number << 1) ^ (number >> 63)) & (1 << 64) - 1)


class _Cursor:
    def __init__(self, content: bytes, at: int = 0) -> None:
        self.content, self.at = content, at

    def byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def take(self, count: int) -> bytes:
        self.at += count
        return self.content[self.at - count : self.at]

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    def whole(self) -> int:
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def value(self, kind: int, inside: bool = False) -> Any:
        if kind in (TRUE, FALSE):
            return self.byte() == TRUE if inside else kind == TRUE
        if kind == BYTE:
            return self.byte()
        if kind in WHOLE:
            return self.whole()
        if kind == DOUBLE:
            return struct.unpack("<d", self.take(8))[0]
        if kind == BINARY:
            return self.take(self.varint())
        if kind in (LIST, SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            return head & 15, [self.value(head & 15, True) for _ in range(count)]
        assert kind == STRUCT, kind
        return self.struct()

    def struct(self) -> Fields:
        fields: Fields = []
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.whole()
            fields.append([number, head & 15, self.value(head & 15)])
        return fields


def decoded(content: bytes, at: int = 0) -> tuple[Fields, int]:
    """A struct and where it ends."""
    cursor = _Cursor(content, at)
    return cursor.struct(), cursor.at


def _value(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return bytes([TRUE if value else FALSE])
    if kind == BYTE:
        return bytes([value & 255])
    if kind in WHOLE:
        return _zigzag(value)
    if kind == DOUBLE:
        return struct.pack("<d", value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind in (LIST, SET):
        inner, values = value
        head = bytes([len(values) << 4 | inner]) if len(values) < 15 else bytes([240 | inner]) + varint(len(values))
        return head + b"".join(_value(inner, each) for each in values)
    return encoded(value)


def encoded(fields: Fields) -> bytes:
    out, last = bytearray(), 0
    for number, kind, value in fields:
        if kind in (TRUE, FALSE):
            kind = TRUE if value else FALSE
        step = number - last
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _zigzag(number)
        out += b"" if kind in (TRUE, FALSE) else _value(kind, value)
        last = number
    return bytes(out) + b"\0"


def field(fields: Fields, *numbers: int) -> list[Any]:
    """The field at a path of ids; a number after a list is a place in it."""
    found: list[Any] = [0, STRUCT, fields]
    for number in numbers:
        if found[1] == STRUCT:
            found = next(each for each in found[2] if each[0] == number)
        else:
            found = [0, found[2][0], found[2][1][number]]
    return found


def has(fields: Fields, number: int) -> bool:
    return any(each[0] == number for each in fields)


def closed(body: bytes, footer: bytes) -> bytes:
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def split(content: bytes) -> tuple[bytes, Fields]:
    """What lies before the footer, and the footer."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:start], decoded(content, start)[0]


@dataclass
class Page:
    header: Fields
    body: bytes


@dataclass
class Taken:
    """A file taken apart: pages[row group][column]."""

    footer: Fields
    pages: list[list[list[Page]]]

    @classmethod
    def apart(cls, content: bytes) -> Taken:
        body, footer = split(content)
        pages = []
        for group in field(footer, GROUPS)[2][1]:
            pages.append([])
            for column in field(group, COLUMNS)[2][1]:
                about = field(column, ABOUT)[2]
                at = field(about, DATA_AT)[2]
                at = min(at, field(about, DICTIONARY_AT)[2]) if has(about, DICTIONARY_AT) else at
                end = at + field(about, PACKED)[2]
                pages[-1].append([])
                while at < end:
                    header, start = decoded(body, at)
                    at = start + field(header, PAGE_PACKED)[2]
                    pages[-1][-1].append(Page(header, body[start:at]))
        return cls(footer, pages)

    def together(self) -> bytes:
        """The bytes, with offsets and packed sizes as they then are; all other numbers as they stand."""
        footer, body = copy.deepcopy(self.footer), bytearray(b"PAR1")
        for group, columns in zip(field(footer, GROUPS)[2][1], self.pages, strict=True):
            for column, pages in zip(field(group, COLUMNS)[2][1], columns, strict=True):
                about, start = field(column, ABOUT)[2], len(body)
                column[:] = [each for each in column if each[0] in (OFFSET, ABOUT)]  # page indexes would lie elsewhere
                leading = int(bool(pages) and has(pages[0].header, PAGE_DICTIONARY))
                for place, page in enumerate(pages):
                    if place == leading:
                        field(about, DATA_AT)[2] = len(body)
                    elif place == 0 and has(about, DICTIONARY_AT):
                        field(about, DICTIONARY_AT)[2] = len(body)
                    body += encoded(page.header) + page.body
                field(about, PACKED)[2] = len(body) - start
        return closed(bytes(body), encoded(footer))


def edited(content: bytes, value: Any, *numbers: int) -> bytes:
    """The file with one number or text of its footer changed."""
    body, footer = split(content)
    field(footer, *numbers)[2] = value
    return closed(body, encoded(footer))
