"""The ledger opened to be looked at: nothing is made, raised, tied to a key or written, and an older format stays what it is.

SQLite's own lock and index of its log (`-wal`, `-shm`) may lie beside the file afterwards, as after any reader; the file itself
is byte for byte what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, inspect, select, text

from engine.consent import audit, beside, past
from engine.consent.audit import AuditCheck, AuditRow
from engine.consent.beside import Beside
from engine.consent.changes import moment
from engine.consent.deadline import answered_within
from engine.consent.ledger import Ledger
from engine.consent.opening import LEDGER_FORMAT, on_server, parsed_address
from engine.consent.past import Past
from engine.consent.store import Store
from engine.consent.tables import AUDIT, CHANGES, CURRENT, LEDGER, METADATA, TOMBSTONES, told
from engine.consent.vocabulary import Vocabulary
from engine.errors import LedgerUnavailable

_PRAGMAS = ("query_only=ON", "cell_size_check=ON")


@dataclass(frozen=True, slots=True)
class Examined:
    """All of it is of one moment. chain: of the audit log; beside: None where the chain is broken; rows: its last ones."""

    chain: AuditCheck
    beside: Beside | None
    rows: list[AuditRow]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much the ledger holds. people: with a standing, erased ones included; granting: of whom, by purpose; oldest: of a
    change, microseconds since the epoch; None: there is none. bytes: on disk.
    """

    people: int
    erased: int
    changes: int
    audited: int
    oldest: int | None
    granting: dict[str, int]
    bytes: int


class LedgerView(Ledger):
    """A ledger that is read alone. Make it with `LedgerView.open`."""

    @classmethod
    def open(cls, url: str, vocabulary: Vocabulary, patience: float = 10.0) -> LedgerView:
        """Open one that is there.

        Args:
            url: as `Ledger.open`. vocabulary: gives names their bits. patience: seconds to wait for the store.

        Raises:
            LedgerUnavailable: it is not there, cannot be read, or is of a format that lacks what is to be read.
        """
        address = parsed_address(url)
        with told("opened"):
            if address.get_backend_name() == "sqlite":
                store = Store(_on_file(address, patience), inf)
            else:
                store = Store(on_server(address, patience), patience)
        try:
            with told("opened", store.failures), answered_within(store.patience), store.engine.connect() as connection:
                _check_format(connection)
        except BaseException:
            store.close()
            raise
        return cls(store, vocabulary)

    def stable_key(self) -> str:
        """The id of the key that names people in it; '' before its first use.

        Raises:
            LedgerUnavailable: the store failed.
        """
        with self._store.reading() as connection:
            return str(connection.execute(select(LEDGER.c.stable_key)).scalar_one())

    def check_key(self, key_id: str) -> None:
        """Refuse to look for people under another key than theirs: nobody would be found, and all be denied.

        Raises:
            LedgerUnavailable: they are named by another one.
        """
        held = self.stable_key()
        if held and held != key_id:
            raise LedgerUnavailable(
                f"The consent ledger names people by the stable key {held}, not by {key_id}.",
                "Put the deployment's stable.key back.",
            )

    def examine(self, heads: Sequence[str] = (), last: int = 0) -> Examined:
        """Check the audit log, and hold what stands beside it against it.

        Args:
            heads: hashes that must be in the log. last: rows of it to return.

        Raises:
            LedgerUnavailable: the store failed, or holds what cannot be read.
        """
        with self._store.reading(at_length=True) as connection:
            chain = audit.verify(connection, heads)
            held = None if chain.fault else beside.check(connection)
            return Examined(chain, held, audit.last_rows(connection, last))

    def standing_at(self, key: bytes, sequence: int) -> Past:
        """What a person allowed when the ledger, or they, stood at a sequence.

        Args:
            key: stable, 16 bytes.

        Raises:
            ConsentError: the ledger has not come that far, or the person's past up to there was erased.
            LedgerUnavailable: the store failed.
        """
        with self._store.reading() as connection:
            return past.standing_at(connection, key, sequence, self._look_up.mask)

    def erasures(self, key: bytes) -> list[tuple[int, datetime]]:
        """When a person was erased: place in the ledger and time, oldest first.

        Raises:
            LedgerUnavailable: the store failed.
        """
        asked = select(TOMBSTONES.c.sequence, TOMBSTONES.c.erased_at).where(TOMBSTONES.c.user_key == key)
        with self._store.reading() as connection:
            return [(int(at), moment(since)) for at, since in connection.execute(asked.order_by(TOMBSTONES.c.sequence))]

    def erased_since(self, sequence: int) -> tuple[int, datetime | None]:
        """How many people were erased after a place in the ledger, and when the first of them was.

        Raises:
            LedgerUnavailable: the store failed.
        """
        of, when = func.count(TOMBSTONES.c.user_key.distinct()), func.min(TOMBSTONES.c.erased_at)
        with self._store.reading() as connection:
            people, first = connection.execute(select(of, when).where(TOMBSTONES.c.sequence > sequence)).one()
            return int(people), moment(first) if people else None

    def amount(self) -> Amount:
        """How much it holds.

        Raises:
            LedgerUnavailable: the store failed.
        """
        with self._store.reading(at_length=True) as connection:
            of = (select(func.count()).select_from(each) for each in (CURRENT, CHANGES, AUDIT))
            people, changes, audited = (int(connection.execute(each).scalar_one()) for each in of)
            erased = connection.execute(select(func.count(TOMBSTONES.c.user_key.distinct()))).scalar_one()
            when = func.min(func.coalesce(CHANGES.c.occurred_at, CHANGES.c.recorded_at))
            oldest = connection.execute(select(when)).scalar()
            granting: dict[str, int] = {}
            states = select(CURRENT.c.granted, func.count()).group_by(CURRENT.c.granted)
            for state, count in connection.execute(states):
                for purpose in {pair.partition("/")[0] for pair in state.split()}:
                    granting[purpose] = granting.get(purpose, 0) + int(count)
            return Amount(people, int(erased), changes, audited, oldest, granting, _size(connection))


