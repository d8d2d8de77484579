"""Events in one order that depends on nothing but the events: sorted, each once, and no more than a person may have.

An event is a row of the arrays of `Events`. This is for a part of the log; `merge` puts the parts of a bucket in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # places of events
_TIES = ("item", "event", "source", "gift", "value", "mark")  # what decides between events of one person and moment
_BITS = 62


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """N events; person codes follow the order of the user keys, item codes that of the item ids.

    mark: names the event among the person's: the hash of its event_id, or of the whole row where it has none.
    """

    person: NDArray[np.int32]
    item: NDArray[np.int32]
    event: NDArray[np.uint8]
    ts: NDArray[np.int64]
    value: NDArray[np.float64]  # NaN: none
    source: NDArray[np.uint8]
    gift: NDArray[np.bool_]
    mark: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, rows: Rows | NDArray[np.bool_]) -> Events:
        """Some of the events."""
        return Events(**{name: getattr(self, name)[rows] for name in Events.__slots__})

    def only(self, kept: NDArray[np.bool_]) -> Events:
        """Those that are kept; as a rule all of them."""
        return self if kept.all() else self.take(kept)

    @staticmethod
    def concat(parts: list[Events]) -> Events:
        """The events of several."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Events.__slots__}
        return Events(**columns)

    @staticmethod
    def none() -> Events:
        """No event."""
        kinds = (np.int32, np.int32, np.uint8, np.int64, np.float64, np.uint8, np.bool_, np.uint64)
        empty: dict[str, Any] = {name: np.empty(0, kind) for name, kind in zip(Events.__slots__, kinds, strict=True)}
        return Events(**empty)


def settled_order(events: Events) -> Events:
    """The events by person, time, and what else there is of them; events that tie in all of it are alike."""
    if len(events) < 2:
        return events
    person, ts = events.person, events.ts
    first, last = int(ts.min()), int(ts.max())
    width = max(1, (last - first).bit_length())
    if width + int(person.max()).bit_length() <= _BITS:
        code = (person.astype(np.int64) << width) | (ts - first)
    else:  # centuries and millions of people at once
        code = _moments(person, ts)
    order = np.argsort(code)
    code = code[order]
    level = np.diff(code) == 0
    if level.any():
        tied = np.zeros(len(code), bool)
        tied[1:] |= level
        tied[:-1] |= level
        rows = np.flatnonzero(tied)
        source = order[rows]
        keys = [getattr(events, name)[source] for name in reversed(_TIES)]
        order[rows] = source[np.lexsort((*keys, code[rows]))]
    return events.take(order)


def _moments(person: NDArray[np.int32], ts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes that are equal and ordered as the pairs are."""
    order = np.lexsort((ts, person))
    new = np.ones(len(ts), np.int64)
    new[1:] = (person[order][1:] != person[order][:-1]) | (ts[order][1:] != ts[order][:-1])
    code = np.empty(len(ts), np.int64)
    code[order] = np.cumsum(new)
    return code


def different(events: Events) -> Events:
    """Events in settled order without those that are, in all that is known of them, the one before."""
    if len(events) < 2:
        return events
    kept = np.zeros(len(events), bool)
    kept[0] = True
    for name in ("mark", "ts", "person", "item", "event", "source", "gift"):
        column = getattr(events, name)
        kept[1:] |= column[1:] != column[:-1]
    value = events.value.view(np.int64)  # by its bits: NaN is none, and one none is as another
    kept[1:] |= value[1:] != value[:-1]
    return events.only(kept)


def latest(events: Events, group: NDArray[np.integer], keep: int) -> NDArray[np.bool_]:
    """(N,) which of the events, in settled order, are among the latest `keep` of their person and group.

    Args:
        group: (N,) small codes, from 0.
    """
    kept = np.ones(len(events), bool)
    flooded = np.bincount(events.person) > keep
    if not flooded.any():
        return kept
    rows = np.flatnonzero(flooded[events.person])
    code = events.person[rows].astype(np.int64) * (int(group.max()) + 1) + group[rows]
    order = np.argsort(code, kind="stable")
    _, sizes = np.unique(code, return_counts=True)
    behind = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(rows))  # 1: the last of its group
    kept[rows[order[behind > keep]]] = False
    return kept


def order_of_keys(keys: NDArray[np.bytes_]) -> tuple[Rows, NDArray[np.bool_]]:
    """A stable order of (N,) S16 user keys, and which of the ordered ones differ from those before them."""
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2).astype(np.uint64)
    order = np.argsort(halves[:, 0], kind="stable")
    high, low = halves[order].T
    new = np.ones(len(keys), bool)
    new[1:] = high[1:] != high[:-1]
    if (~new[1:] & (low[1:] != low[:-1])).any():  # keys that begin alike: once in ages
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        high, low = halves[order].T
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return order, new
