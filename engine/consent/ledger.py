"""The consent ledger: every change ever made, and what it amounts to now. A change that was answered is on disk.

Writers go one after the other and move the projection in the transaction that appends the change; readers never wait.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Select, select, update

from engine.consent import audit, imports, replay
from engine.consent.audit import AuditCheck, AuditRow
from engine.consent.changes import (
    ALONE,
    Change,
    Erasure,
    Held,
    Imported,
    Recorded,
    RecordedChange,
    Standing,
    checked_key,
    checked_texts,
    now_micros,
    recorded_change,
    when_occurred,
)
from engine.consent.erasure import erase_person
from engine.consent.linked import part_after_import, persons, spread
from engine.consent.links import Links
from engine.consent.lookup import LookUp
from engine.consent.opening import open_store
from engine.consent.recording import lines_of, record_lines
from engine.consent.store import Store
from engine.consent.tables import CHANGES, CURRENT, LEDGER, stream
from engine.consent.vocabulary import Level, Vocabulary
from engine.errors import ConsentError, LedgerUnavailable


class Ledger:
    """One deployment's ledger; threads may share it. Make it with `Ledger.open`."""

    def __init__(self, store: Store, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._bits = {f"{p}/{s}": vocabulary.mask(p, s) for p in vocabulary.purposes for s in vocabulary.sources}
        self._store = store
        self._look_up = LookUp(store, self._bits)
        self.links = Links(store, vocabulary)

    @classmethod
    def open(cls, url: str, vocabulary: Vocabulary, patience: float = 10.0) -> Ledger:
        """Open a ledger, and make it where there is none.

        Args:
            url: `sqlite:////absolute/path.db`, readable by its owner alone; or `postgresql://user@host:port/database`, the
                primary, which needs the extra `postgres`.
            vocabulary: gives names their bits. The ledger holds names, so that the vocabulary may grow.
            patience: seconds that a writer waits for another process before it gives up; with a server, after which every
                call gives up, and one that has much to read or to write once the server has been silent for so long.

        Raises:
            LedgerUnavailable: it cannot be opened, is damaged, or is of a newer format.
        """
        return cls(open_store(url, patience), vocabulary)

    def bind(self, key_id: str) -> None:
        """Tie the ledger to the stable key that names people in it; the first caller decides.

        Args:
            key_id: of the stable user key.

        Raises:
            LedgerUnavailable: its people are named by another key, so that none would be found, and a withdrawal would be
                written beside the grant that it means.
        """
        checked_texts(key_id)
        with self._store.recording() as connection:
            held = connection.execute(select(LEDGER.c.stable_key).with_for_update()).scalar_one()
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
        """Record what a person decided, under each of their linked ids; all of it or nothing, on disk when this returns.

        Args:
            key: the stable user key, 16 bytes.
            changes: in one call a withdrawal wins over a grant of the same pair, and over a grant for all sources.
            preference: the new level of the dial, 0 to unset it, None to leave it.
            notice_version: the text that the person saw.
            actor: who decided: person, guardian, operator.
            request_id: a second call with it for the same person gets the first answer and adds nothing; may be empty.
            occurred_at: when, with a time zone, for the record; the ledger's order decides.

        Raises:
            ConsentError: nothing to record, a bad preference or time, a request id that was used for something else, or an
                unknown name; what somebody holds under a name that was retired since can be withdrawn.
            LedgerUnavailable: the store failed. Nothing was recorded, unless it failed while it said so: sent again under
                its request id, the call is recorded once, and gets the first answer.
        """
        retired = self._check(key, changes, preference)
        occurred = when_occurred(occurred_at)
        checked_texts(notice_version, actor, request_id)
        lines, effects = lines_of(changes, preference, self.vocabulary.sources)
        with self._store.recording() as connection:
            about = {
                "user_key": key,
                "notice_version": notice_version,
                "actor": actor,
                "request_id": request_id or None,
                "recorded_at": now_micros(),
                "occurred_at": occurred,
            }
            return record_lines(connection, lines, effects, about, retired)

    def erase(self, key: bytes, actor: str, request_id: str) -> Erasure:
        """Forget a person, under each of their linked ids: nothing is granted, and nothing of their history is left. It is on
        disk when this returns.

        Args:
            key: the stable user key, 16 bytes; of somebody unknown it has the same effect and the same answer.
            actor: who asked for it: person, guardian, operator.
            request_id: a second call with it changes nothing, whatever was granted since; may be empty.

        Returns:
            The receipt; erasing again where nothing was recorded since gives the first one's.

        Raises:
            ConsentError: the key is not 16 bytes, or a text is not Unicode.
            LedgerUnavailable: the store failed. Nothing was erased, unless it failed while it said so: send it again.
        """
        checked_key(key)
        checked_texts(actor, request_id)
        with self._store.recording() as connection:
            return erase_person(connection, key, actor, request_id, now_micros())

    def standing(self, key: bytes) -> Standing:
        """What a person allows now, from one read of one row. Someone not in the ledger allows nothing.

        Raises:
            ConsentError: the key is not 16 bytes.
            LedgerUnavailable: the store failed or what it holds makes no sense: treat the person as unknown.
        """
        checked_key(key)
        return self._look_up.standing(key)

    def sequence(self) -> int:
        """The number of the last call recorded, over all people; 0 in an empty ledger.

        Raises:
            LedgerUnavailable: the store failed.
        """
        with self._store.reading() as connection:
            return audit.sequence(connection)

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
        checked_key(key)
        if limit < 1:
            raise ConsentError(f"A page of {limit} changes was asked for.", "Ask for at least 1.")
        ordered = select(CHANGES).order_by(CHANGES.c.sequence, CHANGES.c.position).where(CHANGES.c.user_key == key)
        with self._store.reading() as connection:
            rows = connection.execute(ordered.where(CHANGES.c.sequence > after).limit(limit + 1)).all()
            if len(rows) > limit:
                cut = rows[limit].sequence
                whole = [row for row in rows if row.sequence < cut]
                rows = whole or connection.execute(ordered.where(CHANGES.c.sequence == cut)).all()
            return [recorded_change(row) for row in rows]

    def import_grants(self, table: pa.Table) -> Imported:
        """Bring in grants that a team holds elsewhere: some thousand rows at a time, so that nobody's withdrawal has to wait.

        Args:
            table: schema.GRANTS, with `user_key` (16 bytes, stable) in place of `user_id`, in any order. In time, and
                where times tie, a withdrawal wins. Without a time, a grant is older and a withdrawal younger than all.

        Returns:
            What happened. A row imported before is skipped, whatever the person has decided since, and so is a grant
            no younger than a recorded withdrawal of the same, and a row no younger than the person's erasure.

        Raises:
            ConsentError: a column or a name is wrong; nothing was imported.
            LedgerUnavailable: the store failed. Some people's rows may have been imported, each person's all or none: import it
                again.
        """
        now = now_micros()
        rows, given = imports.checked_grants(table, self.vocabulary, now), table.num_rows
        with self._store.reading(at_length=True) as connection:
            linked = persons(connection)
        people = changes = 0
        given -= rows.num_rows
        for number, piece in enumerate(imports.pieces(rows, linked)):
            if number:
                self._store.give_way()
            with self._store.recording(at_length=True) as connection:
                # Links are those of this moment: one that is made or taken apart between two pieces counts for what follows.
                wider = spread(connection, piece)
                if linked or wider is not piece:
                    wider = imports.ordered(wider, now)
                came, more, parted = imports.import_rows(connection, wider, self.vocabulary, now)
                part_after_import(connection, now, parted)
            people, changes, given = people + came, changes + more, given + wider.num_rows
        return Imported(people, changes, given - changes)

    def standings(self, at: int | None = None) -> tuple[pa.Table, int]:
        """What everybody allows, now or as of an earlier sequence.

        Args:
            at: a sequence that `sequence` has given; None for now.

        Returns:
            A table of schema.STANDINGS sorted by user key, and the sequence that it is of. An erasure holds for every
            sequence: what went before it is not replayed.

        Raises:
            ConsentError: the ledger has not come that far.
            LedgerUnavailable: the store failed or what it holds makes no sense.
        """
        with self._store.reading(at_length=True) as connection:
            head = audit.sequence(connection)
            if at is None:
                return replay.current_standings(connection, self._bits), head
            if not 0 <= at <= head:
                raise ConsentError(
                    f"The consent ledger stands at {head}, asked was {at}.",
                    "Ask for an earlier sequence; if the ledger was restored from a backup, changes are missing.",
                )
            return replay.replayed_standings(connection, at, self._bits), at

    def state(self) -> tuple[replay.State, int]:
        """What everybody allows now, erasures included, and the sequence that it is of.

        Raises:
            LedgerUnavailable: the store failed or what it holds makes no sense.
        """
        with self._store.reading(at_length=True) as connection:
            head = audit.sequence(connection)
            return replay.current_state(connection, self._bits), head

    @contextmanager
    def moves(self, after: int) -> Iterator[tuple[int, Iterator[list[Held]]]]:
        """How far the ledger has come, and in batches the state of everybody who moved since a sequence.

        Both are of one moment, after the block was entered: whatever was acknowledged before is in it.

        Args:
            after: up to which the caller has everything.

        Raises:
            LedgerUnavailable: the store failed or what it holds makes no sense.
        """
        with self._store.reading(at_length=True) as connection:
            head = audit.sequence(connection)
            moved = select(*replay.STATE_COLUMNS).where(CURRENT.c.sequence > after)
            # Closed before the connection serves somebody else, however far the caller read.
            with closing(self._held(connection, moved)) as batches:
                yield head, batches if head > after else iter(())

    def audit(self, action: str, actor: str, detail: Mapping[str, Any]) -> None:
        """Add a row to the audit log; on disk when this returns.

        Args:
            action: what was done, as a word: snapshot_promoted.
            actor: who did it.
            detail: plain values, without anything that leads to a person: rows are never removed.

        Raises:
            ConsentError: the action is no word, the actor empty, or the detail no JSON.
            LedgerUnavailable: the store failed; nothing was recorded.
        """
        audit.checked_action(action, actor)
        audit.canonical(detail)
        with self._store.recording() as connection:
            audit.append(connection, audit.locked_head(connection), now_micros(), actor, action, detail)

    def audit_head(self, at_sequence: int | None = None) -> str:
        """The hash at the head of the audit log, in hex; '' before its first row.

        Args:
            at_sequence: up to which the ledger's moves count. Other rows, such as that of a publication, are then passed
                over, so that a night that is run again at its sequence finds the same hash.

        Raises:
            LedgerUnavailable: the store failed.
        """
        with self._store.reading() as connection:
            return audit.head_at(connection, at_sequence)

    def audit_rows(self, last: int) -> list[AuditRow]:
        """The last rows of the audit log, oldest first.

        Raises:
            LedgerUnavailable: the store failed.
        """
        with self._store.reading() as connection:
            return audit.last_rows(connection, last)

    def verify_audit(self, heads: Sequence[str] = ()) -> AuditCheck:
        """Check the whole audit log: nothing edited, removed, moved or cut off since it was written.

        Args:
            heads: hashes recorded elsewhere, such as in manifests, which must be in it. They alone reveal that someone who
                may write to the database wrote the log anew from some row on.

        Raises:
            LedgerUnavailable: the store failed, or holds what cannot be read.
        """
        with self._store.reading(at_length=True) as connection:
            return audit.verify(connection, heads)

    def close(self) -> None:
        """Let go of the database. Every later call raises LedgerUnavailable."""
        self._look_up.close()
        self._store.close()

    def _held(self, connection: Connection, statement: Select[Any]) -> Generator[list[Held], None, None]:
        mask = self._look_up.mask
        for rows in stream(connection, statement):
            yield [
                Held(bytes(key), mask(state), int(dial), int(sequence), int(at), int(erasure), bytes(person or ALONE))
                for key, state, dial, sequence, at, erasure, person in rows
            ]

    def _check(self, key: bytes, changes: Sequence[Change], preference: int | None) -> dict[Change, ConsentError]:
        """Refuse what cannot be; returns the withdrawals of unknown names, each with the error for it."""
        checked_key(key)
        if not changes and preference is None:
            raise ConsentError("There is nothing to record.", "Send at least one change or a preference.")
        retired = {}
        for change in changes:
            try:
                self.vocabulary.mask(change.purpose, change.source)
            except ConsentError as error:
                if change.granted:
                    raise
                retired[change] = error
        if preference is not None and preference not in tuple(Level):
            raise ConsentError(f"{preference} is no preference.", "Use 0 (unset) to 4 (full).")
        return retired
