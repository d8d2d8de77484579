"""One person's standing, in one statement on one row: what every request asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from math import isinf
from typing import Any

from sqlalchemy import bindparam, select

from engine.consent.changes import ALONE, STRANGER, Change, Standing, grants_in
from engine.consent.deadline import answered_within
from engine.consent.store import Store
from engine.consent.tables import CURRENT, driver_text, told, unavailable
from engine.errors import LedgerUnavailable

_COLUMNS = tuple(CURRENT.c[name] for name in ("granted", "preference", "sequence", "erased_at", "erasure", "person"))


class LookUp:
    """Reads standings by way of the driver: Core and the pool would cost several times the query itself.

    A reader is taken from a heap and put back, so that there are as many as have ever read at once. Threads share it.
    """

    def __init__(self, store: Store, bits: Mapping[str, int]) -> None:
        self._store = store
        self._bits = bits
        self._waits = not isinf(store.patience)
        self._readers: deque[tuple[Any, Any]] = deque()
        asked = select(*_COLUMNS).where(CURRENT.c.user_key == bindparam("user_key", b""))
        self._text, values = driver_text(store.engine, asked)
        self._by_position = isinstance(values, tuple)
        self._read_state = lru_cache(1 << 14)(self._parse_state)
        self._closed = False

    def standing(self, key: bytes) -> Standing:
        """As `Ledger.standing`, of a key that is long enough."""
        try:
            if self._waits:
                with answered_within(self._store.patience):
                    rows = self._rows(key)
            else:
                rows = self._rows(key)
            if not rows:
                return STRANGER
            state, preference, sequence, erased_at, erasure, person = rows[0]
            granted, grants = self._read_state(state)
            known = int(sequence) > int(erasure)
            return Standing(
                granted,
                grants,
                int(preference),
                int(sequence),
                known,
                int(erased_at),
                int(erasure),
                bytes(person or ALONE),
            )
        except LedgerUnavailable:
            raise
        except (self._store.failures, OSError, ValueError, TypeError, AttributeError) as error:
            raise unavailable("read", error) from error

    def _rows(self, key: bytes, again: bool = True) -> list[Any]:
        try:
            reader = self._readers.pop()
        except IndexError:
            reader, again = self._open_reader(), False
        connection, cursor = reader
        try:
            rows: list[Any] = cursor.execute(self._text, (key,) if self._by_position else {"user_key": key}).fetchall()
        except self._store.failures as error:
            lost = self._store.engine.dialect.is_disconnect(error, connection.driver_connection, cursor)
            connection.invalidate()
            if not (again and lost):
                raise
        else:
            self._put_back(reader)
            return rows
        # The server was started again, and the others are as old: once more, on a new one.
        while self._readers:
            with suppress(IndexError):  # another thread took it
                self._readers.pop()[0].invalidate()
        return self._rows(key, again=False)

    def mask(self, state: str) -> int:
        """The grants of a stored state as a mask.

        Raises:
            ValueError: it is not one.
        """
        return self._read_state(state)[0]

    def close(self) -> None:
        """Let go of the readers; those at work are let go of when they come back."""
        self._closed = True
        while True:
            try:
                connection, _ = self._readers.pop()
            except IndexError:
                return  # another thread took it; it comes back by _put_back
            connection.close()

    def _open_reader(self) -> tuple[Any, Any]:
        self._store.refuse_if_closed()
        with told("read", self._store.failures):
            connection = self._store.engine.raw_connection()
            return connection, connection.cursor()

    def _put_back(self, reader: tuple[Any, Any]) -> None:
        self._readers.append(reader)
        if self._closed:
            self.close()  # it was closed while this reader was at work

    def _parse_state(self, state: str) -> tuple[int, tuple[Change, ...]]:
        grants = grants_in(state)
        mask = 0
        for grant in grants:
            mask |= self._bits.get(f"{grant.purpose}/{grant.source}", 0)  # a source that was retired allows nothing
        return mask, grants
