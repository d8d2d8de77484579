"""How the ledger speaks with PostgreSQL: what each of its connections is set to, and how long one may be silent.

Imported only where such a ledger is opened: a machine without one needs no driver.
"""

from __future__ import annotations

import queue
import threading
from math import ceil
from time import monotonic
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from sqlalchemy import URL, Engine, create_engine, event

from engine.consent.deadline import answered_within, until
from engine.errors import LedgerUnavailable

_LOOK = 0.1  # seconds between two looks at the clock while a connection waits
_LEAST_IDLE = 10.0
# What a session is set to, and what it tells of its server, in one round trip.
_SETTLE = """
SELECT pg_is_in_recovery(), current_setting('server_encoding'),
  set_config('statement_timeout', %(statement)s::text, false),
  set_config('lock_timeout', %(lock)s::text, false),
  set_config('idle_in_transaction_session_timeout', %(idle)s::text, false),
  set_config('enable_sort', 'off', false),
  set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)
"""
# Read committed, because a writer that waited for its turn must see what the one before it wrote. Neither says READ WRITE:
# a server that was set read-only is to stay so.
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
# All statements of one call read one moment: the sequence, and everything up to it.
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class ServerSilent(psycopg.OperationalError):
    """The server was silent for too long; its connection is closed, and what it was doing may yet happen."""


class LedgerConnection(psycopg.Connection[TupleRow]):
    """A connection whose every wait ends: when the server is silent for `patience` seconds, or the thread's call is overdue.

    The server's own timeouts do not help against one that is stopped, nor against a network that swallows packets.
    """

    patience = 0.0

    def wait(self, gen: PQGen[Any], interval: float = _LOOK, timeout: float | None = None) -> Any:
        """As psycopg's, within bounds.

        Raises:
            ServerSilent: too long; the connection is closed.
        """
        try:
            return super().wait(self._watched(gen), interval)
        except ServerSilent:
            self.close()
            raise

    def _watched(self, gen: PQGen[Any]) -> PQGen[Any]:
        limit, heard = until(), monotonic()
        if heard >= limit:
            raise self._silent()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = monotonic()
                if ready:
                    heard = now
                elif now - heard >= self.patience:
                    raise self._silent()
                if now >= limit:
                    raise self._silent()
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value

    def _silent(self) -> ServerSilent:
        return ServerSilent(f"the server did not answer within {self.patience:g} s")


def engine_on(address: URL, patience: float) -> Engine:
    """An engine whose connections keep to the ledger's rules; nothing is connected yet.

    Connections commit by themselves, and each transaction is begun in words: a look-up is then one statement and no more.

    Args:
        address: of the primary; the driver is set here.
        patience: seconds after which whatever waits gives up.
    """
    # Of two hosts the first may be away: that must not use up the time for the second.
    hosts = str(address.host or address.query.get("host") or "").count(",") + 1
    seconds = ceil(patience / hosts)
    arguments = {
        "autocommit": True,
        "client_encoding": "utf8",
        "connect_timeout": max(2, seconds),  # less is not heeded: `_connect` has the last word
        "keepalives": 1,
        "keepalives_idle": max(1, ceil(patience)),
        "keepalives_interval": max(1, ceil(patience / 3)),
        "keepalives_count": 3,
        "tcp_user_timeout": max(1, ceil(patience * 1000)),
    }
    engine = create_engine(
        address.set(drivername="postgresql+psycopg"),
        connect_args=arguments,
        max_overflow=-1,
        pool_pre_ping=True,  # a server that was started again has left its old connections dead
        hide_parameters=True,
        logging_name="consent",
        use_native_hstore=False,
    )

    def connect(_dialect: object, _record: object, given: Any, named: Any) -> LedgerConnection:
        return _connect_in_time(patience, given, named)

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Any) -> None:
    connection.exec_driver_sql(_WRITE if connection.get_execution_options().get("writes") else _READ)


def _connect_in_time(patience: float, given: Any, named: Any) -> LedgerConnection:
    """Connect in a thread of its own: looking up the host's name cannot be interrupted."""
    limit = min(until(), monotonic() + patience)
    answers: queue.SimpleQueue[LedgerConnection | Exception] = queue.SimpleQueue()
    turn, given_up = threading.Lock(), False

    def work() -> None:
        answer: LedgerConnection | Exception
        try:
            with answered_within(limit - monotonic()):
                answer = _connect(patience, given, named)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            answer = error
        with turn:
            if not given_up:
                answers.put(answer)
                return
        if isinstance(answer, LedgerConnection):
            answer.close()

    threading.Thread(target=work, name="bodega-ledger-connect", daemon=True).start()
    try:
        answer = answers.get(timeout=max(0.0, limit - monotonic()))
    except queue.Empty:
        with turn:
            given_up = True
        if answers.empty():
            raise ServerSilent(f"the server did not answer within {patience:g} s") from None
        answer = answers.get()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _connect(patience: float, given: Any, named: Any) -> LedgerConnection:
    connection = LedgerConnection.connect(*given, **named)
    try:
        connection.patience = patience
        # The client gives up before the server does: a commit that a timeout cuts off in its wait for the standbys is told
        # as a success. A wait for another writer ends sooner, so that its reason can still be told.
        bounds = {
            "statement": ceil(patience * 1000) + 500,
            "lock": max(1, int(patience * 900)),
            "idle": ceil(max(_LEAST_IDLE, 3 * patience) * 1000),  # a writer that hangs must not keep the others out
        }
        told = connection.execute(_SETTLE, bounds).fetchone()
        standby, encoding = told[:2] if told else (True, "")
        if standby:
            raise LedgerUnavailable(
                f"The consent ledger's server {_name(connection)} is a standby: it cannot be written, and lags behind.",
                "Give the address of the primary; with several hosts, add target_session_attrs=read-write.",
            )
        if encoding != "UTF8":
            raise LedgerUnavailable(
                f"The consent ledger's database {_name(connection)} has the encoding {encoding}.",
                "Make it with ENCODING 'UTF8'.",
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _name(connection: LedgerConnection) -> str:
    return f"{connection.info.host}:{connection.info.port}/{connection.info.dbname}"
