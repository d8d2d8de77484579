"""What one person allowed at a moment of the past: their history replayed up to a sequence.

An erasure takes the history before it away, for good: of an erased person nothing can be said of what lies before, but for
the moments of the erasures themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from engine.consent import audit
from engine.consent.changes import ALONE, LINKED, Held, advance, moment
from engine.consent.tables import CHANGES, EFFECT, TOMBSTONES
from engine.errors import ConsentError


@dataclass(frozen=True, slots=True)
class Past:
    """A person's standing then; its sequence is that of their own last change up to it. next, next_at: their first change
    or erasure after it, and when that was recorded; 0 and None: there is none.
    """

    held: Held
    next: int = 0
    next_at: datetime | None = None


def standing_at(connection: Connection, key: bytes, sequence: int, mask: Callable[[str], int]) -> Past:
    """What a person allowed after everything up to a sequence.

    Args:
        connection: in a transaction. key: stable, 16 bytes.
        sequence: of the ledger, or of the person's own last change, which comes to the same; 0: of somebody unknown to it.
        mask: the bits of a state.

    Raises:
        ConsentError: the ledger has not come that far, or an erasure took away what is asked for.
    """
    head = audit.sequence(connection)
    if not 0 <= sequence <= head:
        raise ConsentError(
            f"The consent ledger stands at {head}, asked was {sequence}.",
            "Give the consent_sequence of the reply; if the ledger was restored from a backup, changes are missing.",
        )
    tombstones = select(TOMBSTONES.c.sequence, TOMBSTONES.c.erased_at).where(TOMBSTONES.c.user_key == key)
    erasures = [(int(at), int(since)) for at, since in connection.execute(tombstones.order_by(TOMBSTONES.c.sequence))]
    rows = connection.execute(
        select(
            CHANGES.c.sequence,
            EFFECT,
            CHANGES.c.preference,
            CHANGES.c.recorded_at,
            CHANGES.c.purpose,
            CHANGES.c.source,
            CHANGES.c.granted,
        )
        .where(CHANGES.c.user_key == key)
        .order_by(CHANGES.c.sequence, CHANGES.c.position)
    ).all()
    later = [(at, since) for at, since in erasures if at > sequence]
    follows = [*later[:1], *((int(row.sequence), int(row.recorded_at)) for row in rows if row.sequence > sequence)]
    after, when = min(follows, default=(0, 0))
    told = (after, moment(when) if after else None)
    if not sequence:  # before anybody's first change
        return Past(Held(key, 0, 0, 0, 0, 0), *told)
    earlier = [(at, since) for at, since in erasures if at <= sequence]
    erasure, erased_at = earlier[-1] if earlier else (0, 0)
    if later and erasure != sequence:
        raise ConsentError(
            f"What this person allowed at {sequence} was erased at {later[0][0]}, and cannot be known again.",
            "That is what the erasure was for. Replies from it on, and those with consent_sequence 0, can be made again.",
        )
    mine = [row for row in rows if row.sequence <= sequence] if not later else []
    state = advance("", tuple(row.effect for row in mine if row.purpose not in ("", LINKED)))
    links = [row for row in mine if row.purpose == LINKED]
    person = bytes.fromhex(links[-1].source) if links and links[-1].granted else ALONE
    stated = [int(row.preference) for row in mine if row.preference is not None]
    own = max([erasure, *(int(row.sequence) for row in mine)])
    held = Held(key, mask(state), stated[-1] if stated else 0, own, erased_at, erasure, person)
    return Past(held, *told)
