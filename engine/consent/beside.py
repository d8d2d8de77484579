"""What stands beside the audit log held against it: histories, tombstones, and what they amount to.

The log says of each place in the ledger what was done there: a call with so many lines under a receipt, an erasure, an import.
Every row must lie where the log tells of one, under a receipt that gives the log's digest and is itself made of the row; every
person's standing must be what their rows come to. What an erasure took away cannot be told from what somebody removed, as long as
an erasure came after it: the log names nobody. So many places are counted, and said.

People are read a range of keys at a time, places in windows: memory does not grow with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Table, and_, func, select

from engine.consent.contents import call_holds, digest_of, erasure_holds, import_text
from engine.consent.replay import STATE_COLUMNS
from engine.consent.replayed import differing
from engine.consent.tables import AUDIT, CHANGES, CURRENT, LEDGER, TOMBSTONES, stream
from engine.consent.told import BEFORE, CHANGED, ERASED, IMPORTED, NOT_TOLD, Told, read_told

_WINDOW = 1 << 22  # places of the ledger at a time, 70 bytes each
_ROWS = 1 << 15  # of each table at a time, or one person's
_COLUMNS = (
    "user_key", "sequence", "position", "purpose", "source", "covers", "granted", "preference", "notice_version", "actor",
    "request_id", "receipt_id", "imported", "recorded_at", "occurred_at",
)  # fmt: skip


@dataclass(slots=True)
class Beside:
    """What was held against the log. people: standings; changes, erasures: rows; receipts: that were made again from their
    rows, imports likewise; imports_thinned: of which an erasure took rows, so that the rest cannot be. gone: places whose rows
    are no longer there, each before an erasure. fault: the one furthest back; faults: how many; kinds: of
    each.
    """

    people: int = 0
    changes: int = 0
    erasures: int = 0
    receipts: int = 0
    imports: int = 0
    imports_thinned: int = 0
    gone: int = 0
    faults: int = 0
    fault: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    _first: float = field(default=float("inf"), repr=False)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def note(self, places: Any, what: str) -> None:
        """Count a fault at each of (N,) places of the ledger."""
        found = np.atleast_1d(np.asarray(places, np.int64))
        self.faults += len(found)
        if len(found):
            self.kinds[what] = self.kinds.get(what, 0) + len(found)
        if len(found) and (first := int(found.min())) < self._first:
            self._first, self.fault = first, f"at {first}: {what}"


@dataclass(slots=True, eq=False)
class _Window:
    """What was found at the places of one window, (W,) each."""

    told: Told
    calls: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    tombs: NDArray[np.uint32]


def check(connection: Connection) -> Beside:
    """Hold everything beside the log against it.

    Args:
        connection: in one transaction, in which the log was found whole.
    """
    found = Beside()
    try:
        _check(connection, found)
    except (ValueError, TypeError, AttributeError, OverflowError):
        # Not what it says: it may be of anything that somebody put in a column.
        found.note(0, "something there is of a kind that is never written there")
    return found


def _check(connection: Connection, found: Beside) -> None:
    head = int(connection.execute(select(LEDGER.c.sequence)).scalar_one())
    erasure = select(func.max(AUDIT.c.sequence)).where(AUDIT.c.action == "person_erased")
    last_erasure = int(connection.execute(erasure).scalar() or 0)
    told = None
    for low in range(0, max(head, 1), _WINDOW):
        told = read_told(connection, low, min(head, low + _WINDOW), found.note, told)
        window = _Window(told, *(np.zeros(len(told.kind), np.uint32) for _ in range(3)))
        for within in _ranges(connection):
            changes = _read(connection, CHANGES, within, [CHANGES.c[name] for name in _COLUMNS])
            tombs = _read(connection, TOMBSTONES, within, list(TOMBSTONES.c))
            _hold_changes(window, changes, found)
            _hold_tombstones(window, tombs, found)
            if low == 0:
                current = _read(connection, CURRENT, within, list(STATE_COLUMNS))
                found.people, found.changes = found.people + len(current), found.changes + len(changes)
                found.erasures += len(tombs)
                for places, what in differing(changes, tombs, current):
                    found.note(places, what)
                outside = [row[1] for row in changes if not 0 < row[1] <= head]
                outside += [row[1] for row in tombs if not 0 < row[1] <= head]
                found.note(outside, f"a row lies beyond the ledger, which stands at {head}")
        _hold_places(window, last_erasure, found)
        _hold_imports(window, found)


def _ranges(connection: Connection) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Ranges of keys, ends included, that hold at most so many rows of each table, or one person."""
    low: bytes | None = None
    while True:
        ends = []
        for table in (CHANGES, CURRENT, TOMBSTONES):
            asked = select(table.c.user_key).order_by(table.c.user_key).offset(_ROWS - 1).limit(1)
            end = connection.execute(asked if low is None else asked.where(table.c.user_key > low)).scalar()
            if end is not None:
                ends.append(bytes(end))
        high = min(ends, default=None)
        yield low, high
        if high is None:
            return
        low = high


