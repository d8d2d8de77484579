"""What an import must know of links: whose grants reach whom, whom a withdrawal takes apart, and which links come too late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, func, select

from engine.consent import audit
from engine.consent.changes import LINKED
from engine.consent.recording import append_call, line_of
from engine.consent.tables import CHANGES, CURRENT, stream
from engine.consent.vocabulary import CROSS_SOURCE
from engine.identity import KEY_BYTES

_AT_ONCE = 500
_ANYBODY = select(CURRENT.c.user_key).where(CURRENT.c.person.is_not(None)).limit(1)


def persons(connection: Connection) -> dict[bytes, bytes]:
    """Who is linked, and the person that they share."""
    found: dict[bytes, bytes] = {}
    for rows in stream(connection, select(CURRENT.c.user_key, CURRENT.c.person).where(CURRENT.c.person.is_not(None))):
        found.update((bytes(key), bytes(person)) for key, person in rows)
    return found


def spread(connection: Connection, grants: pa.Table) -> pa.Table:
    """Grants to be imported, with a row of each for every id that theirs is linked with at this moment.

    Args:
        connection: in the transaction that imports them. grants: with `user_key`; come back themselves where nobody is linked.
    """
    if connection.execute(_ANYBODY).first() is None:
        return grants
    asked = [bytes(key) for key in pc.unique(grants["user_key"]).to_pylist()]
    shared: dict[bytes, list[bytes]] = {}
    for some in _some(asked):
        of = select(CURRENT.c.person).where(CURRENT.c.user_key.in_(some), CURRENT.c.person.is_not(None))
        shared.update((bytes(person), []) for person in connection.execute(of).scalars())
    for some in _some(list(shared)):
        members = select(CURRENT.c.person, CURRENT.c.user_key).where(CURRENT.c.person.in_(some))
        for person, key in connection.execute(members):
            shared[bytes(person)].append(bytes(key))
    pairs = [(key, other) for keys in shared.values() for key in keys for other in keys if other != key]
    if not pairs:
        return grants
    keys, others = (pa.array(each, pa.binary(KEY_BYTES)) for each in zip(*pairs, strict=True))
    numbered = grants.append_column("row", pa.array(np.arange(grants.num_rows)))
    more = pa.table({"user_key": keys, "other": others}).join(
        numbered.select(["user_key", "row"]), "user_key", join_type="inner"
    )
    added = grants.take(more["row"])
    return pa.concat_tables([grants, added.set_column(0, grants.schema.field("user_key"), more["other"])])


def part_after_import(connection: Connection, now: int, keys: Iterable[bytes]) -> None:
    """Take apart those of whom an import withdrew cross_source.

    Args:
        connection: in the import's transaction. now: microseconds since the epoch. keys: of whom it did.
    """
    gone: set[bytes] = set()
    for some in _some(sorted(keys)):
        gone |= persons_of(connection, some)
    about = {"notice_version": "", "actor": "operator", "request_id": None, "recorded_at": now, "occurred_at": None}
    head = audit.locked_head(connection)
    for person in sorted(gone):
        members = select(CURRENT.c.user_key).where(CURRENT.c.person == person).order_by(CURRENT.c.user_key)
        for key in [bytes(each) for each in connection.execute(members).scalars()]:
            lines = [line_of(LINKED, person.hex(), False)]
            head, _ = append_call(connection, head, about | {"user_key": key}, lines, [])


def _some(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many at a time as every store takes in one statement."""
    for first in range(0, len(keys), _AT_ONCE):
        yield keys[first : first + _AT_ONCE]


def overruled(connection: Connection, keys: Sequence[bytes], when: int | None) -> bool:
    """Whether one of the ids was erased, or withdrew cross_source, at that time or since."""
    erased = select(func.max(CURRENT.c.erased_at)).where(CURRENT.c.user_key.in_(keys))
    parted = select(CHANGES.c.recorded_at, CHANGES.c.imported, CHANGES.c.occurred_at).where(
        CHANGES.c.user_key.in_(keys), CHANGES.c.purpose == CROSS_SOURCE, ~CHANGES.c.granted
    )
    moments = [
        int(row.occurred_at if row.imported and row.occurred_at is not None else row.recorded_at)
        for row in connection.execute(parted)
    ]
    moments.append(int(connection.execute(erased).scalar() or 0))
    return max(moments) > 0 and (when is None or when <= max(moments))


def persons_of(connection: Connection, keys: Sequence[bytes]) -> set[bytes]:
    """What these ids share with others, each with its own."""
    of = select(CURRENT.c.person).where(CURRENT.c.user_key.in_(keys), CURRENT.c.person.is_not(None))
    return {bytes(person) for person in connection.execute(of).scalars()}
