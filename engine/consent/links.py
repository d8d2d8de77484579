"""Ids of one person, put together and taken apart: a person with a shop id and an app id is known under both, if they want it.

While ids are linked, what is decided under one of them is recorded under each, in one transaction; so every id stands for itself
wherever consent is read, and nothing has to be resolved. What the night makes of their events together is kept under the person
that they share, and is out of reach once they share none.

The consent for it is the purpose cross_source: linking grants it, and who withdraws it, for any source, is taken apart.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, select

from engine.consent import audit
from engine.consent.changes import (
    ALONE,
    LINKED,
    Recorded,
    checked_key,
    checked_texts,
    effect_of,
    now_micros,
    when_occurred,
)
from engine.consent.linked import overruled, persons_of
from engine.consent.recording import append_call, asked_before, line_of, others_of, used_otherwise
from engine.consent.store import Store
from engine.consent.tables import CHANGES, CURRENT, stream
from engine.consent.vocabulary import CROSS_SOURCE, Vocabulary
from engine.errors import ConsentError
from engine.identity import KEY_BYTES
from engine.schema import LINKS

MOST = 16  # ids of one person: a change is recorded under each
# Its place in the ledger's order, what was decided, whether it was imported, and when it was decided.
_Decision = tuple[tuple[int, int], Any, bool, int]
_LONG_AGO = -(2**63)
_DIAL = ("", "")  # what decisions about the dial are about


class Links:
    """The links of one ledger; threads may share it. A ledger has it as `links`."""

    def __init__(self, store: Store, vocabulary: Vocabulary) -> None:
        self._store = store
        self._vocabulary = vocabulary

    def link(
        self,
        keys: Sequence[bytes],
        notice_version: str,
        actor: str,
        request_id: str,
        occurred_at: datetime | None,
    ) -> Recorded:
        """Put ids together, with all those that each is linked with already; all of it or nothing, on disk when this returns.

        Of what was decided under any of them about a purpose and source, and about the dial, the last decision stands for all.

        Args:
            keys: stable user keys, 2 or more.
            notice_version: the text that the person saw.
            actor: who decided: person, guardian, operator.
            request_id: a second call with it gets the first answer and adds nothing; may be empty.
            occurred_at: when, with a time zone, for the record.

        Returns:
            The answer for the first id; its sequence covers the others'.

        Raises:
            ConsentError: a key is not 16 bytes, there are too few or too many, the vocabulary has no purpose cross_source, or
                the request id was used for something else.
            LedgerUnavailable: the store failed. Nothing was recorded, unless it failed while it said so.
        """
        recorded = self._link(keys, _about(notice_version, actor, occurred_at), request_id)
        assert recorded is not None  # which is of imports alone
        return recorded

    def bring_in(
        self,
        keys: Sequence[bytes],
        notice_version: str,
        actor: str,
        request_id: str,
        occurred_at: datetime | None,
    ) -> Recorded | None:
        """`link` of what a team holds elsewhere: None, and nothing recorded, where one of the ids was erased or withdrew
        cross_source since.

        Args:
            occurred_at: when they were linked, not in the future; None counts as long ago.
        """
        about = _about(notice_version, actor, occurred_at)
        if (about["occurred_at"] or 0) > about["recorded_at"]:
            raise ConsentError(
                "A link lies in the future.", "Correct its time: it would outlast every withdrawal until then."
            )
        return self._link(keys, about, request_id, imported=True)

    def give_way(self) -> None:
        """Let other processes write between two of many calls."""
        self._store.give_way()

    def _link(
        self, keys: Sequence[bytes], about: Mapping[str, Any], request_id: str, imported: bool = False
    ) -> Recorded | None:
        for key in keys:
            checked_key(key)
        checked_texts(about["notice_version"], about["actor"], request_id)
        if len(set(keys)) < 2:
            raise ConsentError("There is one id to link.", "Name two different ones at least.")
        if CROSS_SOURCE not in self._vocabulary.purposes:
            raise ConsentError(
                f"The vocabulary has no purpose '{CROSS_SOURCE}', so that nobody can consent to linking.",
                "Add it to consent.purposes.",
            )
        first = keys[0]
        with self._store.recording() as connection:
            head = audit.locked_head(connection)
            if imported and overruled(connection, keys, about["occurred_at"]):
                return None
            if request_id and (earlier := asked_before(connection, first, request_id)):
                return _linked_before(connection, earlier, keys, request_id)
            together = sorted({member for key in keys for member in (key, *others_of(connection, key))})
            if len(together) > MOST:
                raise ConsentError(
                    f"{len(together)} ids would be linked.", f"A person has at most {MOST}: unlink those out of use."
                )
            decisions = {key: _decisions(connection, key, self._vocabulary.sources) for key in together}
            person = _person(connection, together)
            for key in [*(each for each in together if each != first), first]:
                lines = self._lines(decisions, key, person)
                effects = [
                    effect_of(line["purpose"], line["source"], line["granted"], line["covers"] or "")
                    for line in lines
                    if line["purpose"] not in ("", LINKED)
                ]
                asked = request_id if key == first else ""
                call = {**about, "user_key": key, "request_id": asked or None}
                head, recorded = append_call(connection, head, call, lines, effects)
        return recorded

    def unlink(
        self, key: bytes, notice_version: str, actor: str, request_id: str, occurred_at: datetime | None
    ) -> Recorded:
        """Take an id from those that it is linked with, and withdraw its cross_source; the others stay together.

        What was made of their events together is used for none of them from then on.

        Args:
            key: a stable user key; the rest as for `link`. Of an id that is linked with none, cross_source alone is withdrawn.

        Raises:
            ConsentError, LedgerUnavailable: as for `link`.
        """
        checked_key(key)
        checked_texts(notice_version, actor, request_id)
        about = _about(notice_version, actor, occurred_at)
        mine = [line_of(CROSS_SOURCE, "", False)]
        with self._store.recording() as connection:
            head = audit.locked_head(connection)
            if request_id and (earlier := asked_before(connection, key, request_id)):
                if not any(row.purpose == CROSS_SOURCE and not row.granted for row in earlier):
                    raise used_otherwise(request_id)
                return Recorded(int(earlier[0].sequence), str(earlier[0].receipt_id))
            others = others_of(connection, key)
            if others:
                person = persons_of(connection, [key]).pop()
                mine.append(line_of(LINKED, person.hex(), False))
                # The person that stays is another one: the night's record of the old one tells of the id that went.
                left = [line_of(LINKED, person.hex(), False)]
                left += [line_of(LINKED, secrets.token_hex(KEY_BYTES), True)] if len(others) > 1 else []
                for other in others:
                    call = about | {"user_key": other, "request_id": None}
                    head, _ = append_call(connection, head, call, left, [])
            call = about | {"user_key": key, "request_id": request_id or None}
            return append_call(connection, head, call, mine, [effect_of(CROSS_SOURCE, "", False, "")])[1]

    def others(self, key: bytes) -> list[bytes]:
        """The ids that one is linked with, without itself.

        Raises:
            ConsentError: the key is not 16 bytes. LedgerUnavailable: the store failed.
        """
        checked_key(key)
        with self._store.reading() as connection:
            return others_of(connection, key)

    def at(self, sequence: int) -> pa.Table:
        """Who was linked after everything up to a sequence: schema.LINKS by user key.

        Raises:
            LedgerUnavailable: the store failed, or what it holds makes no sense.
        """
        found: dict[bytes, bytes] = {}
        with self._store.reading(at_length=True) as connection:
            if sequence >= audit.sequence(connection):
                now = select(CURRENT.c.user_key, CURRENT.c.person).where(CURRENT.c.person.is_not(None))
                for rows in stream(connection, now):
                    found.update((bytes(key), bytes(person)) for key, person in rows)
            else:
                columns = (CHANGES.c.user_key, CHANGES.c.source, CHANGES.c.granted)
                told = select(*columns).where(CHANGES.c.purpose == LINKED, CHANGES.c.sequence <= sequence)
                for rows in stream(connection, told.order_by(CHANGES.c.sequence, CHANGES.c.position)):
                    for key, person, granted in rows:
                        found[bytes(key)] = bytes.fromhex(person) if granted else ALONE
        links = sorted((key, person) for key, person in found.items() if person != ALONE)
        return pa.table([[key for key, _ in links], [person for _, person in links]], schema=LINKS)

    def _lines(
        self, decisions: Mapping[bytes, Mapping[tuple[str, str], _Decision]], key: bytes, person: bytes
    ) -> list[dict[str, Any]]:
        """What an id has to be told, so that the last decisions of all hold for it, and that it belongs to a person."""
        told: dict[tuple[str, str], list[_Decision]] = {}
        for of_one in decisions.values():
            for pair, decision in of_one.items():
                told.setdefault(pair, []).append(decision)
        last = {pair: _last(each) for pair, each in told.items()}
        known = {(purpose, source) for purpose in self._vocabulary.purposes for source in self._vocabulary.sources}
        lines = []
        for pair, (_, decided, _, _) in sorted(last.items()):
            mine = decisions[key].get(pair)
            if pair == _DIAL or pair[0] == CROSS_SOURCE or (mine is not None and mine[1] == decided):
                continue
            if pair in known or (mine is not None and not decided):  # a retired name can be withdrawn alone
                lines.append(line_of(*pair, decided))
        lines.append(line_of(CROSS_SOURCE, "", True, " ".join(self._vocabulary.sources)))
        lines.append(line_of(LINKED, person.hex(), True))
        dial, mine = last.get(_DIAL), decisions[key].get(_DIAL)
        if dial is not None and dial[1] != (mine[1] if mine is not None else 0):
            lines.append(line_of("", "", False, preference=dial[1]))
        return lines


def _about(notice_version: str, actor: str, occurred_at: datetime | None) -> dict[str, Any]:
    return {
        "notice_version": notice_version,
        "actor": actor,
        "recorded_at": now_micros(),
        "occurred_at": when_occurred(occurred_at),
    }


def _linked_before(connection: Connection, earlier: Sequence[Any], keys: Sequence[bytes], request_id: str) -> Recorded:
    """The first answer to a call that linked the same ids."""
    persons = {row.source for row in earlier if row.purpose == LINKED and row.granted}
    asked = select(CHANGES.c.user_key).where(
        CHANGES.c.user_key.in_(set(keys)), CHANGES.c.purpose == LINKED, CHANGES.c.source.in_(persons), CHANGES.c.granted
    )
    if not persons or {bytes(key) for key in connection.execute(asked).scalars()} != set(keys):
        raise used_otherwise(request_id)
    return Recorded(int(earlier[0].sequence), str(earlier[0].receipt_id))


def _decisions(connection: Connection, key: bytes, sources: Iterable[str]) -> dict[tuple[str, str], _Decision]:
    """The last decision about each purpose and source, and about the dial, of one id."""
    found: dict[tuple[str, str], _Decision] = {}
    rows = select(CHANGES).where(CHANGES.c.user_key == key).order_by(CHANGES.c.sequence, CHANGES.c.position)
    for row in connection.execute(rows):
        place, imported = (int(row.sequence), int(row.position)), bool(row.imported)
        when = int(row.recorded_at)
        if imported and (row.granted or row.occurred_at is not None):
            when = _LONG_AGO if row.occurred_at is None else int(row.occurred_at)
        if row.preference is not None:
            found[_DIAL] = (place, int(row.preference), imported, when)
        elif row.purpose != LINKED:
            about = [row.source] if row.source else (row.covers or "").split()
            if not row.source and not row.granted:
                about = sorted({*sources, *(source for purpose, source in found if purpose == row.purpose)})
            for source in about:
                found[row.purpose, source] = (place, bool(row.granted), imported, when)
    return found


def _last(told: Sequence[_Decision]) -> _Decision:
    """Which of several ids' decisions stands: the last recorded, but for imported grants that are no younger than a withdrawal.

    As where one id's grants are imported: a file that came late says nothing of what was decided since.
    """
    withdrawn = max((when for _, decided, _, when in told if decided is False), default=_LONG_AGO - 1)
    return max(each for each in told if not (each[1] is True and each[2] and each[3] <= withdrawn))


def _person(connection: Connection, keys: Sequence[bytes]) -> bytes:
    """What ids that are put together share: what some of them share already, so that their list goes on, or something new."""
    return min(persons_of(connection, keys), default=secrets.token_bytes(KEY_BYTES))
