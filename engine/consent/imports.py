"""Grants that a team brings along, into the ledger in bulk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, delete, func, insert, or_, select

from engine.consent import audit
from engine.consent.changes import advance, effect_of
from engine.consent.tables import CHANGES, CURRENT, CURRENT_STATE, PUT_CURRENT, STAGED, insert_many, stream
from engine.consent.vocabulary import CROSS_SOURCE, Vocabulary
from engine.errors import ConsentError
from engine.identity import KEY_BYTES
from engine.schema import GRANTS, USER_KEY

KEYED_GRANTS = GRANTS.set(0, GRANTS.field("user_id").with_type(USER_KEY).with_name("user_key"))
_PEOPLE = 20_000  # worked on at a time: bounds the memory
_REQUIRED = ("user_key", "purpose", "source", "granted")
_LONG_AGO = -(2**63)  # a row that does not say when
_ROWS = 1 << 16
_PIECE = 1 << 13  # rows of one transaction, about half a second
_LINE = (
    "user_key", "sequence", "position", "purpose", "source", "covers", "granted", "notice_version", "actor",
    "imported", "recorded_at", "occurred_at",
)  # fmt: skip

Content = tuple[str, str, bool, str, str, int]  # purpose, source, granted, notice_version, actor, occurred_at


def checked_grants(table: pa.Table, vocabulary: Vocabulary, now: int) -> pa.Table:
    """The distinct rows of a table of grants, in the order in which they are to take effect.

    That is, by person and time, at one time grants before withdrawals. The order of the rows given does not matter.

    Args:
        table: schema.GRANTS with `user_key` (16 bytes, stable) in place of `user_id`. Without `occurred_at`, a row
            counts as long ago if it grants and as now if it withdraws.
        vocabulary: must know each purpose and source.
        now: microseconds since the epoch.

    Raises:
        ConsentError: a column is missing, mistyped or null, a name is unknown, or a time lies in the future.
    """
    for expected in KEYED_GRANTS:
        index = table.schema.get_field_index(expected.name)
        found = table.schema.field(index).type if index >= 0 else "no such column"
        if found != expected.type:
            raise ConsentError(
                f"Grants: column '{expected.name}': expected {expected.type}, found {found}.",
                "Cast the table to schema.GRANTS, with user_key in place of user_id.",
            )
    for name in _REQUIRED:
        if nulls := table.column(name).null_count:
            raise ConsentError(
                f"Grants: column '{name}' is null in {nulls} of {table.num_rows} rows.",
                "Fill it in; a source of '' means all sources.",
            )
    for row in table.select(["purpose", "source"]).group_by(["purpose", "source"]).aggregate([]).to_pylist():
        vocabulary.mask(row["purpose"], row["source"])
    when = pc.fill_null(table.column("occurred_at").cast(pa.int64()), _LONG_AGO)
    if table.num_rows and pc.max(when).as_py() > now:
        late = pc.sum(pc.greater(when, now)).as_py()
        raise ConsentError(
            f"Grants: column 'occurred_at' lies in the future in {late} of {table.num_rows} rows.",
            "Correct the times: such a row would outlast every withdrawal until then.",
        )
    filled = {name: pc.fill_null(table.column(name), "") for name in ("notice_version", "actor")}
    for name, column in filled.items():
        if pc.any(pc.match_substring(column, "\0")).as_py():
            raise ConsentError(
                f"Grants: column '{name}' holds a NUL character.", "Take it out: not every store keeps it."
            )
    filled["occurred_at"] = when
    return ordered(pa.table({name: filled.get(name, table.column(name)) for name in KEYED_GRANTS.names}), now)


def ordered(table: pa.Table, now: int) -> pa.Table:
    """The distinct rows of checked grants, by person and in the order in which they are to take effect."""
    table = table.group_by(KEYED_GRANTS.names, use_threads=False).aggregate([])
    undated_withdrawal = pc.and_not(pc.equal(table.column("occurred_at"), _LONG_AGO), table.column("granted"))
    effective = pc.if_else(undated_withdrawal, now, table.column("occurred_at"))
    table = table.append_column("effective", effective).append_column("turn", pc.invert(table.column("granted")))
    order = ("user_key", "effective", "turn", "purpose", "source", "notice_version", "actor", "occurred_at")
    indices = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in order])
    return table.select(KEYED_GRANTS.names).take(indices)


def pieces(table: pa.Table, linked: Mapping[bytes, bytes]) -> Iterator[pa.Table]:
    """Ordered grants a few thousand rows at a time, each person whole: as many as hold up nobody else for long.

    Args:
        linked: the person of each id that shares one; theirs come in one piece.
    """
    if not table.num_rows:
        return
    column = table["user_key"].combine_chunks()
    if linked:
        ids, shared = pa.array(list(linked), USER_KEY), pa.array(list(linked.values()), USER_KEY)
        column = pc.coalesce(shared.take(pc.index_in(column, ids)), column)
        order = pc.sort_indices(pa.table({"owner": column, "row": np.arange(len(column))}),
                                sort_keys=[("owner", "ascending"), ("row", "ascending")])  # fmt: skip
        table, column = table.take(order), column.take(order)
    keys = np.frombuffer(column.buffers()[1], f"S{KEY_BYTES}", len(column), column.offset * KEY_BYTES)
    begins = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]])
    first = 0
    while first < len(keys):
        last = int(begins[np.searchsorted(begins, min(first + _PIECE, len(keys)))])
        yield table.slice(first, last - first)
        first = last


def import_rows(
    connection: Connection, table: pa.Table, vocabulary: Vocabulary, now: int
) -> tuple[int, int, set[bytes]]:
    """Record checked grants, one sequence a person, and one row of the audit log for all.

    Three kinds of rows are left out: those imported before, whatever has happened since; grants that are no younger than a
    recorded withdrawal of the same; and what was said before the person was erased.

    Args:
        connection: in a writing transaction.
        table: from `checked_grants`.
        vocabulary: gives the sources that a grant for all of them extends to.
        now: microseconds since the epoch.

    Returns:
        People with something new, rows recorded, and the keys of those who withdrew cross_source.
    """
    head = audit.locked_head(connection)
    STAGED.create(connection, checkfirst=True)
    people, changes, parted = 0, 0, set[bytes]()
    brought = hashlib.sha256()
    put = PUT_CURRENT[connection.dialect.name].moved
    for batch in _batches(table):
        past = _past_of(connection, list(batch)) if head.sequence else {}
        lines: list[tuple[Any, ...]] = []
        current: list[tuple[Any, ...]] = []
        for key, rows in batch.items():
            before = past.get(key, _NOTHING)
            effects: list[str] = []
            sequence = head.sequence + people + 1
            for content in rows:
                sources = before.admits(content, vocabulary.sources, bool(before.state or effects))
                if sources is None:
                    continue
                purpose, source, granted, notice_version, actor, when = content
                covers = " ".join(sources) if granted and not source else ""
                # fmt: off
                lines.append((
                    key, sequence, len(effects), purpose, source, covers or None, granted, notice_version, actor,
                    True, now, None if when == _LONG_AGO else when,
                ))
                # fmt: on
                effects.append(effect_of(purpose, source, granted, covers))
                if purpose == CROSS_SOURCE and not granted:
                    parted.add(key)
            if effects:
                people += 1
                current.append((key, advance(before.state, tuple(effects)), before.preference, sequence))
        insert_many(connection, insert(CHANGES), _LINE, lines)
        insert_many(connection, put, CURRENT_STATE, current)
        for line in lines:
            brought.update(repr(line).encode())
        changes += len(lines)
    STAGED.drop(connection)
    if people:
        detail = {"people": people, "changes": changes, "sha256": brought.hexdigest()}
        audit.append(connection, head, now, "operator", "consent_imported", detail, head.sequence + people)
    return people, changes, parted


@dataclass(slots=True)
class _Past:
    """What an import must know of one person's history."""

    state: str = ""
    preference: int = 0
    erased_at: int = _LONG_AGO  # later than which a row must be
    contents: set[Content] = field(default_factory=set)  # imported before
    withdrawn: dict[tuple[str, str], int] = field(default_factory=dict)  # last time, by purpose and source

    def admits(self, content: Content, every: Sequence[str], holds: bool) -> Sequence[str] | None:
        """The sources on which a row has its say; None if it has none.

        Args:
            holds: whether the person may hold any grant at this point.
        """
        purpose, source, granted, _, _, when = content
        sources = (source,) if source else every
        if self.erased_at != _LONG_AGO and when <= self.erased_at and (granted or when != _LONG_AGO or not holds):
            return None  # a withdrawal without a time counts as now, where there is something to withdraw
        if not self.contents and not self.withdrawn:
            return sources
        if content in self.contents:
            return None
        if not granted:
            return sources
        never = _LONG_AGO - 1
        overall = self.withdrawn.get((purpose, ""), never)
        return [s for s in sources if when > max(overall, self.withdrawn.get((purpose, s), never))] or None


