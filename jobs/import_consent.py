"""Bring a team's existing grants into the ledger, from a Parquet file of schema.GRANTS. Nothing is ever assumed.

python -m jobs.import_consent file=grants.parquet out=OUT
"""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pyarrow.compute as pc

from engine.activity.files import locate, log_files
from engine.activity.parquet import FLAG, MAYBE_TEXT, MOMENT, TEXT, as_time, batches, read
from engine.consent import Imported
from engine.errors import DataError, FileRefused, SettingsError
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
    if not settings.file:
        raise SettingsError("file is not set.", "Add file=GRANTS.parquet.")
    done = import_file(settings, settings.file)
    say(f"consent: {done.people} people, {done.changes} changes imported, {done.skipped} rows were there already")


if __name__ == "__main__":
    main()
