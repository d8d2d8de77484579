"""The consent ledger: every change ever made, and what it amounts to now. A change that was answered is on disk.

Writers go one after the other and move the projection in the transaction that appends the change; readers never wait.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from engine.consent import imports, replay
from engine.consent.changes import (
    STRANGER,
    Change,
    Imported,
    Recorded,
    RecordedChange,
    Standing,
    advance,
    effect_of,
    grants_in,
    in_force_order,
    micros,
    recorded_change,
)
from engine.consent.tables import CHANGES, CURRENT, LEDGER, PUT_CURRENT, driver_text, open_engine, told, unavailable
from engine.consent.vocabulary import Level, Vocabulary
from engine.errors import ConsentError, LedgerUnavailable
from engine.identity import KEY_BYTES


class Ledger:
    """One deployment's ledger; threads may share it. Make it with `Ledger.open`."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._bits = {f"{p}/{s}": vocabulary.mask(p, s) for p in vocabulary.purposes for s in vocabulary.sources}
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._writing = threading.Lock()  # threads queue here, where waiting is fair, and not at the file's lock
        self._failures: type[BaseException] = engine.dialect.loaded_dbapi.Error
        self._closed = False
        # One look-up a request: Core and the pool would cost several times the query itself. A reader is taken from
        # here and put back, so that there are as many as have ever read at once.
        self._readers: deque[tuple[Any, Any]] = deque()
        look_up = select(CURRENT.c.granted, CURRENT.c.preference, CURRENT.c.sequence)
        self._look_up, values = driver_text(engine, look_up.where(CURRENT.c.user_key == bindparam("user_key", b"")))
        self._by_position = isinstance(values, tuple)
        self._read_state = lru_cache(1 << 14)(self._parse_state)

    @classmethod
    def open(cls, url: str, vocabulary: Vocabulary, patience: float = 10.0) -> Ledger:
        """Open a ledger, and make it, readable by its owner alone, where there is none.

        Args:
            url: `sqlite:////absolute/path.db`.
            vocabulary: gives names their bits. The ledger holds names, so that the vocabulary may grow.
            patience: seconds that a writer waits for another process before it gives up.

        Raises:
            LedgerUnavailable: it cannot be opened, is damaged, or is of a newer format.
        """
        return cls(open_engine(url, patience), vocabulary)

    def bind(self, key_id: str) -> None:
        """Tie the ledger to the stable key that names people in it; the first caller decides.

        Args:
            key_id: of the stable user key.

        Raises:
            LedgerUnavailable: its people are named by another key, so that none would be found, and a withdrawal would be
                written beside the grant that it means.
        """
        with self._writing, told("written", self._failures), self._writer.begin() as connection:
            held = connection.execute(select(LEDGER.c.stable_key)).scalar_one()
            if not held:
                connection.execute(update(LEDGER).values(stable_key=key_id))
        if held and held != key_id:
            raise LedgerUnavailable(
                f"The consent ledger names people by the stable key {held}, not by {key_id}.",
                "Put the deployment's stable.key back.",
            )

    def record(
        self,
        key: bytes,
        changes: Sequence[Change],
        preference: int | None,
        notice_version: str,
        actor: str,
        request_id: str,
        occurred_at: datetime | None,
    ) -> Recorded:
        """Record what a person decided; all of it or nothing, on disk when this returns.

        Args:
            key: the stable user key, 16 bytes.
            changes: in one call a withdrawal wins over a grant of the same pair, and over a grant for all sources.
            preference: the new level of the dial, 0 to unset it, None to leave it.
            notice_version: the text that the person saw.
            actor: who decided: person, guardian, operator.
            request_id: a second call with it for the same person gets the first answer and adds nothing; may be empty.
            occurred_at: when, with a time zone, for the record; the ledger's order decides.

        Raises:
            ConsentError: nothing to record, an unknown name, a bad preference or time, or a request id that was used
                for something else.
            LedgerUnavailable: the store failed; nothing was recorded.
        """
        self._check(key, changes, preference, (notice_version, actor, request_id), occurred_at)
        every = " ".join(self.vocabulary.sources)
        lines: list[dict[str, Any]] = []
        effects: list[str] = []
        for change in in_force_order(changes):
            covers = "" if change.source or not change.granted else every
            effects.append(effect_of(change.purpose, change.source, change.granted, covers))
            lines.append(_line(change.purpose, change.source, change.granted, covers or None, None))
        if preference is not None:
            lines.append(_line("", "", False, None, preference))
        with self._recording() as connection:
            head = _head(connection, lock=True)
            if request_id and (earlier := _earlier(connection, key, request_id, lines)):
                return earlier
            common: dict[str, Any] = {
                "user_key": key,
                "sequence": head + 1,
                "notice_version": notice_version,
                "actor": actor,
                "request_id": request_id or None,
                "imported": False,
                "recorded_at": micros(datetime.now(UTC)),
                "occurred_at": None if occurred_at is None else micros(occurred_at),
            }
            receipt = _receipt(common, lines)
            rows = [line | common | {"receipt_id": receipt, "position": n} for n, line in enumerate(lines)]
            connection.execute(insert(CHANGES), rows)
            row = connection.execute(select(CURRENT).where(CURRENT.c.user_key == key)).one_or_none()
            after = {
                "user_key": key,
                "granted": advance(row.granted if row else "", tuple(effects)),
                "preference": preference if preference is not None else row.preference if row else 0,
                "sequence": head + 1,
            }
            connection.execute(PUT_CURRENT, after)
            connection.execute(update(LEDGER).values(sequence=head + 1))
        return Recorded(head + 1, receipt)

    def standing(self, key: bytes) -> Standing:
        """What a person allows now, from one read of one row. Someone not in the ledger allows nothing.

        Raises:
            ConsentError: the key is not 16 bytes.
            LedgerUnavailable: the store failed or what it holds makes no sense: treat the person as unknown.
        """
        _check_key(key)
        try:
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._open_reader()
            # A reader that fails is dropped here, not put back.
            rows = reader[1].execute(self._look_up, (key,) if self._by_position else {"user_key": key}).fetchall()
            self._put_back(reader)
            if not rows:
                return STRANGER
            state, preference, sequence = rows[0]
            granted, grants = self._read_state(state)
            return Standing(granted, grants, int(preference), int(sequence), True)
        except LedgerUnavailable:
            raise
        except (self._failures, OSError, ValueError, TypeError, AttributeError) as error:
            raise unavailable("read", error) from error

    def sequence(self) -> int:
        """The number of the last call recorded, over all people; 0 in an empty ledger.

        Raises:
            LedgerUnavailable: the store failed.
        """
        with self._reading() as connection:
            return _head(connection)

    def changes(self, key: bytes, after: int, limit: int) -> list[RecordedChange]:
        """A page of a person's history, oldest first.

        Args:
            key: the stable user key.
            after: the sequence of the last change that the caller has; 0 to begin.
            limit: how many at most. A call is never split: one that is longer than the limit comes whole, alone.

        Returns:
            Empty when there is nothing more.

        Raises:
            ConsentError: the limit is below 1.
            LedgerUnavailable: the store failed.
        """
        _check_key(key)
        if limit < 1:
            raise ConsentError(f"A page of {limit} changes was asked for.", "Ask for at least 1.")
        ordered = select(CHANGES).order_by(CHANGES.c.sequence, CHANGES.c.position).where(CHANGES.c.user_key == key)
        with self._reading() as connection:
            rows = connection.execute(ordered.where(CHANGES.c.sequence > after).limit(limit + 1)).all()
            if len(rows) > limit:
                cut = rows[limit].sequence
                whole = [row for row in rows if row.sequence < cut]
                rows = whole or connection.execute(ordered.where(CHANGES.c.sequence == cut)).all()
            return [recorded_change(row) for row in rows]

    def import_grants(self, table: pa.Table) -> Imported:
        """Bring in grants that a team holds elsewhere; all of them or none.

        Args:
            table: schema.GRANTS, with `user_key` (16 bytes, stable) in place of `user_id`, in any order. In time, and
                where times tie, a withdrawal wins. Without a time, a grant is older and a withdrawal younger than all.

        Returns:
            What happened. A row imported before is skipped, whatever the person has decided since, and so is a grant
            no younger than a recorded withdrawal of the same.

        Raises:
            ConsentError: a column or a name is wrong; nothing was imported.
            LedgerUnavailable: the store failed; nothing was imported.
        """
        now = micros(datetime.now(UTC))
        rows = imports.checked_grants(table, self.vocabulary, now)
        with self._recording() as connection:
            head = _head(connection, lock=True)
            people, changes = imports.import_rows(connection, rows, self.vocabulary, head, now)
            if people:
                connection.execute(update(LEDGER).values(sequence=head + people))
        return Imported(people, changes, table.num_rows - changes)

    def standings(self, at: int | None = None) -> tuple[pa.Table, int]:
        """What everybody allows, now or as of an earlier sequence.

        Args:
            at: a sequence that `sequence` has given; None for now.

        Returns:
            A table of schema.STANDINGS sorted by user key, and the sequence that it is of.

        Raises:
            ConsentError: the ledger has not come that far.
            LedgerUnavailable: the store failed or what it holds makes no sense.
        """
        with self._reading() as connection:
            head = _head(connection)
            if at is None:
                return replay.current_standings(connection, self._bits), head
            if not 0 <= at <= head:
                raise ConsentError(
                    f"The consent ledger stands at {head}, asked was {at}.",
                    "Ask for an earlier sequence; if the ledger was restored from a backup, changes are missing.",
                )
            return replay.replayed_standings(connection, at, self._bits), at

    def close(self) -> None:
        """Let go of the database. Every later call raises LedgerUnavailable."""
        self._closed = True
        while True:
            try:
                connection, _ = self._readers.pop()
            except IndexError:
                break  # another thread took it; it comes back by _put_back
            connection.close()
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self._refuse_if_closed()
        # ValueError and TypeError: what the store holds is not what was written to it.
        with told("read", self._failures, ValueError, TypeError), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _recording(self) -> Iterator[Connection]:
        self._refuse_if_closed()
        with self._writing, told("written", self._failures), self._writer.begin() as connection:
            yield connection

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LedgerUnavailable("The consent ledger is closed.", "Open it again.")

    def _open_reader(self) -> tuple[Any, Any]:
        self._refuse_if_closed()
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

    def _check(
        self,
        key: bytes,
        changes: Sequence[Change],
        preference: int | None,
        texts: Sequence[str],
        occurred_at: datetime | None,
    ) -> None:
        _check_key(key)
        if not changes and preference is None:
            raise ConsentError("There is nothing to record.", "Send at least one change or a preference.")
        for change in changes:
            self.vocabulary.mask(change.purpose, change.source)
        if preference is not None and preference not in tuple(Level):
            raise ConsentError(f"{preference} is no preference.", "Use 0 (unset) to 4 (full).")
        if occurred_at is not None and occurred_at.tzinfo is None:
            raise ConsentError(f"The time {occurred_at} has no time zone.", "Give it one, UTC for choice.")
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise ConsentError("The notice version, actor or request id is not valid Unicode.", "Send UTF-8.") from None


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ConsentError(f"A user key has {KEY_BYTES} bytes, found {len(key)}.", "Derive it with UserKeys.stable.")