def _on_file(address: URL, patience: float) -> Engine:
    path = Path(address.database or "")
    if not path.is_file() or not path.stat().st_size:
        raise LedgerUnavailable(f"There is no consent ledger at {path}.", "Name the deployment's folder with --out.")
    engine = create_engine(
        address.set(database=f"file:{quote(str(path.resolve()))}", query={"mode": "ro", "uri": "true"}),
        connect_args={"timeout": patience},
        hide_parameters=True,
        logging_name="consent",
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}").fetchall()
    cursor.close()


def _check_format(connection: Connection) -> None:
    there = inspect(connection)
    if not there.has_table(LEDGER.name):
        raise LedgerUnavailable("There is no consent ledger at this address.", "Name that of the deployment.")
    found = connection.execute(select(LEDGER.c.format)).scalar()
    if found is None or found > LEDGER_FORMAT:
        raise LedgerUnavailable(
            f"The consent ledger has format {found}, this version reads 1 to {LEDGER_FORMAT}.",
            "Install the newer version.",
        )
    for table in METADATA.sorted_tables:
        columns = {each["name"] for each in there.get_columns(table.name)} if there.has_table(table.name) else set()
        if lacking := [name for name in table.columns.keys() if name not in columns]:  # noqa: SIM118 - a collection of columns
            raise LedgerUnavailable(
                f"The consent ledger has format {found}, which has no {table.name}.{lacking[0]}: it is not looked at, so as "
                "not to be changed.",
                "A server or a night of this version raises it in place; or look at it with the version that wrote it.",
            )


def _size(connection: Connection) -> int:
    if connection.dialect.name == "postgresql":
        asked = text(
            "SELECT sum(pg_total_relation_size(CAST(name AS regclass))) FROM unnest(CAST(:names AS text[])) AS name"
        )
        names = {"names": [table.name for table in METADATA.sorted_tables]}
        return int(connection.execute(asked, names).scalar_one())
    path = Path(str(connection.exec_driver_sql("PRAGMA database_list").all()[0][2]))
    beside_it = (path, path.with_name(path.name + "-wal"))
    return sum(each.stat().st_size for each in beside_it if each.exists())
