"""How the ledger's database is made, opened, and raised from an older format in place."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import ArgumentError

from engine.consent import audit
from engine.consent.changes import micros
from engine.consent.deadline import answered_within
from engine.consent.store import Store
from engine.consent.tables import CURRENT, LEDGER, METADATA, told
from engine.errors import LedgerUnavailable

LEDGER_FORMAT = 4  # 1 knew neither erasures nor the audit log; 2 had no index by which replicas follow; 3 no linked ids
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "cell_size_check=ON",
    "temp_store=MEMORY",
    "secure_delete=ON",  # what was erased must not lie on in free pages
)
_SINCE_1 = (
    "ALTER TABLE consent_current ADD COLUMN erased_at BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE consent_current ADD COLUMN erasure BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE consent_ledger ADD COLUMN audited BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE consent_ledger ADD COLUMN audit_head TEXT NOT NULL DEFAULT ''",
)
_SINCE_3 = {
    "sqlite": "ALTER TABLE consent_current ADD COLUMN person BLOB",
    "postgresql": "ALTER TABLE consent_current ADD COLUMN person BYTEA",
}

_DRIVERS = ("postgresql", "postgresql+psycopg")  # the first is SQLAlchemy's default, which was another one before 2.1
_ALONE = "SELECT pg_advisory_xact_lock(108170552664929)"  # who makes the tables, or raises the format
# A process of format 1 that still runs has not looked at the format again: its writes fail, instead of going unaudited.
_GUARD = """
CREATE TRIGGER IF NOT EXISTS consent_moves_are_audited BEFORE UPDATE ON consent_ledger
WHEN NEW.sequence > OLD.sequence AND NEW.audited <= OLD.audited
BEGIN SELECT RAISE(ABORT, 'an older version of Bodega still writes to it'); END
"""


def open_store(url: str, patience: float) -> Store:
    """The ledger's database; its tables are made where there are none.

    A ledger of an older format is raised to this one, whole or not at all. Processes of format 1 that still run can read it from
    then on, without erasures, and not write to it. Those of 2 and 3 go on writing, and record what is decided under one of linked
    ids under that one alone: stop them before the first link is made.

    Args:
        url: `sqlite:////absolute/path.db`, which is made, readable by its owner alone, where it does not exist; or
            `postgresql://user@host:port/database`, which must exist.
        patience: seconds to wait for another writer, and for a server at all.

    Raises:
        LedgerUnavailable: the database cannot be opened, is damaged, or is of a newer format; its driver is missing.
    """
    address = parsed_address(url)
    with told("opened"):
        if address.get_backend_name() == "sqlite":
            # Waiting there is for other writers alone, and SQLite's own.
            store = Store(_on_file(address, patience), inf)
        else:
            store = Store(on_server(address, patience), patience)
    try:
        with told("opened", store.failures), answered_within(store.patience):
            if not _is_current(store.engine):
                with store.engine.execution_options(writes=True).begin() as connection:
                    if store.engine.dialect.name == "postgresql":
                        connection.execute(text(_ALONE))
                    _bring_up(connection)
    except BaseException:
        store.close()
        raise
    return store


def parsed_address(url: str) -> URL:
    """The address of a ledger.

    Raises:
        LedgerUnavailable: it is none; its text, which may hold a password, is not repeated.
    """
    refused = LedgerUnavailable(
        "The consent ledger's address is neither a file nor a PostgreSQL server.",
        "Give sqlite:////absolute/path/consent.db, or postgresql://user@host:port/database; in a password, write @ as %40.",
    )
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise refused from None  # the reason may hold the password
    if address.get_backend_name() == "postgresql":
        if address.drivername in _DRIVERS and "@" not in (address.host or ""):
            return address
        raise refused
    path = address.database or ""
    if address.get_backend_name() != "sqlite" or not path or path == ":memory:" or path.startswith("file:"):
        raise refused
    return address


def _on_file(address: URL, patience: float) -> Engine:
    _make_file(Path(address.database or ""))
    # The parameters of a failed statement name people: keep them out of messages and logs.
    engine = create_engine(
        address, connect_args={"timeout": patience}, max_overflow=-1, hide_parameters=True, logging_name="consent"
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def on_server(address: URL, patience: float) -> Engine:
    """A ledger's database on PostgreSQL.

    Raises:
        LedgerUnavailable: the driver is not installed.
    """
    try:
        from engine.consent.postgres import engine_on
    except ImportError as error:
        raise LedgerUnavailable(
            "The consent ledger lives on PostgreSQL, and the driver psycopg is not installed.",
            "Run pip install 'bodega[postgres]'.",
        ) from error
    return engine_on(address, patience)


def _is_current(engine: Engine) -> bool:
    """Whether nothing is to be made: a server is then asked for no lock, so that it opens while somebody imports."""
    if engine.dialect.name != "postgresql":
        return False  # whether a file can be written to is found out now
    with engine.connect() as connection:
        if not inspect(connection).has_table(LEDGER.name):
            return False
        return connection.execute(select(LEDGER.c.format)).scalar() == LEDGER_FORMAT


def _bring_up(connection: Connection) -> None:
    """Make the tables, or what an older format lacks of them."""
    found, there = None, inspect(connection).has_table(LEDGER.name)
    if there:
        found = connection.execute(select(LEDGER.c.format)).scalar()
    if found is not None and not 1 <= found <= LEDGER_FORMAT:
        raise LedgerUnavailable(
            f"The consent ledger has format {found}, this version reads 1 to {LEDGER_FORMAT}.",
            "Install the newer version.",
        )
    if found == 1:
        for statement in _SINCE_1:
            connection.execute(text(statement))
    if found is not None and found <= 3:
        connection.execute(text(_SINCE_3[connection.dialect.name]))
    METADATA.create_all(connection, checkfirst=there)
    for index in CURRENT.indexes if there else ():
        index.create(connection, checkfirst=True)  # create_all passes over the indexes of tables that exist
    if connection.dialect.name == "sqlite":  # where that format lived
        connection.execute(text(_GUARD))
    if found is None:
        connection.execute(insert(LEDGER).values(id=1, format=LEDGER_FORMAT, sequence=0, stable_key=""))
    elif found < LEDGER_FORMAT:
        connection.execute(update(LEDGER).values(format=LEDGER_FORMAT))
        head = audit.locked_head(connection)
        now = micros(datetime.now(UTC))
        detail = {"from": found, "to": LEDGER_FORMAT}
        # What went before is not in the log of a ledger of format 1, which begins with this row; from here on nothing is
        # left out. A later one's log has come this far by itself.
        reached = head.sequence or None if found == 1 else None
        audit.append(connection, head, now, "system", "format_raised", detail, reached)


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
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}").fetchall()
    cursor.close()


def _begin(connection: Any) -> None:
    # A writer that began as a reader would fail when another commits between its read and its write.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
