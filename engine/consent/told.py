"""What the audit log tells of each place of the ledger, a window of places at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from engine.consent.tables import AUDIT, stream

NOT_TOLD, CHANGED, ERASED, IMPORTED, BEFORE = range(5)  # BEFORE: the log begins only after it
_CALL = r'^\{"lines":(?P<lines>[1-9][0-9]{0,8}),"receipt":"(?P<receipt>[0-9a-f]{32})"\}$'
_ERASURE = r'^\{"receipt":"(?P<receipt>[0-9a-f]{32})"\}$'
Note = Callable[[Any, str], None]


@dataclass(slots=True, eq=False)
class Import:
    """One import: the places from first to last, one a person; and what is found of it, in the order of the places."""

    first: int
    last: int
    changes: int
    sha256: str
    rows: int = 0
    gone: int = 0
    _read: Any = field(default_factory=hashlib.sha256)

    def took(self, text: bytes) -> None:
        """Rows of the next person."""
        self._read.update(text)

    def digest(self) -> str:
        """Over all of them."""
        return str(self._read.hexdigest())


@dataclass(slots=True, eq=False)
class Told:
    """What is told of the places above `low` up to `high`, (W,) each.

    kind: what was done there. lines: of a call; of an import its row of `imports`. digest: of the receipt, 32 hex digits.
    at: microseconds since the epoch.
    """

    low: int
    high: int
    kind: NDArray[np.uint8]
    lines: NDArray[np.uint32]
    digest: NDArray[np.bytes_]
    at: NDArray[np.int64]
    imports: list[Import]
    _actor: NDArray[np.int32]
    _actors: list[str]

    def actor(self, place: int) -> str:
        """Who did it."""
        return self._actors[int(self._actor[place])]


def read_told(connection: Connection, low: int, high: int, note: Note, before: Told | None = None) -> Told:
    """Read what is told of the places above `low` up to `high`; a row that cannot be is noted.

    Args:
        connection: in the transaction in which the log was found whole: its sequences ascend.
        before: of the places up to `low`: an import that began there goes on here.
    """
    size = high - low
    made = Told(
        low, high, np.zeros(size, np.uint8), np.zeros(size, np.uint32), np.zeros(size, "S32"), np.zeros(size, np.int64),
        [each for each in before.imports if each.last > low] if before else [], np.zeros(size, np.int32), [],
    )  # fmt: skip
    actors: dict[str, int] = {}
    came = select(func.max(AUDIT.c.sequence)).where(AUDIT.c.sequence <= low)
    last = int(connection.execute(came).scalar() or 0)
    columns = (AUDIT.c.sequence, AUDIT.c.action, AUDIT.c.actor, AUDIT.c.at, AUDIT.c.detail)
    asked = select(*columns).where(AUDIT.c.sequence > low).order_by(AUDIT.c.sequence)
    with closing(cast(Generator[Sequence[Any], None, None], stream(connection, asked))) as batches:
        for rows in batches:
            sequence = np.array([row[0] for row in rows], np.int64)
            begins = np.append(last, sequence[:-1])
            last = int(sequence[-1])
            action = np.array([row[1] for row in rows])
            who = np.array([actors.setdefault(row[2], len(actors)) for row in rows], np.int32)
            at = np.array([row[3] for row in rows], np.int64)
            details = pa.array([row[4] for row in rows], pa.string())
            for name, kind, form in (("consent_changed", CHANGED, _CALL), ("person_erased", ERASED, _ERASURE)):
                mine = np.flatnonzero((action == name) & (sequence <= high))
                said = pc.extract_regex(details.take(pa.array(mine)), form)
                well = said.is_valid().to_numpy(zero_copy_only=False) & (sequence[mine] == begins[mine] + 1)
                note(sequence[mine[~well]], f"the log's {name} tells what no such row does")
                mine, said = mine[well], said.filter(pa.array(well))
                place = sequence[mine] - low - 1
                made.kind[place], made.at[place], made._actor[place] = kind, at[mine], who[mine]
                made.digest[place] = np.array(said.field("receipt").to_pylist(), "S32")
                if kind == CHANGED:
                    made.lines[place] = said.field("lines").cast(pa.uint32()).to_numpy()
            for row in np.flatnonzero(~np.isin(action, ("consent_changed", "person_erased"))).tolist():
                _bulk(made, str(action[row]), int(begins[row]), int(sequence[row]), int(at[row]), rows[row][4], note)
            if last >= high:
                # One row may still reach into the window from beyond it: it was among these, as it is the first beyond.
                break
    made._actors = list(actors)
    return made


def _bulk(made: Told, action: str, begins: int, ends: int, at: int, detail: str, note: Note) -> None:
    """A row that tells of many places at once."""
    if begins >= made.high:
        return
    place = slice(max(begins, made.low) - made.low, min(ends, made.high) - made.low)
    if action == "format_raised" and not begins:
        made.kind[place] = BEFORE
        return
    said = json.loads(detail)
    if action != "consent_imported" or said.get("people") != ends - begins:
        note(begins + 1, f"the log's {action} tells what no such row does")
        return
    if begins >= made.low:  # else it goes on
        made.imports.append(Import(begins + 1, ends, int(said["changes"]), str(said["sha256"])))
    number = next(row for row, each in enumerate(made.imports) if each.last == ends)
    made.kind[place], made.at[place], made.lines[place] = IMPORTED, at, number
