"""One person's standing, in one statement on one row: what every request asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, bindparam, select

from engine.consent.changes import STRANGER, Change, Standing, grants_in
from engine.consent.tables import CURRENT, driver_text, told, unavailable
from engine.errors import LedgerUnavailable

_COLUMNS = tuple(CURRENT.c[name] for name in ("granted", "preference", "sequence", "erased_at", "erasure"))


class LookUp:
    """Reads standings by way of the driver: Core and the pool would cost several times the query itself.

    A reader is taken from a heap and put back, so that there are as many as have ever read at once. Threads share it.
    """

    def __init__(self, engine: Engine, bits: Mapping[str, int]) -> None:
        self._engine = engine
        self._bits = bits
        self._failures: type[BaseException] = engine.dialect.loaded_dbapi.Error
        self._readers: deque[tuple[Any, Any]] = deque()
        asked = select(*_COLUMNS).where(CURRENT.c.user_key == bindparam("user_key", b""))
        self._text, values = driver_text(engine, asked)
        self._by_position = isinstance(values, tuple)
        self._read_state = lru_cache(1 << 14)(self._parse_state)
        self._closed = False

    def standing(self, key: bytes) -> Standing:
        """As `Ledger.standing`, of a key that is long enough."""
        try:
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._open_reader()
            # A reader that fails is dropped here, not put back.
            rows = reader[1].execute(self._text, (key,) if self._by_position else {"user_key": key}).fetchall()
            self._put_back(reader)
            if not rows:
                return STRANGER
            state, preference, sequence, erased_at, erasure = rows[0]
            granted, grants = self._read_state(state)
            if not erasure:
                return Standing(granted, grants, int(preference), int(sequence), True)
            known = int(sequence) > int(erasure)
            return Standing(granted, grants, int(preference), int(sequence), known, int(erased_at), int(erasure))
        except LedgerUnavailable:
            raise
        except (self._failures, OSError, ValueError, TypeError, AttributeError) as error:
            raise unavailable("read", error) from error

    def mask(self, state: str) -> int:
        """The grants of a stored state as a mask.

        Raises:
            ValueError: it is not one.
        """
        return self._read_state(state)[0]

    def refuse_if_closed(self) -> None:
        """Raises LedgerUnavailable once `close` was called."""
        if self._closed:
            raise LedgerUnavailable("The consent ledger is closed.", "Open it again.")

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
        self.refuse_if_closed()
        with told("read", self._failures):
            connection = self._engine.raw_connection()
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
