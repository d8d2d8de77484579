"""What one call writes: its lines, what they amount to, and its row of the audit log, all in one transaction."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from engine.consent import audit
from engine.consent.changes import Change, Recorded, advance, effect_of, holds, in_force_order
from engine.consent.tables import CHANGES, CURRENT, PUT_CURRENT, SPENT
from engine.errors import ConsentError

# Built once: that takes longer than running them.
_ADD = insert(CHANGES)
_STATE = select(CURRENT.c.granted, CURRENT.c.preference).where(CURRENT.c.user_key == bindparam("key"))
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
        lines.append(_line(change.purpose, change.source, change.granted, covers or None, None))
    if preference is not None:
        lines.append(_line("", "", False, None, preference))
    return lines, effects


def record_lines(
    connection: Connection,
    lines: Sequence[dict[str, Any]],
    effects: Sequence[str],
    about: Mapping[str, Any],
    retired: Mapping[Change, ConsentError],
) -> Recorded:
    """Append a call, unless its request id was answered before.

    Args:
        retired: withdrawals of names that the vocabulary does not have, each with the error where the person does not hold it.
        connection: in a writing transaction.
        lines: from `lines_of`, as are the effects.
        about: what all lines share: user_key, notice_version, actor, request_id, recorded_at, occurred_at.

    Raises:
        ConsentError: the request id was used for something else, or before the person was erased.
    """
    key, head = about["user_key"], audit.locked_head(connection)
    if about["request_id"] and (earlier := _earlier(connection, key, about["request_id"], lines)):
        return earlier
    state, preference = connection.execute(_STATE, {"key": key}).one_or_none() or ("", 0)
    for change, error in retired.items():
        if not holds(state, change):  # a name that was mistyped would be acknowledged, and withdraw nothing
            raise error
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
    detail = {"receipt": audit.digest(receipt), "lines": len(lines)}
    audit.append(connection, head, about["recorded_at"], about["actor"], "consent_changed", detail, sequence)
    return Recorded(sequence, receipt)


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


def _earlier(connection: Connection, key: bytes, request_id: str, lines: Sequence[dict[str, Any]]) -> Recorded | None:
    rows = connection.execute(_ASKED, {"key": key, "asked": request_id}).all()
    if not rows:
        if connection.execute(_IS_SPENT, {"key": key, "digest": spent(request_id)}).one_or_none():
            # A queue that delivers twice must not bring back what was erased. What the call said is gone, so that it cannot
            # be told from another one either, and a withdrawal must not be acknowledged unrecorded: refused, not answered.
            raise ConsentError(
                f"The request id '{request_id}' was used before this person was erased.",
                "Drop it if it is the old request sent again; give a new decision an id of its own.",
            )
        return None
    if {tuple(getattr(row, name) for name in _SAID) for row in rows} != {
        tuple(line[n] for n in _SAID) for line in lines
    }:
        # An answer that repeats the first would acknowledge a withdrawal that was never recorded.
        raise ConsentError(
            f"The request id '{request_id}' was used before, for other changes of this person.",
            "Give each request an id of its own; repeat one only to send the same request again.",
        )
    return Recorded(int(rows[0].sequence), str(rows[0].receipt_id))


def _line(purpose: str, source: str, granted: bool, covers: str | None, preference: int | None) -> dict[str, Any]:
    return {"purpose": purpose, "source": source, "granted": granted, "covers": covers, "preference": preference}
