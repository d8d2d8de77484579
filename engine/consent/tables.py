"""The ledger's tables, how its database is opened, and how its failures are told."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from engine.errors import LedgerUnavailable
from engine.identity import KEY_BYTES

LEDGER_FORMAT = 1
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
)
# Append-only. A call's changes share its sequence; a preference is a row of its own with an empty purpose.
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
    Column("recorded_at", BigInteger, nullable=False),  # microseconds since the epoch, as is occurred_at
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
# What the changes amount to, moved in the same transaction: one row a person, so that one look-up answers a request.
CURRENT = Table(
    "consent_current",
    METADATA,
    Column("user_key", LargeBinary(KEY_BYTES), primary_key=True),
    Column("granted", Text, nullable=False),
    Column("preference", SmallInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
# Keys that an import works on at the moment; seen by its own connection alone.
STAGED = Table(
    "consent_staged",
    MetaData(),
    Column("user_key", LargeBinary(KEY_BYTES), primary_key=True),
    prefixes=["TEMPORARY"],
)
_NEW_CURRENT = sqlite_insert(CURRENT)
PUT_CURRENT = _NEW_CURRENT.on_conflict_do_update(
    index_elements=[CURRENT.c.user_key],
    set_={name: _NEW_CURRENT.excluded[name] for name in ("granted", "preference", "sequence")},
)
EFFECT = (
    case((CHANGES.c.granted, "+"), else_="-")
    .concat(CHANGES.c.purpose)
    .concat("/")
    .concat(CHANGES.c.source)
    .concat("/")
    .concat(func.coalesce(CHANGES.c.covers, ""))
).label("effect")


def open_engine(url: str, patience: float) -> Engine:
    """An engine on the ledger's database, which is made, readable by its owner alone, where it does not exist.

    Args:
        url: `sqlite:////absolute/path.db`.
        patience: seconds to wait for another writer.

    Raises:
        LedgerUnavailable: the database cannot be opened, is damaged, or is of a newer format.
    """
    with told("opened"):
        address = make_url(url)
    path = address.database or ""
    if address.get_backend_name() != "sqlite" or not path or path == ":memory:" or path.startswith("file:"):
        raise LedgerUnavailable(
            f"The consent ledger cannot live at {address.render_as_string()}.",
            "Give a file: sqlite:////absolute/path/consent.db.",
        )
    with told("opened"):
        _make_file(Path(path))
        # The parameters of a failed statement name people: keep them out of messages and logs.
        engine = create_engine(
            address, connect_args={"timeout": patience}, max_overflow=-1, hide_parameters=True, logging_name="consent"
        )
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    try:
        with told("opened"), engine.execution_options(writes=True).begin() as connection:
            METADATA.create_all(connection)
            found = connection.execute(select(LEDGER.c.format)).scalar()
            if found is None:
                connection.execute(insert(LEDGER).values(id=1, format=LEDGER_FORMAT, sequence=0, stable_key=""))
    except BaseException:
        engine.dispose()
        raise
    if found is not None and found != LEDGER_FORMAT:
        engine.dispose()
        raise LedgerUnavailable(
            f"The consent ledger has format {found}, this version reads {LEDGER_FORMAT}.", "Install the newer version."
        )
    return engine


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


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        return
    # Linked into place closed: closing a second handle on a live SQLite file would drop this process's locks on it.
    handle, fresh = tempfile.mkstemp(prefix=".ledger-", dir=path.parent)
    os.close(handle)
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        Path(fresh).unlink()


def _prepare(connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself: a writer takes its lock first, see _begin.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cell_size_check=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}").fetchall()
    cursor.close()


def _begin(connection: Any) -> None:
    # A writer that began as a reader would fail when another commits between its read and its write.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
