"""The audit log: who did what to consent and to what is served, each row chained to the one before by its hash.

A row names nobody. A change of consent stands in it by its place in the ledger and by a digest of its receipt, which is
salted: once the person is erased, nothing here leads back to them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from engine.consent.changes import moment
from engine.consent.tables import AUDIT, LEDGER, stream
from engine.errors import ConsentError

_ACTION = re.compile(r"[a-z][a-z_]{0,63}")
_MOST = 1 << 16  # characters of a detail
_ROW = ("number", "at", "actor", "action", "sequence", "detail", "previous")
# Built once: that takes longer than running them.
_LOCK = select(LEDGER.c.sequence, LEDGER.c.audited, LEDGER.c.audit_head).with_for_update()
_ADD = insert(AUDIT)
_MOVE = update(LEDGER).values({name: bindparam(f"to_{name}") for name in ("sequence", "audited", "audit_head")})


@dataclass(frozen=True, slots=True)
class Head:
    """How far the ledger and its audit log have come."""

    sequence: int
    number: int  # rows of the audit log
    hash: str  # of the last one; empty before the first


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One row of the log."""

    number: int
    at: datetime
    actor: str
    action: str
    sequence: int | None  # where the ledger came to with it
    detail: str  # canonical JSON
    hash: str


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """What a check of the whole chain found.

    rows: that are sound, from the first on. head: the last one's hash. fault: what is wrong after them, or ''. missing: those
    of the heads asked for that no sound row has.
    """

    rows: int
    head: str
    fault: str
    missing: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.fault and not self.missing


def canonical(detail: Mapping[str, Any]) -> str:
    """A detail as JSON, the same text for the same content.

    Raises:
        ConsentError: it is no JSON, or too long.
    """
    try:
        told = json.dumps(detail, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConsentError(f"A detail of the audit log is no JSON: {error}.", "Pass plain values.") from error
    if len(told) > _MOST:
        raise ConsentError(f"A detail of the audit log has {len(told)} characters.", f"Keep it under {_MOST}.")
    return told


def checked_action(action: str, actor: str) -> None:
    """Refuse a name that is none.

    Raises:
        ConsentError: the action is no word such as snapshot_promoted, or the actor is empty or no Unicode.
    """
    if not _ACTION.fullmatch(action):
        raise ConsentError(f"{action!r} is no action for the audit log.", "Use a word such as snapshot_promoted.")
    if not actor.strip() or not actor.isprintable():
        raise ConsentError(f"{actor!r} is no actor for the audit log.", "Say who did it, in plain text.")


def locked_head(connection: Connection) -> Head:
    """Where the ledger stands; no other writer moves it until this transaction ends."""
    sequence, number, last = connection.execute(_LOCK).one()
    return Head(int(sequence), int(number), str(last))


def sequence(connection: Connection) -> int:
    """The number of the last call recorded; waits for no writer."""
    return int(connection.execute(select(LEDGER.c.sequence)).scalar_one())


def append(
    connection: Connection,
    head: Head,
    at: int,
    actor: str,
    action: str,
    detail: Mapping[str, Any],
    sequence: int | None = None,
) -> Head:
    """Add a row, and move the ledger on where a sequence is given.

    Args:
        connection: in a writing transaction.
        head: from `locked_head` in this transaction; not to be used again after this.
        at: microseconds since the epoch.
        sequence: where the ledger has come to with what is told; None where it did not move.

    Returns:
        Where both stand now.
    """
    row = (head.number + 1, at, actor, action, sequence, canonical(detail), head.hash)
    made = _hash(row)
    connection.execute(_ADD, dict(zip(_ROW, row, strict=True)) | {"hash": made})
    to = head.sequence if sequence is None else sequence
    connection.execute(_MOVE, {"to_sequence": to, "to_audited": head.number + 1, "to_audit_head": made})
    return Head(to, head.number + 1, made)


def head_at(connection: Connection, sequence: int | None) -> str:
    """The hash of the last row; or of the last that moved the ledger, up to a sequence. '' where there is none.

    The second stays the same whatever happens later, so that a night that is run again finds it again.
    """
    if sequence is None:
        return str(connection.execute(select(LEDGER.c.audit_head)).scalar_one())
    up_to = select(AUDIT.c.hash).where(AUDIT.c.sequence <= sequence).order_by(AUDIT.c.sequence.desc()).limit(1)
    return str(connection.execute(up_to).scalar() or "")


def last_rows(connection: Connection, count: int) -> list[AuditRow]:
    """The last rows, oldest first."""
    rows = connection.execute(select(AUDIT).order_by(AUDIT.c.number.desc()).limit(count)).all()
    return [
        AuditRow(row.number, moment(row.at), row.actor, row.action, row.sequence, row.detail, row.hash)
        for row in reversed(rows)
    ]


def verify(connection: Connection, heads: Sequence[str]) -> AuditCheck:
    """Read the whole chain, in bounded memory, up to its first fault.

    Args:
        connection: in one transaction.
        heads: hashes that must be in it, as manifests recorded them; empty ones are of nights before the first row.
    """
    rows, last, moved = 0, "", 0
    wanted = {head for head in heads if head}
    statement = select(*(AUDIT.c[name] for name in _ROW), AUDIT.c.hash).order_by(AUDIT.c.number)
    fault = ""
    for batch in stream(connection, statement):
        for *told, found in batch:
            number, sequence, previous = told[0], told[4], told[6]
            if number != rows + 1:
                fault = f"row {rows + 1} is missing, row {number} comes in its place"
            elif previous != last:
                fault = f"row {number} does not follow row {rows}: it or the one before was replaced or moved"
            elif found != _hash(tuple(told)):
                fault = f"row {number} was changed: its content does not give its hash"
            elif sequence is not None and sequence <= moved:
                fault = f"row {number} takes the ledger from {moved} back to {sequence}"
            if fault:
                break
            rows, last, moved = number, found, moved if sequence is None else sequence
            wanted.discard(found)
        if fault:
            break
    ledger = connection.execute(select(LEDGER.c.sequence, LEDGER.c.audited, LEDGER.c.audit_head)).one()
    if not fault and (rows, last) != (ledger.audited, ledger.audit_head):
        fault = f"it ends at row {rows}, the ledger says that it has {ledger.audited}: its end was cut off or replaced"
    if not fault and moved != ledger.sequence:
        fault = f"it tells of changes up to {moved}, the ledger stands at {ledger.sequence}"
    return AuditCheck(rows, last, fault, tuple(sorted(wanted)))


def digest(receipt_id: str) -> str:
    """What the log says of a receipt: whoever holds the receipt finds its row, and nobody else."""
    return hashlib.sha256(receipt_id.encode()).hexdigest()[:32]


def _hash(row: tuple[Any, ...]) -> str:
    # A type that no row was written with gives another hash, and so a fault with the row's number.
    return hashlib.sha256(json.dumps(row, separators=(",", ":"), default=repr).encode()).hexdigest()
