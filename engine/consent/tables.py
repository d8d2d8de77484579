"""The ledger's tables, how statements reach the driver, and how its failures are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

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
from sqlalchemy.dialects.postgresql import Insert as PostgresqlInsert
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from engine.errors import LedgerUnavailable
from engine.identity import KEY_BYTES

METADATA = MetaData()
# Rows read at a time. A server is to answer within the caller's patience, from a slow disk as well.
_BATCH = {"sqlite": 1 << 16, "postgresql": 1 << 13}
# Bytewise on PostgreSQL, so that no update of the system's collations breaks an index of the ledger.
TEXT = Text().with_variant(Text(collation="C"), "postgresql")

# One row. The counter is here and not max(sequence), so that a number is never given twice, whatever is erased.
LEDGER = Table(
    "consent_ledger",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("format", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("stable_key", TEXT, nullable=False),  # id of the key that names people; empty until first used
    Column("audited", BigInteger, nullable=False, server_default="0"),  # rows of the audit log
    Column("audit_head", TEXT, nullable=False, server_default=""),  # hash of the last one
)
# Append-only, but for what an erasure takes away. A call's changes share its sequence; a preference is a row of its own
# with an empty purpose.
CHANGES = Table(
    "consent_changes",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES)),  # stable
    Column("sequence", BigInteger),
    Column("position", Integer),
    Column("purpose", TEXT, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("covers", TEXT),  # sources that a grant for all sources extends to, joined by spaces
    Column("granted", Boolean, nullable=False),
    Column("preference", SmallInteger),
    Column("notice_version", TEXT, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("request_id", TEXT),
    Column("receipt_id", TEXT),
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
# What the changes amount to, moved in the same transaction: one row an id, so that one look-up answers a request. Two are of
# its last erasure, 0 where there was none.
CURRENT = Table(
    "consent_current",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES), primary_key=True),
    Column("granted", TEXT, nullable=False),
    Column("preference", SmallInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("erased_at", BigInteger, nullable=False, server_default="0"),
    Column("erasure", BigInteger, nullable=False, server_default="0"),  # its sequence
    Column("person", LargeBinary(KEY_BYTES)),  # shared with the ids that this one is linked with; null: none
    sqlite_with_rowid=False,
)
Index("consent_moves", CURRENT.c.sequence)  # by which replicas follow
Index(
    "consent_persons",
    CURRENT.c.person,
    sqlite_where=CURRENT.c.person.is_not(None),
    postgresql_where=CURRENT.c.person.is_not(None),
)
# Append-only. Erasing again without anything new since is a row of its own under the first one's receipt.
TOMBSTONES = Table(
    "consent_tombstones",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES)),  # stable
    Column("sequence", BigInteger),
    Column("erased_at", BigInteger, nullable=False),
    Column("receipt_id", TEXT, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("request_id", TEXT),
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
    Column("actor", TEXT, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("sequence", BigInteger),  # where the ledger came to with it; null: it did not move
    Column("detail", TEXT, nullable=False),  # canonical JSON
    Column("previous", TEXT, nullable=False),
    Column("hash", TEXT, nullable=False),
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


class _Put(NamedTuple):
    """One person's row of CURRENT, put in or over the one there."""

    moved: Insert  # by a change
    erased: Insert


def _put(new: Any) -> _Put:
    excluded = {name: new.excluded[name] for name in CURRENT.c.keys()[1:]}
    moved = {name: excluded[name] for name in CURRENT_STATE[1:]}
    key = [CURRENT.c.user_key]
    return _Put(
        new.on_conflict_do_update(index_elements=key, set_=moved),
        new.on_conflict_do_update(index_elements=key, set_=excluded),
    )


PUT_CURRENT = {"sqlite": _put(sqlite_insert(CURRENT)), "postgresql": _put(postgresql_insert(CURRENT))}
EFFECT = (
    case((CHANGES.c.granted, "+"), else_="-")
    .concat(CHANGES.c.purpose)
    .concat("/")
    .concat(CHANGES.c.source)
    .concat("/")
    .concat(func.coalesce(CHANGES.c.covers, ""))
).label("effect")

_SERVER_REASONS = {  # by sqlstate
    "25006": ("its server is read-only", "Give the address of the primary, or let it be written to again."),
    "55P03": ("it is locked by another writer", "Try again; an import or another writer holds it."),
    "57014": ("its server was too slow", "Try again; see what else the server does."),
    "42501": ("its database refuses the user", "Let the user make and change tables there."),
}


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
    reason = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if hasattr(reason, "sqlstate"):
        return _server_unavailable(doing, reason)
    return LedgerUnavailable(
        f"The consent ledger cannot be {doing}: {reason}.",
        "See that its file is there, writable, not full and not locked; restore it from backup if it is damaged.",
    )


def _server_unavailable(doing: str, error: Any) -> LedgerUnavailable:
    # What the driver says of a statement goes on with the row that it was about: the first sentence names nobody.
    said = " ".join(str(error.diag.message_primary or error).split()).rstrip(".")
    reason, remedy = _SERVER_REASONS.get(error.sqlstate, (said, ""))
    return LedgerUnavailable(
        f"The consent ledger cannot be {doing}: {reason}.",
        remedy
        or "See that its server runs, can be reached and has room; a write may be sent again under its request id.",
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
    # What does something where a row is there already cannot be copied; the rest goes in a third of the time.
    if connection.dialect.name == "postgresql" and not isinstance(statement, PostgresqlInsert):
        cursor: Any = connection.connection.cursor()
        with closing(cursor), cursor.copy(f"COPY {statement.table.name} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
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
    """The rows of a statement in batches, as the driver gives them: half the time of SQLAlchemy's rows.

    Args:
        connection: in a transaction, with one stream at a time.
    """
    text, values = driver_text(connection.engine, statement)
    if connection.dialect.name == "postgresql":
        # Rows stay on the server until they are asked for: by itself the driver takes all of them into memory.
        cursor: Any = connection.connection.cursor("consent_rows")
    else:
        cursor = connection.connection.cursor()
    with closing(cursor):
        cursor.execute(text, values)
        while rows := cursor.fetchmany(_BATCH[connection.dialect.name]):
            yield rows


def driver_text(engine: Engine, statement: Select[Any], **values: object) -> tuple[str, Any]:
    """A statement and its values in the driver's own style."""
    compiled = statement.compile(dialect=engine.dialect)
    named = compiled.construct_params(values)
    order = compiled.positiontup
    return str(compiled), named if order is None else tuple(named[name] for name in order)
