"""The ledger's tables, how statements reach the driver, and how its failures are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Select,
    SmallInteger,
    Table,
    Text,
    case,
    func,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from engine.errors import LedgerUnavailable
from engine.identity import KEY_BYTES

METADATA = MetaData()
_BATCH = 1 << 16  # rows read at a time

# One row. The counter is here and not max(sequence), so that a number is never given twice, whatever is erased.
LEDGER = Table(
    "consent_ledger",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("format", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("stable_key", Text, nullable=False),  # id of the key that names people; empty until first used
    Column("audited", BigInteger, nullable=False, server_default="0"),  # rows of the audit log
    Column("audit_head", Text, nullable=False, server_default=""),  # hash of the last one
)
# Append-only, but for what an erasure takes away. A call's changes share its sequence; a preference is a row of its own
# with an empty purpose.
CHANGES = Table(
    "consent_changes",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES)),  # stable
    Column("sequence", BigInteger),
    Column("position", Integer),
    Column("purpose", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("covers", Text),  # sources that a grant for all sources extends to, joined by spaces
    Column("granted", Boolean, nullable=False),
    Column("preference", SmallInteger),
    Column("notice_version", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("request_id", Text),
    Column("receipt_id", Text),
    Column("imported", Boolean, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),  # microseconds since the epoch, as is every time here
    Column("occurred_at", BigInteger),
    PrimaryKeyConstraint("user_key", "sequence", "position"),
    sqlite_with_rowid=False,  # one tree, in the order in which histories are read
)
Index(
    "consent_requests",
    CHANGES.c.user_key,
    CHANGES.c.request_id,
    CHANGES.c.position,
    unique=True,
    sqlite_where=CHANGES.c.request_id.is_not(None),
    postgresql_where=CHANGES.c.request_id.is_not(None),
)
# What the changes amount to, moved in the same transaction: one row a person, so that one look-up answers a request. The
# last two are of the person's last erasure, 0 where there was none.
CURRENT = Table(
    "consent_current",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES), primary_key=True),
    Column("granted", Text, nullable=False),
    Column("preference", SmallInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("erased_at", BigInteger, nullable=False, server_default="0"),
    Column("erasure", BigInteger, nullable=False, server_default="0"),  # its sequence
    sqlite_with_rowid=False,
)
Index("consent_moves", CURRENT.c.sequence)  # by which replicas follow
# Append-only. Erasing again without anything new since is a row of its own under the first one's receipt.
TOMBSTONES = Table(
    "consent_tombstones",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES)),  # stable
    Column("sequence", BigInteger),
    Column("erased_at", BigInteger, nullable=False),
    Column("receipt_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("request_id", Text),
    PrimaryKeyConstraint("user_key", "sequence"),
    sqlite_with_rowid=False,
)
# Request ids of calls that an erasure took away, as digests: sent again, they must not bring anything back.
SPENT = Table(
    "consent_spent",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES)),  # stable
    Column("digest", LargeBinary(16)),
    PrimaryKeyConstraint("user_key", "digest"),
    sqlite_with_rowid=False,
)
# Append-only, and a chain: each row's hash is over its content and the hash before it. It names nobody.
AUDIT = Table(
    "consent_audit",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, ... without a gap
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("sequence", BigInteger),  # where the ledger came to with it; null: it did not move
    Column("detail", Text, nullable=False),  # canonical JSON
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index(
    "consent_audit_sequences",
    AUDIT.c.sequence,
    unique=True,
    sqlite_where=AUDIT.c.sequence.is_not(None),
    postgresql_where=AUDIT.c.sequence.is_not(None),
)
# Keys that an import works on at the moment; seen by its own connection alone.
STAGED = Table(
    "consent_staged",
    MetaData(),
    Column("user_key", LargeBinary(KEY_BYTES), primary_key=True),
    prefixes=["TEMPORARY"],
)
CURRENT_STATE = ("user_key", "granted", "preference", "sequence")  # what a change moves: an erasure outlasts it
_NEW_CURRENT = sqlite_insert(CURRENT)
PUT_CURRENT = _NEW_CURRENT.on_conflict_do_update(
    index_elements=[CURRENT.c.user_key],
    set_={name: _NEW_CURRENT.excluded[name] for name in CURRENT_STATE[1:]},
)
PUT_ERASED = _NEW_CURRENT.on_conflict_do_update(
    index_elements=[CURRENT.c.user_key],
    set_={name: _NEW_CURRENT.excluded[name] for name in CURRENT.c.keys()[1:]},
)
EFFECT = (
    case((CHANGES.c.granted, "+"), else_="-")
    .concat(CHANGES.c.purpose)
    .concat("/")
    .concat(CHANGES.c.source)
    .concat("/")
    .concat(func.coalesce(CHANGES.c.covers, ""))
).label("effect")


@contextmanager
def told(doing: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Turn any failure of the store inside the block into LedgerUnavailable.

    Args:
        doing: what failed, as a participle: opened, read, written.
        kinds: the driver's own errors, where the block goes around SQLAlchemy.
    """
    failures: tuple[type[BaseException], ...] = (SQLAlchemyError, OSError, *kinds)
    try:
        yield
    except failures as error:
        raise unavailable(doing, error) from error


def unavailable(doing: str, error: BaseException) -> LedgerUnavailable:
    """The error for a store that failed, with the driver's reason."""
    reason = error.orig if isinstance(error, DBAPIError) else error
    return LedgerUnavailable(
        f"The consent ledger cannot be {doing}: {reason}.",
        "See that its file is there, writable, not full and not locked; restore it from backup if it is damaged.",
    )


def insert_many(connection: Connection, statement: Insert, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
    """Insert tuples by way of the driver: SQLAlchemy's own dict a row takes four times as long.

    Args:
        connection: in a writing transaction.
        statement: an insert without values.
        columns: what the tuples hold, in any order.
        rows: the values.
    """
    if not rows:
        return
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(columns))
    order = compiled.positiontup
    if order is None or order == list(columns):
        values: Any = rows if order else [dict(zip(columns, row, strict=True)) for row in rows]
    else:
        places = [columns.index(name) for name in order]
        values = [tuple(row[place] for place in places) for row in rows]
    connection.exec_driver_sql(str(compiled), values)


def stream(connection: Connection, statement: Select[Any]) -> Iterator[Sequence[Any]]:
    """The rows of a statement in batches, as the driver gives them: half the time of SQLAlchemy's rows."""
    text, values = driver_text(connection.engine, statement)
    result = connection.exec_driver_sql(text, values)
    try:
        while rows := result.cursor.fetchmany(_BATCH):
            yield rows
    finally:
        result.close()


def driver_text(engine: Engine, statement: Select[Any], **values: object) -> tuple[str, Any]:
    """A statement and its values in the driver's own style."""
    compiled = statement.compile(dialect=engine.dialect)
    named = compiled.construct_params(values)
    order = compiled.positiontup
    return str(compiled), named if order is None else tuple(named[name] for name in order)
