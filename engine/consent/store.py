"""The ledger's database as its calls use it: transactions to read and to write in, each with an end to its waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isinf
from typing import Any

from sqlalchemy import Connection, Engine

from engine.consent.deadline import answered_within, lift
from engine.consent.tables import told
from engine.errors import LedgerUnavailable

_WAY_SECONDS = 0.11  # a waiter of SQLite looks every tenth of a second


class Store:
    """Threads share it."""

    def __init__(self, engine: Engine, patience: float) -> None:
        """
        Args:
            engine: as `opening` makes it.
            patience: seconds that a call may wait in all; infinite where the store always answers.
        """
        self.engine = engine
        self.patience = patience
        self.failures: type[Any] = engine.dialect.loaded_dbapi.Error
        self._writer = engine.execution_options(writes=True)
        self._writing = threading.Lock()  # threads queue here, where waiting is fair, and not at the store's own lock
        self._closed = False

    @contextmanager
    def reading(self, at_length: bool = False) -> Iterator[Connection]:
        """A transaction in which all statements see one moment, and which waits for no writer.

        Args:
            at_length: there may be much to read: only silence of the store ends it, once it has answered.

        Raises:
            LedgerUnavailable: the store is closed, failed, or holds what was not written to it.
        """
        self.refuse_if_closed()
        # ValueError and TypeError: what the store holds is not what was written to it.
        failures = (self.failures, ValueError, TypeError)
        with answered_within(self.patience), told("read", *failures), self.engine.begin() as connection:
            if at_length:
                lift()
            yield connection

    @contextmanager
    def recording(self, at_length: bool = False) -> Iterator[Connection]:
        """A transaction that is on disk when the block ends; lock the ledger's row in it before all else.

        Args:
            at_length: as in `reading`.

        Raises:
            LedgerUnavailable: the store is closed or failed, or another writer was not done in time.
        """
        self.refuse_if_closed()
        with (
            answered_within(self.patience),
            self._turn(),
            told("written", self.failures),
            self._writer.begin() as connection,
        ):
            if at_length:
                lift()
            yield connection

    def give_way(self) -> None:
        """Let other processes write between two transactions of one long work: SQLite's waiters look only now and then."""
        if self.engine.dialect.name == "sqlite":
            time.sleep(_WAY_SECONDS)

    def refuse_if_closed(self) -> None:
        """Raises LedgerUnavailable once `close` was called."""
        if self._closed:
            raise LedgerUnavailable("The consent ledger is closed.", "Open it again.")

    def close(self) -> None:
        """Let go of the database."""
        self._closed = True
        self.engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=-1 if isinf(self.patience) else self.patience):
            raise LedgerUnavailable(
                "The consent ledger cannot be written: it is locked by another writer of this process.",
                "Try again; an import or another writer holds it.",
            )
        try:
            yield
        finally:
            self._writing.release()
