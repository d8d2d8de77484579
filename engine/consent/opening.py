"""How the ledger's database is made, opened, and raised from an older format in place."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, make_url, select, text, update

from engine.consent import audit
from engine.consent.changes import micros
from engine.consent.tables import CURRENT, LEDGER, METADATA, told
from engine.errors import LedgerUnavailable

LEDGER_FORMAT = 3  # 1 knew neither erasures nor the audit log; 2 had no index by which replicas follow
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

# A process of format 1 that still runs has not looked at the format again: its writes fail, instead of going unaudited.
_GUARD = """
CREATE TRIGGER IF NOT EXISTS consent_moves_are_audited BEFORE UPDATE ON consent_ledger
WHEN NEW.sequence > OLD.sequence AND NEW.audited <= OLD.audited
BEGIN SELECT RAISE(ABORT, 'an older version of Bodega still writes to it'); END
"""


def open_engine(url: str, patience: float) -> Engine:
    """An engine on the ledger's database, which is made, readable by its owner alone, where it does not exist.

    A file of an older format is raised to this one, whole or not at all. Processes of the older version can read it from then
    on, without erasures, and not write to it: stop them first.

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
            _bring_up(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _bring_up(connection: Connection) -> None:
    """Make the tables, or what an older format lacks of them."""
    found = None
    if inspect(connection).has_table(LEDGER.name):
        found = connection.execute(select(LEDGER.c.format)).scalar()
    if found is not None and not 1 <= found <= LEDGER_FORMAT:
        raise LedgerUnavailable(
            f"The consent ledger has format {found}, this version reads 1 to {LEDGER_FORMAT}.",
            "Install the newer version.",
        )
    if found == 1:
        for statement in _SINCE_1:
            connection.execute(text(statement))
    METADATA.create_all(connection)
    for index in CURRENT.indexes:
        index.create(connection, checkfirst=True)  # create_all passes over the indexes of tables that exist
    connection.execute(text(_GUARD))
    if found is None:
        connection.execute(insert(LEDGER).values(id=1, format=LEDGER_FORMAT, sequence=0, stable_key=""))
    elif found < LEDGER_FORMAT:
        connection.execute(update(LEDGER).values(format=LEDGER_FORMAT))
        head = audit.locked_head(connection)
        now = micros(datetime.now(UTC))
        # What went before is not in the log; from here on nothing is left out.
        detail = {"from": found, "to": LEDGER_FORMAT}
        audit.append(connection, head, now, "system", "format_raised", detail, head.sequence or None)


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
