"""Bring a team's existing grants into the ledger, from a Parquet file of schema.GRANTS, and which ids are one person's.

python -m jobs.import_consent file=grants.parquet out=OUT   user_id, purpose, source?, granted, notice_version?, actor?, ...
python -m jobs.import_consent links=links.parquet out=OUT   user_id, linked_user_id, notice_version?, actor?, occurred_at?

Nothing is ever assumed. A row that was imported before is skipped, whatever the person has decided since.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.activity.files import locate, log_files
from engine.activity.parquet import FLAG, MAYBE_TEXT, MOMENT, TEXT, as_time, batches, read
from engine.consent import Imported
from engine.errors import ConsentError, DataError, FileRefused, SettingsError
from engine.identity import fault_in_id
from engine.schema import GRANTS, USER_KEY
from jobs.launch import recipe
from jobs.night import opened_ledger
from jobs.progress import say
from jobs.settings import Settings

_KINDS = {
    "user_id": TEXT,
    "purpose": TEXT,
    "source": MAYBE_TEXT,
    "granted": FLAG,
    "notice_version": MAYBE_TEXT,
    "actor": MAYBE_TEXT,
    "occurred_at": MOMENT,
}
_LINK = {
    "user_id": TEXT,
    "linked_user_id": TEXT,
    "notice_version": MAYBE_TEXT,
    "actor": MAYBE_TEXT,
    "occurred_at": MOMENT,
}
_WAY_ROWS = 100  # between two moments in which others may write
_LONGEST = 256  # characters of a notice version or an actor


def import_file(settings: Settings, path: str) -> Imported:
    """Import one file of grants.

    Raises:
        ContractError: a column is missing or mistyped. DataError: the file is no Parquet, or an id cannot be one.
        ConsentError: a purpose or source is unknown; nothing was imported.
    """
    filesystem, inside = locate(path)
    wanted = {name: (name, kind) for name, kind in _KINDS.items()}
    found = read(filesystem, inside, wanted, ("user_id", "purpose", "granted"))
    columns = {}
    for field in GRANTS:
        if field.name not in found.column_names:
            columns[field.name] = pa.nulls(found.num_rows, field.type)
        elif field.name == "occurred_at":
            columns[field.name] = as_time(found[field.name], "us", "UTC")
        else:
            columns[field.name] = found[field.name]
    columns["source"] = pc.fill_null(columns["source"], "")
    return import_table(settings, pa.table(columns, schema=GRANTS))


def import_table(settings: Settings, grants: pa.Table) -> Imported:
    """Import grants by raw user id: ids become stable keys here, and go no further."""
    ids = grants["user_id"].combine_chunks().dictionary_encode()
    people = ids.dictionary.to_pylist()
    fault = "missing" if ids.null_count else next((found for name in people if (found := fault_in_id(name))), "")
    if fault:
        raise DataError(f"A user_id of the grants is {fault}.", "Correct the file; nothing was imported.")
    with opened_ledger(settings) as (ledger, keys):
        derived = pa.array(keys.stable.derive_many(people), USER_KEY).take(ids.indices)
        return ledger.import_grants(grants.drop_columns(["user_id"]).append_column("user_key", derived))


@dataclass(frozen=True, slots=True)
class LinksImported:
    """Rows of a file: recorded now, there already, and overruled by an erasure or a withdrawal that came after them."""

    recorded: int
    known: int
    overruled: int


def import_links(settings: Settings, path: str) -> LinksImported:
    """Put ids together as one file says, a row at a time.

    Raises:
        ContractError: a column is missing or mistyped. DataError: the file is no Parquet, or a row of it cannot be; nothing was
            imported.
        ConsentError: an id would be linked with too many; the rows before were recorded.
    """
    filesystem, inside = locate(path)
    found = read(
        filesystem, inside, {name: (name, kind) for name, kind in _LINK.items()}, ("user_id", "linked_user_id")
    )
    if "occurred_at" in found.column_names:
        moments = as_time(found["occurred_at"], "us", "UTC")
        found = found.set_column(found.column_names.index("occurred_at"), "occurred_at", moments)
    rows = found.to_pylist()
    _check_links(rows)
    recorded = overruled = 0
    with opened_ledger(settings) as (ledger, keys):
        before = ledger.sequence()
        for number, row in enumerate(rows, start=1):
            named = [keys.stable.derive(row[name]) for name in ("user_id", "linked_user_id")]
            proof = (row.get("notice_version") or "", row.get("actor") or "operator")
            said = repr((named[1], *proof, row.get("occurred_at"))).encode()
            request_id = f"import {hashlib.sha256(said).hexdigest()[:32]}"
            try:
                done = ledger.links.bring_in(named, *proof, request_id, row.get("occurred_at"))
            except ConsentError as error:
                raise ConsentError(f"Row {number} of the links: {error.message}", error.remedy) from error
            if done is None:
                overruled += 1
            else:
                recorded += done.sequence > before
                before = max(before, done.sequence)
            if number % _WAY_ROWS == 0:
                ledger.links.give_way()
    return LinksImported(recorded, len(rows) - recorded - overruled, overruled)


def _check_links(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a file before any of it is recorded.

    Raises:
        DataError: names the row.
    """
    now = datetime.now(UTC)
    for number, row in enumerate(rows, start=1):
        fault = next(
            (f"its {name} is {why}" for name in ("user_id", "linked_user_id") if (why := fault_in_id(row[name]))), ""
        )
        if not fault and row["user_id"] == row["linked_user_id"]:
            fault = "it links an id with itself"
        if not fault and (when := row.get("occurred_at")) is not None and when > now:
            fault = "its occurred_at lies in the future, and would outlast every withdrawal until then"
        fault = fault or next(
            (f"its {name} is longer than {_LONGEST} characters" for name in ("notice_version", "actor")
             if len(row.get(name) or "") > _LONGEST), "",
        )  # fmt: skip
        if fault:
            raise DataError(f"Row {number} of the links: {fault}.", "Correct the file; nothing was imported.")


