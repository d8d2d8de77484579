"""Today's state: what each person did lately, which the very next list looks at; and what every store of it promises.

It is a view of the journal: losing it loses nothing, and replaying the journal makes it again. It holds pseudonymous keys,
item ids, sources and times, and of an event's id 8 bytes of keyed BLAKE2b (RFC 7693); never a user id.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from struct import Struct
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.live.events import LiveEvent
from engine.schema import EVENTS

DIGEST = 8
NEVER_OLD = 2**63 - 1
CHUNK = 100  # events that are taken at once: nobody waits longer than for these
IMPRESSION = EVENTS.index("impression")
_FIELDS = [("ts", "<i8"), ("received", "<i8"), ("value", "<f8"), ("event", "u1"), ("gift", "?")]
# One row: the fixed part, and behind it the texts of item, source and category, whose bytes it counts.
HEAD = np.dtype([*_FIELDS, ("item", "<u2"), ("source", "u1"), ("category", "<u2")])
_HEAD: Final = Struct("<qqdB?HBH")
_pack, _unpack = _HEAD.pack, _HEAD.iter_unpack
_Row = tuple[int, int, int, float, bool, str, str, str]  # ts, received, event, value, gift, item, source, category
_when: Final = itemgetter(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Today:
    """What one person did lately: rows in the order of `ts`, oldest first; columns of (n,), read-only.

    Args:
        items: ids; '' where a category alone was dismissed.
        events: codes of schema.EVENTS.
        ts, received: microseconds since the epoch.
        counts: 1, and of impressions how many: those of one item from one source are one row, at the time of the latest.
        values: NaN: none.
        gifts: whether it was flagged as a gift.
        categories: what was dismissed; '': none named.
        version: of 16 bytes; equal where all of the above is equal.
    """

    items: tuple[str, ...]
    events: NDArray[np.uint8]
    ts: NDArray[np.int64]
    received: NDArray[np.int64]
    counts: NDArray[np.int32]
    sources: tuple[str, ...]
    values: NDArray[np.float64]
    gifts: NDArray[np.bool_]
    categories: tuple[str, ...]
    version: bytes

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a store holds in this process; `bytes` is reckoned, within a tenth or so."""

    people: int
    events: int
    anonymous: int
    bytes: int


class TodayStore(Protocol):
    """What the server asks of a store. It may be called by several threads at once, and raises nothing."""

    def add(self, events: Sequence[LiveEvent]) -> list[bool]:
        """Take events. False: the same person's event of the same id is there already, and counts once.

        Of two threads, or replicas, that bring the same event, one is told True. An event that is older than the store
        keeps is not held, and is told True.
        """

    def known(self, events: Sequence[LiveEvent]) -> list[bool]:
        """Which of them are there already."""

    def of(self, keys: Sequence[bytes]) -> Today:
        """What was done under any of these keys; a person's events may lie under several."""

    def forget(self, keys: Sequence[bytes]) -> None:
        """Drop all that is held of erased people. Who replays the journal leaves them out."""

    def trim(self, now_us: int) -> None:
        """Free a part of what is too old, within a few milliseconds; to be called again and again."""

    def figures(self) -> Figures: ...

    def close(self) -> None: ...


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def digest_of(event: LiveEvent) -> bytes:
    """What is remembered of the id of an event: keyed by its person, so that it tells nothing elsewhere."""
    return hashlib.blake2b(event.event_id.encode(), digest_size=DIGEST, key=event.key).digest()


def packed(event: LiveEvent) -> tuple[bytes, bytes]:
    """The fixed part of a row, and its texts."""
    item, source, category = event.item_id.encode(), event.source.encode(), event.category.encode()
    value = float("nan") if event.value is None else event.value
    sizes = len(item), len(source), len(category)
    return _pack(event.ts, event.received, value, event.event, "gift" in event.flags, *sizes), item + source + category


def chunks(events: Sequence[LiveEvent]) -> Iterator[Sequence[LiveEvent]]:
    """Runs of at most CHUNK."""
    return (events[at : at + CHUNK] for at in range(0, len(events), CHUNK))


def unpacked(heads: bytes, texts: bytes, since: int) -> tuple[Today, int]:
    """Rows in the order in which they came, as columns, and the oldest `received` among them.

    Args:
        since: what was received before that is left out.
    """
    rows: list[_Row] = []
    end, oldest = 0, NEVER_OLD
    for ts, received, value, event, gift, item, source, category in _unpack(heads):
        start, middle = end, end + item
        last = middle + source
        end = last + category
        if received >= since:
            oldest = min(oldest, received)
            # What was packed here decodes; what somebody else left in Redis must not raise.
            item_id = texts[start:middle].decode("utf-8", "replace")
            named = texts[middle:last].decode("utf-8", "replace"), texts[last:end].decode("utf-8", "replace")
            rows.append((ts, received, event, value, gift, item_id, *named))
    rows.sort(key=_when)
    counts = [1] * len(rows)
    shown: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows):
        if row[2] == IMPRESSION:
            before = shown.get(row[5:7])
            if before is not None:
                counts[place] += counts[before]
                counts[before] = 0
            shown[row[5:7]] = place
    if 0 in counts:
        rows = [row for row, count in zip(rows, counts, strict=True) if count]
        counts = [count for count in counts if count]
    return _columns(rows, counts), oldest


def _columns(rows: list[_Row], counts: list[int]) -> Today:
    columns: tuple[tuple[Any, ...], ...] = tuple(zip(*rows, strict=True)) if rows else ((),) * 8
    ts, received, event, value, gift, items, sources, categories = columns
    arrays = (
        np.array(event, np.uint8),
        np.array(ts, np.int64),
        np.array(received, np.int64),
        np.array(counts, np.int32),
        np.array(value, np.float64),
        np.array(gift, np.bool_),
    )
    for array in arrays:
        array.flags.writeable = False
    told = b"".join([array.tobytes() for array in arrays]) + repr(columns[5:]).encode()
    version = hashlib.blake2b(told, digest_size=16).digest()
    return Today(items, *arrays[:4], sources, *arrays[4:], categories, version)


class Made:
    """Answers that were made, the latest of them, for as long as nothing in them changes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[bytes, ...], tuple[object, int, Today]] = OrderedDict()

    def find(self, keys: tuple[bytes, ...], mark: object, since: int) -> Today | None:
        """The answer for these keys, if it was made of the same content, and nothing of it is too old by now."""
        with self._lock:
            found = self._answers.get(keys)
            if found is None or found[0] != mark or found[1] < since:
                return None
            self._answers.move_to_end(keys)
            return found[2]

    def keep(self, keys: tuple[bytes, ...], mark: object, oldest: int, answer: Today) -> None:
        with self._lock:
            self._answers[keys] = mark, oldest, answer
            self._answers.move_to_end(keys)
            if len(self._answers) > self._room:
                self._answers.popitem(last=False)

    def drop(self, gone: Callable[[tuple[bytes, ...], int], bool]) -> None:
        """Free the answers of which gone(keys, oldest) is true."""
        with self._lock:
            for keys in [keys for keys, (_, oldest, _) in self._answers.items() if gone(keys, oldest)]:
                del self._answers[keys]
