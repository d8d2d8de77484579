"""What one call writes: its lines, what they amount to, and its row of the audit log, all in one transaction."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from engine.consent import audit
from engine.consent.changes import LINKED, Change, Recorded, advance, effect_of, holds, in_force_order
from engine.consent.tables import CHANGES, CURRENT, PUT_CURRENT, SPENT
from engine.consent.vocabulary import CROSS_SOURCE
from engine.errors import ConsentError

# Built once: that takes longer than running them.
_ADD = insert(CHANGES)
_STATE = select(CURRENT.c.granted, CURRENT.c.preference, CURRENT.c.person).where(CURRENT.c.user_key == bindparam("key"))
_OTHERS = select(CURRENT.c.user_key).where(
    CURRENT.c.person == bindparam("person"), CURRENT.c.user_key != bindparam("key")
)
_BELONG = update(CURRENT).where(CURRENT.c.user_key == bindparam("key")).values(person=bindparam("to_person"))
_ASKED = select(CHANGES).where(CHANGES.c.user_key == bindparam("key"), CHANGES.c.request_id == bindparam("asked"))
_IS_SPENT = select(SPENT.c.digest).where(SPENT.c.user_key == bindparam("key"), SPENT.c.digest == bindparam("digest"))
_SAID = ("purpose", "source", "granted", "preference")


def lines_of(
    changes: Sequence[Change], preference: int | None, sources: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a call in the order in which they take effect, and the effects of its changes.

    Args:
        sources: what a grant for all sources extends to.
    """
    every = " ".join(sources)
    lines: list[dict[str, Any]] = []
    effects: list[str] = []
    for change in in_force_order(changes):
        covers = "" if change.source or not change.granted else every
        effects.append(effect_of(change.purpose, change.source, change.granted, covers))
        lines.append(line_of(change.purpose, change.source, change.granted, covers or None))
    if preference is not None:
        lines.append(line_of("", "", False, preference=preference))
    return lines, effects


def record_lines(
    connection: Connection,
    lines: Sequence[dict[str, Any]],
    effects: Sequence[str],
    about: Mapping[str, Any],
    retired: Mapping[Change, ConsentError],
) -> Recorded:
    """Append a call, unless its request id was answered before: to each of the ids that this one is linked with, and last to it.

    Args:
        retired: withdrawals of names that the vocabulary does not have, each with the error where the person does not hold it.
        connection: in a writing transaction.
        lines: from `lines_of`, as are the effects.
        about: what all lines share: user_key, notice_version, actor, request_id, recorded_at, occurred_at.

    Returns:
        Of the id's own call; its sequence covers the others'.

    Raises:
        ConsentError: the request id was used for something else, or before the person was erased.
    """
    key, head = about["user_key"], audit.locked_head(connection)
    if about["request_id"]:
        before = asked_before(connection, key, about["request_id"])
        if before:
            return _same_answer(before, lines, about["request_id"])
    state, _, person = connection.execute(_STATE, {"key": key}).one_or_none() or ("", 0, None)
    for change, error in retired.items():
        if not holds(state, change):  # a name that was mistyped would be acknowledged, and withdraw nothing
            raise error
    if person is None:
        return append_call(connection, head, about, lines, effects)[1]
    if any(line["purpose"] == CROSS_SOURCE and not line["granted"] for line in lines):
        lines = [*lines, line_of(LINKED, person.hex(), False)]  # what held the ids together is gone
    for other in others_of(connection, key):
        head, _ = append_call(connection, head, {**about, "user_key": other, "request_id": None}, lines, effects)
    return append_call(connection, head, about, lines, effects)[1]


def others_of(connection: Connection, key: bytes) -> list[bytes]:
    """The ids that one is linked with, in order; without itself."""
    _, _, person = connection.execute(_STATE, {"key": key}).one_or_none() or ("", 0, None)
    if person is None:
        return []
    return sorted(bytes(other) for other in connection.execute(_OTHERS, {"person": person, "key": key}).scalars())