_NOTHING = _Past()


def _batches(table: pa.Table) -> Iterator[dict[bytes, list[Content]]]:
    rows = (
        row
        for batch in table.to_batches(max_chunksize=_ROWS)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    people = groupby(rows, itemgetter(0))
    while True:
        # Each group is read before the next is asked for: groupby keeps only one open.
        batch = {key: [row[1:] for row in group] for key, group in islice(people, _PEOPLE)}
        if not batch:
            return
        yield batch


def _past_of(connection: Connection, keys: list[bytes]) -> dict[bytes, _Past]:
    connection.execute(delete(STAGED))
    insert_many(connection, insert(STAGED), ("user_key",), [(key,) for key in keys])
    past: dict[bytes, _Past] = {}
    known = CURRENT.join(STAGED, CURRENT.c.user_key == STAGED.c.user_key)
    columns = (CURRENT.c.user_key, CURRENT.c.granted, CURRENT.c.preference, CURRENT.c.erased_at)
    for rows in stream(connection, select(*columns).select_from(known)):
        past.update((key, _Past(state, preference, erased or _LONG_AGO)) for key, state, preference, erased in rows)
    history = CHANGES.join(STAGED, CHANGES.c.user_key == STAGED.c.user_key)
    statement = (
        select(
            CHANGES.c.user_key,
            CHANGES.c.imported,
            CHANGES.c.recorded_at,
            CHANGES.c.purpose,
            CHANGES.c.source,
            CHANGES.c.granted,
            CHANGES.c.notice_version,
            CHANGES.c.actor,
            func.coalesce(CHANGES.c.occurred_at, _LONG_AGO),
        )
        .select_from(history)
        .where(or_(CHANGES.c.imported, ~CHANGES.c.granted))
    )
    for rows in stream(connection, statement):
        for key, imported, recorded_at, purpose, source, granted, notice_version, actor, occurred_at in rows:
            person = past[key]
            if imported:
                person.contents.add((purpose, source, bool(granted), notice_version, actor, occurred_at))
            if not granted:
                when = occurred_at if imported and occurred_at != _LONG_AGO else recorded_at
                person.withdrawn[purpose, source] = max(when, person.withdrawn.get((purpose, source), when))
    return past
