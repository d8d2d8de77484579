"""Everybody's consent at one sequence, in rows that a replica searches without the ledger, and the file that keeps them.

The file is a derived copy beside a server's cache: its processes map it, and share what is in memory. Whatever is wrong with it
has it made again from the ledger, so that nothing has to be durable.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.consent.changes import Held
from engine.consent.replay import State

_ROW = struct.Struct("<16sQBqqq16s")  # the fields of Held
_DTYPE = np.dtype(
    [("key", "S16"), ("granted", "<u8"), ("preference", "u1"), ("sequence", "<i8"), ("erased_at", "<i8"), ("erasure", "<i8"),
     ("person", "S16")]
)  # fmt: skip
_SIZE, _UNPACK, _NEW = _ROW.size, _ROW.unpack_from, tuple.__new__
_FIRST = struct.Struct(">Q").unpack_from
_HEADER = 4096  # bytes; rows begin here
_FORMAT = 2
_PIECE = 1 << 24  # bytes checked or written at a time
_ROWS = 1 << 16  # worked on at a time
_MOST_INDEX_BITS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the rows are of: the ledger's stable key, the vocabulary that gives the bits, and the ledger's place with the head
    of its audit log there.
    """

    stable_key: str
    vocabulary: str
    sequence: int
    audit_head: str


class People:
    """Rows of everybody, ascending by key. Threads share it; it never changes."""

    def __init__(self, rows: NDArray[np.void], origin: Origin) -> None:
        """
        Args:
            rows: (N,) as `rows_of` makes them.
        """
        self.rows = rows
        self.origin = origin
        self._buffer = rows.view(np.uint8).data
        # Keys are hashes, so their first bits say to about a row where one stands.
        bits = min(max(len(rows).bit_length(), 1), _MOST_INDEX_BITS)
        self._shift = 64 - bits
        starts = np.zeros((1 << bits) + 1, np.uint32)
        for piece in _pieces(len(rows)):
            keys = np.ascontiguousarray(rows["key"][piece]).view(">u8").reshape(-1, 2)
            buckets = (keys[:, 0] >> np.uint64(self._shift)).astype(np.int64)
            first, last = int(buckets[0]), int(buckets[-1])
            starts[first + 1 : last + 2] += np.bincount(buckets - first).astype(np.uint32)
        np.cumsum(starts, out=starts)
        self._starts = starts.data

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, key: bytes) -> Held | None:
        """What is kept of one person, by stable key.

        Raises:
            struct.error: the key has less than 8 bytes.
        """
        bucket = _FIRST(key)[0] >> self._shift
        for row in range(self._starts[bucket], self._starts[bucket + 1]):
            found = _UNPACK(self._buffer, row * _SIZE)
            if found[0] == key:
                return _NEW(Held, found)  # what Held._make does, in half the time
        return None

    def with_moved(self, moved: Collection[Held], origin: Origin) -> People:
        """These and others, who take the place of the same person's."""
        fresh = np.array([tuple(held) for held in moved], _DTYPE)
        fresh = fresh[np.argsort(fresh["key"])]
        made = np.empty(len(self.rows) + len(fresh), _DTYPE)
        size = begun = 0
        for piece in _pieces(len(self.rows)) or [slice(0, 0)]:
            rows = self.rows[piece].copy()
            last = piece.stop == len(self.rows)
            end = len(fresh) if last else begun + int(np.searchsorted(fresh["key"][begun:], rows["key"][-1], "right"))
            mine = fresh[begun:end]
            place = np.searchsorted(rows["key"], mine["key"])
            known = np.zeros(len(mine), bool)
            inside = place < len(rows)
            known[inside] = rows["key"][place[inside]] == mine["key"][inside]
            rows[place[known]] = mine[known]
            rows = np.insert(rows, place[~known], mine[~known])
            made[size : size + len(rows)] = rows
            size, begun = size + len(rows), end
        return People(made[:size], origin)

    def save(self, path: Path) -> None:
        """Write the file, readable by its owner alone; it appears under its name only when whole.

        Raises:
            OSError: the disk refuses.
        """
        head = {"format": _FORMAT, "people": len(self)} | asdict(self.origin)
        told = json.dumps(head, sort_keys=True).encode().ljust(_HEADER - 9)
        checksum = zlib.crc32(told)
        for start in range(0, len(self._buffer), _PIECE):
            checksum = zlib.crc32(self._buffer[start : start + _PIECE], checksum)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(f"{checksum:08x}\n".encode() + told)
                for start in range(0, len(self._buffer), _PIECE):
                    file.write(self._buffer[start : start + _PIECE])
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def _pieces(rows: int) -> list[slice]:
    """Rows a few at a time: NumPy keeps the interpreter to itself for as long as a step takes, and replies wait."""
    return [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]


def rows_of(state: State) -> NDArray[np.void]:
    """The rows of `People`, (N,)."""
    rows = np.empty(len(state.key), _DTYPE)
    for name in Held._fields:
        rows[name] = getattr(state, name)
    return rows


def load(path: Path) -> People:
    """Map a file and check all of it, at about a GB a second.

    Raises:
        OSError, ValueError: it is not there, or not what was written.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if len(mapped) < _HEADER:
        raise ValueError("it is cut off")
    buffer = memoryview(mapped)
    checksum = 0
    for start in range(9, len(buffer), _PIECE):
        checksum = zlib.crc32(buffer[start : start + _PIECE], checksum)
    if mapped[:9] != f"{checksum:08x}\n".encode():
        raise ValueError("its checksum is another")
    head = json.loads(mapped[9:_HEADER])
    if head.pop("format") != _FORMAT:
        raise ValueError("it is of another format")
    count = head.pop("people")
    rows = np.frombuffer(buffer, _DTYPE, offset=_HEADER)
    if len(rows) != count:
        raise ValueError(f"it has {len(rows)} people, its head says {count}")
    return People(rows, Origin(**head))
