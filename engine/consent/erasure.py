"""Forgetting a person: what they decided is removed, and a tombstone says up to when nothing of them counts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from engine.consent import audit
from engine.consent.changes import Erasure, moment
from engine.consent.recording import others_of, salted_receipt, spent
from engine.consent.tables import CHANGES, PUT_CURRENT, SPENT, TOMBSTONES

MODEL_BOUND = timedelta(days=7)  # within which the weights are to be fitted again without the person


def erase_person(connection: Connection, key: bytes, actor: str, request_id: str, now: int) -> Erasure:
    """Take away a person's history and standing, under each of their linked ids, and set tombstones, whether or not the ledger
    knows them.

    A request id that was answered before changes nothing: a call sent again must not take what a person who returned has
    granted since. Otherwise the tombstone moves up to now; the receipt stays the first one's where nothing was recorded since.

    Args:
        connection: in a writing transaction.
        key: stable, 16 bytes.
        now: microseconds since the epoch.

    Returns:
        The receipt for the id itself; its sequence covers the others'.
    """
    head = audit.locked_head(connection)
    if request_id:
        earlier = _tombstones(connection, key)
        for row in earlier:
            if row.request_id == request_id:
                return _receipt(next(each for each in earlier if each.receipt_id == row.receipt_id))
    for other in others_of(connection, key):
        head, _ = _erase_id(connection, head, other, actor, "", now)
    return _erase_id(connection, head, key, actor, request_id, now)[1]


def _tombstones(connection: Connection, key: bytes) -> list[Any]:
    """Of an id, oldest first."""
    asked = select(TOMBSTONES).where(TOMBSTONES.c.user_key == key).order_by(TOMBSTONES.c.sequence)
    return list(connection.execute(asked).all())


def _erase_id(
    connection: Connection, head: audit.Head, key: bytes, actor: str, request_id: str, now: int
) -> tuple[audit.Head, Erasure]:
    earlier = _tombstones(connection, key)
    first = {row.receipt_id: row for row in reversed(earlier)}
    since = select(func.max(CHANGES.c.recorded_at)).where(CHANGES.c.user_key == key)
    last = connection.execute(since).scalar()  # what an erasure found is gone, so it is of what came after it
    # A clock that was set back must not leave anything after the tombstone.
    erased_at = max(now, last or 0, *(row.erased_at for row in earlier))
    sequence = head.sequence + 1
    fresh = not earlier or last is not None
    receipt = earlier[-1].receipt_id if earlier else ""
    if fresh:
        receipt = salted_receipt({"user_key": key.hex(), "sequence": sequence, "erased_at": erased_at, "actor": actor})
    tombstone = {
        "user_key": key,
        "sequence": sequence,
        "erased_at": erased_at,
        "receipt_id": receipt,
        "actor": actor,
        "request_id": request_id or None,
    }
    asked = select(CHANGES.c.request_id).where(CHANGES.c.user_key == key, CHANGES.c.request_id.is_not(None)).distinct()
    if requests := connection.execute(asked).scalars().all():
        connection.execute(insert(SPENT), [{"user_key": key, "digest": spent(each)} for each in requests])
    connection.execute(delete(CHANGES).where(CHANGES.c.user_key == key))
    connection.execute(insert(TOMBSTONES), tombstone)
    bare = {"user_key": key, "granted": "", "preference": 0, "sequence": sequence, "person": None}
    erased = bare | {"erased_at": erased_at, "erasure": sequence}
    connection.execute(PUT_CURRENT[connection.dialect.name].erased, erased)
    head = audit.append(connection, head, now, actor, "person_erased", {"receipt": audit.digest(receipt)}, sequence)
    return head, Erasure(receipt, moment(erased_at), sequence) if fresh else _receipt(first[receipt])


def _receipt(row: Any) -> Erasure:
    return Erasure(str(row.receipt_id), moment(row.erased_at), int(row.sequence))