def _head(connection: Connection, lock: bool = False) -> int:
    statement = select(LEDGER.c.sequence)
    return int(connection.execute(statement.with_for_update() if lock else statement).scalar_one())


def _earlier(connection: Connection, key: bytes, request_id: str, lines: Sequence[dict[str, Any]]) -> Recorded | None:
    asked = select(CHANGES).where(CHANGES.c.user_key == key, CHANGES.c.request_id == request_id)
    rows = connection.execute(asked).all()
    if not rows:
        return None
    said = ("purpose", "source", "granted", "preference")
    if {tuple(getattr(row, name) for name in said) for row in rows} != {tuple(line[n] for n in said) for line in lines}:
        # An answer that repeats the first would acknowledge a withdrawal that was never recorded.
        raise ConsentError(
            f"The request id '{request_id}' was used before, for other changes of this person.",
            "Give each request an id of its own; repeat one only to send the same request again.",
        )
    return Recorded(int(rows[0].sequence), str(rows[0].receipt_id))


def _line(purpose: str, source: str, granted: bool, covers: str | None, preference: int | None) -> dict[str, Any]:
    return {"purpose": purpose, "source": source, "granted": granted, "covers": covers, "preference": preference}


def _receipt(common: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    # Over the content, so that a receipt can be held against the ledger later.
    said = json.dumps([common | {"user_key": common["user_key"].hex()}, *lines], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]
