"""A segment of the journal: frames of events, each with its length and checksum, behind a mark by which the next one is found.

What a crash or a bad sector leaves is passed over frame by frame: a frame is whole, or it is not there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from zlib import crc32

from engine.live.events import LiveEvent

_MARK = b"\xf5BJ1"  # 0xf5 stands in no UTF-8 text
_HEAD = struct.Struct("<4sII")
_values = attrgetter(*(each.name for each in fields(LiveEvent) if each.name != "key"))
MOST_BYTES = 16 << 20  # of a frame; a longer one is no frame


def framed(events: Sequence[LiveEvent]) -> bytes:
    """Some events as one frame."""
    rows = [(*_values(event), event.key.hex()) for event in events]
    payload = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    return _HEAD.pack(_MARK, len(payload), crc32(payload)) + payload


def whole_frames(path: Path) -> tuple[list[tuple[int, int]], int]:
    """Where the payloads of a segment lie, and where the last of them ends.

    Returns:
        (start, end) of each payload in the file; the end of the last whole frame.
    """
    content = path.read_bytes()
    found, at, end = [], 0, 0
    while (at := content.find(_MARK, at)) >= 0:
        start = at + _HEAD.size
        if start <= len(content):
            _, size, check = _HEAD.unpack_from(content, at)
            if size <= MOST_BYTES and start + size <= len(content) and crc32(content[start : start + size]) == check:
                found.append((start, start + size))
                at = end = start + size
                continue
        at += 1
    return found, end


def read(path: Path) -> Iterator[LiveEvent]:
    """The events of a segment, in the order in which they were taken."""
    content = path.read_bytes()
    for start, end in whole_frames(path)[0]:
        for *told, flags, category, key in json.loads(content[start:end]):
            yield LiveEvent(*[*told, tuple(flags), category, bytes.fromhex(key)])