def _read(
    connection: Connection, table: Table, within: tuple[bytes | None, bytes | None], columns: list[Any]
) -> list[tuple[Any, ...]]:
    low, high = within
    limits: list[ColumnElement[bool]] = []
    if low is not None:
        limits.append(table.c.user_key > low)
    if high is not None:
        limits.append(table.c.user_key <= high)
    asked = select(*columns).where(and_(True, *limits)).order_by(*table.primary_key.columns)
    return [tuple(row) for rows in stream(connection, asked) for row in rows]


def _hold_changes(window: _Window, rows: list[tuple[Any, ...]], found: Beside) -> None:
    """Each call of each person against what is told of its place."""
    told = window.told
    inside = [row for row in rows if told.low < row[1] <= told.high]
    if not inside:
        return
    place = np.array([row[1] for row in inside], np.int64) - told.low - 1
    first = np.ones(len(inside), bool)
    first[1:] = [(row[0], row[1]) != (other[0], other[1]) for row, other in zip(inside[1:], inside, strict=False)]
    starts = np.flatnonzero(first)
    np.add.at(window.rows, place, 1)
    np.add.at(window.calls, place[starts], 1)
    kinds = told.kind[place]
    at = np.array([row[13] for row in inside], np.int64)
    imported = np.array([bool(row[12]) for row in inside])
    known = (kinds == CHANGED) | (kinds == IMPORTED)
    found.note(
        place[known & (at != told.at[place])] + told.low + 1, "a row was recorded at another time than the log says"
    )
    found.note(
        place[known & (imported != (kinds == IMPORTED))] + told.low + 1,
        "a row and the log disagree on what was imported",
    )
    ends = np.append(starts[1:], len(inside))
    begun = place[starts]
    calls = zip(
        starts.tolist(), ends.tolist(), begun.tolist(), kinds[starts].tolist(), told.digest[begun].tolist(), strict=True
    )
    for start, end, where, kind, digest in calls:
        call = inside[start:end]
        if kind == CHANGED:
            receipt, sequence = call[0][11], call[0][1]
            if digest_of(receipt) != digest:
                found.note(sequence, "a receipt is not the one that the log tells of")
            elif not call_holds(call):
                found.note(sequence, "a row is not what its receipt was made of")
            elif call[0][9] != told.actor(where):
                found.note(sequence, "a row names another actor than the log")
            else:
                found.receipts += 1
        elif kind == IMPORTED:
            told.imports[told.lines[where]].took(import_text(call))


def _hold_tombstones(window: _Window, rows: list[tuple[Any, ...]], found: Beside) -> None:
    told = window.told
    begun: dict[tuple[bytes, str], tuple[Any, ...]] = {}
    for row in rows:
        key, sequence, _, receipt, actor, _ = row
        first = begun.setdefault((bytes(key), receipt), row)
        if not told.low < sequence <= told.high:
            continue
        where = sequence - told.low - 1
        window.tombs[where] += 1
        if told.kind[where] == BEFORE:
            continue
        if told.kind[where] != ERASED or digest_of(receipt) != told.digest[where]:
            found.note(sequence, "a tombstone is not the one that the log tells of")
        elif actor != told.actor(where):
            found.note(sequence, "a tombstone names another actor than the log")
        elif first is row and not erasure_holds(row):
            found.note(sequence, "a tombstone is not what its receipt was made of")
        else:
            found.receipts += 1


def _hold_places(window: _Window, last_erasure: int, found: Beside) -> None:
    """What lies at each place against what is told of it."""
    told, places = window.told, np.arange(window.told.low + 1, window.told.high + 1)
    kind, rows, tombs, calls = told.kind, window.rows, window.tombs, window.calls
    found.note(places[calls > 1], "two people's rows lie at one place")
    found.note(places[(kind == NOT_TOLD) & (rows + tombs > 0)], "a row lies where the log tells of nothing")
    found.note(places[(kind == ERASED) & (tombs != 1)], "the log tells of an erasure that has no tombstone")
    found.note(places[(kind == ERASED) & (rows > 0)], "a change lies where the log tells of an erasure")
    found.note(
        places[((kind == CHANGED) | (kind == IMPORTED)) & (tombs > 0)],
        "a tombstone lies where the log tells of a change",
    )
    gone = ((kind == CHANGED) | (kind == IMPORTED)) & (rows == 0)
    found.note(
        places[gone & (places > last_erasure)],
        "the log tells of a change that is not there, and no erasure came after it",
    )
    found.gone += int(np.count_nonzero(gone & (places < last_erasure)))
    found.note(
        places[(kind == CHANGED) & (rows > 0) & (rows != told.lines)],
        "a call has another number of lines than the log says",
    )


def _hold_imports(window: _Window, found: Beside) -> None:
    told, rows = window.told, window.rows
    for each in told.imports:
        mine = rows[max(0, each.first - told.low - 1) : each.last - told.low]
        each.rows, each.gone = each.rows + int(mine.sum()), each.gone + int(np.count_nonzero(mine == 0))
        if each.last > told.high:
            continue  # the rest lies in the next window
        if each.gone:
            found.imports_thinned += 1
            if each.rows > each.changes - each.gone:
                found.note(each.first, "an import has more rows than the log says")
        elif each.rows != each.changes:
            found.note(each.first, "an import has another number of rows than the log says")
        elif each.digest() != each.sha256:
            found.note(each.first, "an import's rows are not those that the log tells of")
        else:
            found.imports += 1
