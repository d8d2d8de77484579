"""Write a snapshot: tables are checked at the door, each file is durable when it appears, the manifest comes last.

Processes that share a folder may each write their own shards through a writer of their own; one of them finishes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.errors import SnapshotError
from engine.schema import NO_ITEM
from engine.snapshot.encoding import sealed_users, ways_apart, with_codes
from engine.snapshot.layout import (
    GIVEN_TABLES,
    MANIFEST,
    checked,
    file_name,
    file_tables,
    given_schema,
    map_batch,
    sync_folder,
    table_schema,
    view,
    write_batch,
)
from engine.snapshot.manifest import About, FileEntry, Manifest
from engine.snapshot.reader import hash_file

_NO_CATEGORY = -1
# Which columns hold codes: the lowest one allowed, and the table that they count rows of.
_CODES: Mapping[tuple[str, str], tuple[int, str]] = {
    ("candidates", "item"): (0, "items"),
    ("ways", "evidence"): (NO_ITEM, "items"),
    ("seen", "item"): (0, "items"),
    ("cadence", "item"): (0, "items"),
    ("mix", "category"): (_NO_CATEGORY, "categories"),
    ("items", "root_category"): (_NO_CATEGORY, "categories"),
    ("items", "neighbour"): (NO_ITEM, "items"),
    ("fallback", "item"): (0, "items"),
    ("fallback", "category"): (_NO_CATEGORY, "categories"),
}
# Columns where a value that is not finite means something.
_UNBOUNDED: Mapping[tuple[str, str], Callable[[NDArray[Any]], NDArray[np.bool_]]] = {
    ("items", "price"): lambda values: np.zeros(values.shape, np.bool_),  # NaN: none
    ("candidates", "score"): np.isnan,  # -inf may fill an unused alternative
}


@dataclass(frozen=True, slots=True)
class _Written:
    """A finished file, and the facts of it that must agree with other files."""

    entry: FileEntry
    edges: tuple[bytes, bytes] | None  # first and last user key
    codes: dict[str, tuple[int, int]]  # lowest and highest by column


class SnapshotWriter:
    """Writes the files of one snapshot into a folder that has none yet.

    Args:
        folder: made when missing; usually `Registry.stage()`.
        about: sizes set the schemas; the rest goes into the manifest.

    Raises:
        SnapshotError: the folder holds a finished snapshot.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder = Path(folder)
        self.about = about
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).exists():
            raise SnapshotError(
                f"{folder} holds a finished snapshot.", "Write into a new folder: Registry.stage() makes one."
            )

    def user_shard(
        self,
        number: int,
        users: pa.Table,
        candidates: pa.Table,
        sums: pa.Table,
        seen: pa.Table,
        mix: pa.Table,
        cadence: pa.Table,
    ) -> None:
        """Write the people of one range of keys.

        Args:
            number: 0..shards-1, in the order of the ranges.
            users: `schema.SNAPSHOT_USERS`, ascending by key; the spans of each table follow one another without gaps.
            candidates, sums, seen, mix, cadence: rows of the users, in their order.

        Raises:
            SnapshotError: a schema, the order of the keys, a span or a value is wrong; names file and column.
        """
        if not 0 <= number < self.about.shards:
            raise SnapshotError(
                f"There is no user shard {number}: the manifest plans {self.about.shards}.",
                "Plan all shards in About.shards.",
            )
        tables = dict(zip(GIVEN_TABLES, (candidates, sums, seen, mix, cadence), strict=True))
        batches = {table: self._batch(table, rows, number) for table, rows in tables.items()}
        people = self._batch("users", users, number)
        _require_ascending(file_name("users", number), "user_key", people.column("user_key"))
        for table, batch in batches.items():
            _require_spans(people, table, batch.num_rows, file_name("users", number))
        apart, ways_count = ways_apart(batches.pop("candidates"))
        rest = {table: pa.Table.from_batches([batch]) for table, batch in batches.items()}
        bases, coded = with_codes(apart | rest, file_name("bases", number))
        stored = {table: self._batch(table, rows, number, table_schema) for table, rows in coded.items()}
        stored["bases"] = self._batch("bases", bases, number, table_schema)
        sealed = self._batch("users", sealed_users(people, ways_count, stored), number, table_schema)
        for table, batch in (*stored.items(), ("users", sealed)):
            write_batch(self.folder / file_name(table, number), batch)

    def items(self, table: pa.Table) -> None:
        """Write the item table, `schema.items_schema`, ascending by `item_id`.

        Raises:
            SnapshotError: the schema, the order or a value is wrong.
        """
        batch = self._batch("items", table)
        _require_ascending(file_name("items"), "item_id", batch.column("item_id"))
        write_batch(self.folder / file_name("items"), batch)

    def categories(self, table: pa.Table) -> None:
        """Write the names of the categories, `schema.CATEGORIES`; the row number is the code.

        Raises:
            SnapshotError: the schema is wrong.
        """
        write_batch(self.folder / file_name("categories"), self._batch("categories", table))

    def fallback(self, table: pa.Table) -> None:
        """Write the lists for people of whom nothing may be used, `schema.FALLBACK`: by region, category, then best first.

        Raises:
            SnapshotError: the schema, the order or a value is wrong.
        """
        batch = self._batch("fallback", table)
        keys = [("region", "ascending"), ("category", "ascending"), ("score", "descending")]
        order = pc.sort_indices(
            pa.table([*batch.columns[:2], batch.column("score")], names=[name for name, _ in keys]), keys
        )
        best = batch.column("score").take(order)
        segment = [batch.column(name) for name in ("region", "category")]
        if not (best.equals(batch.column("score")) and all(column.take(order).equals(column) for column in segment)):
            raise SnapshotError(
                f"{file_name('fallback')}: expected rows by region, category, then score from the highest; found others.",
                "Sort the table by region and category ascending, score descending.",
            )
        write_batch(self.folder / file_name("fallback"), batch)

    def tower(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Write the user tower as plain float32 arrays of any shape, by name; none for one that only the night can run.

        Raises:
            SnapshotError: an array is not float32 or not finite.
        """
        name = file_name("tower")
        for label, array in arrays.items():
            if array.dtype != np.float32:
                raise SnapshotError(
                    f"{name}: array '{label}': expected float32, found {array.dtype}.", "Convert it first."
                )
        labels = sorted(arrays)
        rows = {
            "name": labels,
            "shape": [list(arrays[label].shape) for label in labels],
            "values": [arrays[label].ravel() for label in labels],
        }
        batch = self._batch("tower", pa.table(rows, schema=table_schema("tower", *self._sizes)))
        write_batch(self.folder / name, batch)

    def finish(self) -> Manifest:
        """Hash every file and write the manifest. From then on the folder is a snapshot, and before that it is none.

        Returns:
            the manifest, with the id that the content gives.

        Raises:
            SnapshotError: a file is missing or unexpected, shards overlap, or a code points outside its table.
        """
        tables = file_tables(self.about.shards)
        self._require_files(set(tables))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            written = dict(zip(tables, pool.map(self._look_over, tables, tables.values()), strict=True))
        _require_order({name: each.edges for name, each in written.items() if each.edges})
        rows = {table: written[file_name(table)].entry.rows for table in ("items", "categories")}
        for name, each in written.items():
            for column, (lowest, highest) in each.codes.items():
                floor, of = _CODES[tables[name], column]
                if lowest < floor or highest >= rows[of]:
                    raise SnapshotError(
                        f"{name}: column '{column}': expected {floor}..{rows[of] - 1}, found {lowest}..{highest}.",
                        f"Write codes of this snapshot's {of}.",
                    )
        users = sum(each.entry.rows for name, each in written.items() if tables[name] == "users")
        counts = {"users": users, "items": rows["items"]}
        manifest = Manifest.of(self.about, {name: each.entry for name, each in written.items()}, counts)
        sync_folder(self.folder)
        write_text(self.folder / MANIFEST, manifest.to_json())
        return manifest

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return len(self.about.decays), self.about.width, self.about.neighbours

    def _batch(
        self, table: str, rows: pa.Table, number: int | None = None, kind: Callable[..., pa.Schema] = given_schema
    ) -> pa.RecordBatch:
        name = file_name(table, number)
        batch = checked(name, rows, kind(table, *self._sizes))
        for field, column in zip(batch.schema, batch.columns, strict=True):
            values = _floats(column)
            if values is None:
                continue
            wrong = _UNBOUNDED.get((table, field.name), _not_finite)(values)
            if wrong.any():
                found = values[wrong].flat[0]
                raise SnapshotError(
                    f"{name}: column '{field.name}': expected finite numbers, found {found} among {wrong.size} values.",
                    "Stop where it arises: a number that is not finite would spread to every score it meets.",
                )
        return batch

    def _require_files(self, expected: set[str]) -> None:
        for unfinished in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            unfinished.unlink(missing_ok=True)
        found = {path.name for path in self.folder.iterdir()}
        if missing := sorted(expected - found):
            raise SnapshotError(
                f"{self.folder} lacks {', '.join(missing[:5])}.", "Write every shard and table, then finish."
            )
        if extra := sorted(found - expected - {MANIFEST}):
            raise SnapshotError(
                f"{self.folder} holds {', '.join(extra[:5])}, of no table or of a shard beyond {self.about.shards}.",
                "Write into an empty folder.",
            )

    def _look_over(self, name: str, table: str) -> _Written:
        path = self.folder / name
        batch = map_batch(path, table_schema(table, *self._sizes))
        codes = {
            column: (int(values.min()), int(values.max()))
            for of, column in _CODES
            if of == table and (values := view(batch.column(column))).size
        }
        edges = None
        if table == "users" and batch.num_rows:
            keys = batch.column("user_key")
            edges = (keys[0].as_py(), keys[-1].as_py())
        return _Written(FileEntry(hash_file(path), path.stat().st_size, batch.num_rows), edges, codes)


def write_text(path: Path, text: str) -> None:
    """Put a small file in place, whole and durably.

    Raises:
        SnapshotError: the disk refuses.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise SnapshotError(
            f"{path} cannot be written: {error}.", "Free the disk or mend its rights, and run again."
        ) from error


def _not_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    wrong: NDArray[np.bool_] = ~np.isfinite(values)
    return wrong


def _require_ascending(name: str, column: str, values: pa.Array) -> None:
    rising = pc.less(values[:-1], values[1:])
    if len(values) > 1 and not pc.all(rising).as_py():
        row = pc.index(rising, False).as_py() + 1
        raise SnapshotError(
            f"{name}: column '{column}': expected ascending and distinct, found row {row} not above the one before it.",
            "Sort by the column and drop duplicates.",
        )


def _require_spans(users: pa.RecordBatch, table: str, rows: int, name: str) -> None:
    start, count = (view(users.column(f"{table}_{edge}")).astype(np.int64) for edge in ("start", "count"))
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    if not np.array_equal(start, ends - count) or total != rows:
        raise SnapshotError(
            f"{name}: the spans of '{table}': expected them to follow one another over {rows} rows, "
            f"found gaps, overlaps or {total} rows.",
            "Count rows by user, and start each where the one before ends.",
        )


def _require_order(edges: Mapping[str, tuple[bytes, bytes]]) -> None:
    names = sorted(edges)
    for before, after in pairwise(names):
        if edges[before][1] >= edges[after][0]:
            raise SnapshotError(
                f"{after} starts at key {edges[after][0].hex()}, not above the last key of {before}.",
                "Give each shard a range of keys, in order.",
            )


def _floats(column: pa.Array) -> NDArray[Any] | None:
    kind = column.type
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
        return view(column.flatten())
    fixed = pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    return view(column) if fixed or pa.types.is_floating(kind) else None