def append_call(
    connection: Connection,
    head: audit.Head,
    about: Mapping[str, Any],
    lines: Sequence[dict[str, Any]],
    effects: Sequence[str],
) -> tuple[audit.Head, Recorded]:
    """Append a call of one id, whatever was recorded before; where the ledger stands then, and the answer.

    Args:
        head: from `locked_head` or the call before in this transaction.
    """
    key = about["user_key"]
    state, preference, _ = connection.execute(_STATE, {"key": key}).one_or_none() or ("", 0, None)
    sequence = head.sequence + 1
    common = {**about, "sequence": sequence, "imported": False}
    receipt = salted_receipt(common | {"user_key": key.hex()}, *lines)
    rows = [line | common | {"receipt_id": receipt, "position": place} for place, line in enumerate(lines)]
    connection.execute(_ADD, rows)
    preferences = [line["preference"] for line in lines if line["preference"] is not None]
    after = {
        "user_key": key,
        "granted": advance(state, tuple(effects)),
        "preference": preferences[0] if preferences else preference,
        "sequence": sequence,
    }
    connection.execute(PUT_CURRENT[connection.dialect.name].moved, after)
    for line in lines:
        if line["purpose"] == LINKED:
            person = bytes.fromhex(line["source"]) if line["granted"] else None
            connection.execute(_BELONG, {"key": key, "to_person": person})
    detail = {"receipt": audit.digest(receipt), "lines": len(lines)}
    head = audit.append(connection, head, about["recorded_at"], about["actor"], "consent_changed", detail, sequence)
    return head, Recorded(sequence, receipt)


def spent(request_id: str) -> bytes:
    """What is kept of a request id once its call is erased: 16 bytes that say nothing of what was asked."""
    return hashlib.sha256(b"bodega request" + request_id.encode()).digest()[:16]


def salted_receipt(*content: Mapping[str, Any]) -> str:
    """A receipt over some content, so that it can be held against the ledger later.

    The salt lies in the receipt alone. Without one, whoever has the key could guess from the audit log's digest what an
    erased person once decided.
    """
    salt = secrets.token_hex(8)
    said = json.dumps([salt, *content], sort_keys=True)
    return salt + hashlib.sha256(said.encode()).hexdigest()[:32]


def asked_before(connection: Connection, key: bytes, request_id: str) -> list[Any]:
    """The rows of an id's earlier call under a request id.

    Raises:
        ConsentError: it was used before the person was erased.
    """
    rows = list(connection.execute(_ASKED, {"key": key, "asked": request_id}).all())
    if not rows and connection.execute(_IS_SPENT, {"key": key, "digest": spent(request_id)}).one_or_none():
        # A queue that delivers twice must not bring back what was erased. What the call said is gone, so that it cannot
        # be told from another one either, and a withdrawal must not be acknowledged unrecorded: refused, not answered.
        raise ConsentError(
            f"The request id '{request_id}' was used before this person was erased.",
            "Drop it if it is the old request sent again; give a new decision an id of its own.",
        )
    return rows


def used_otherwise(request_id: str) -> ConsentError:
    """The error for a request id that was given twice: the first answer would acknowledge what was never recorded."""
    return ConsentError(
        f"The request id '{request_id}' was used before, for other changes of this person.",
        "Give each request an id of its own; repeat one only to send the same request again.",
    )


def line_of(
    purpose: str, source: str, granted: bool, covers: str | None = None, preference: int | None = None
) -> dict[str, Any]:
    """One line of a call."""
    return {"purpose": purpose, "source": source, "granted": granted, "covers": covers, "preference": preference}


def _same_answer(rows: Sequence[Any], lines: Sequence[dict[str, Any]], request_id: str) -> Recorded:
    # What a call did to links besides is no part of what was asked.
    said = {tuple(getattr(row, name) for name in _SAID) for row in rows if row.purpose != LINKED}
    if said != {tuple(line[name] for name in _SAID) for line in lines}:
        raise used_otherwise(request_id)
    return Recorded(int(rows[0].sequence), str(rows[0].receipt_id))