def import_declared(settings: Settings) -> None:
    """What `data.grants.everyone` declares of a public log: grants for all in it who have no ledger entry yet."""
    rule, column = settings.data.grants, settings.data.column("user_id")
    if not rule.everyone or not column:
        return
    settings.data.check()
    if not rule.notice_version:
        raise SettingsError(
            "data.grants.everyone is set without data.grants.notice_version.", "Name what people agreed to."
        )
    filesystem, _ = locate(settings.data.path)
    ids: set[str] = set()
    for file in log_files(settings.data):
        with contextlib.suppress(FileRefused):  # ingest quarantines it, or fails over it
            for batch in batches(filesystem, file.path, {"user_id": (column, MAYBE_TEXT)}, ("user_id",)):
                ids.update(pc.unique(batch.column("user_id")).to_pylist())
    people = sorted(name for name in ids if name is not None and not fault_in_id(name))
    with opened_ledger(settings) as (ledger, keys):
        known = set(ledger.standings()[0]["user_key"].to_pylist())
        fresh = [key for key in keys.stable.derive_many(people) if key not in known]
        if not fresh:
            return
        count = len(fresh) * len(rule.everyone)
        done = ledger.import_grants(
            pa.table(
                {
                    "user_key": pa.array([key for key in fresh for _ in rule.everyone], USER_KEY),
                    "purpose": list(rule.everyone) * len(fresh),
                    "source": [""] * count,
                    "granted": [True] * count,
                    "notice_version": [rule.notice_version] * count,
                    "actor": ["operator"] * count,
                    "occurred_at": pa.nulls(count, GRANTS.field("occurred_at").type),
                }
            )
        )
    say(f"consent: {done.people} people of this log granted {', '.join(rule.everyone)}, as data.grants declares")


@recipe("import_consent")
def main(settings: Settings) -> None:
    """The command."""
    if not (settings.file or settings.links):
        raise SettingsError("Neither file nor links is set.", "Add file=GRANTS.parquet or links=LINKS.parquet.")
    if settings.file:
        done = import_file(settings, settings.file)
        say(f"consent: {done.people} people, {done.changes} changes imported, {done.skipped} rows were there already")
    if settings.links:
        links = import_links(settings, settings.links)
        say(
            f"links: {links.recorded} imported, {links.known} were there already, {links.overruled} overruled by an erasure or "
            "withdrawal since"
        )


if __name__ == "__main__":
    main()
