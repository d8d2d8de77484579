"""Read a snapshot: map every file, check what can be checked without reading it, answer for one person at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.errors import NoSnapshot, SnapshotCorrupt, SnapshotError
from engine.identity import KEY_BYTES
from engine.snapshot.blocks import DAMAGED, MISSING, candidates, find, place, rows
from engine.snapshot.items import ItemTable
from engine.snapshot.layout import (
    MANIFEST,
    SHARD_TABLES,
    USER_TABLES,
    corrupt,
    file_name,
    file_tables,
    map_batch,
    table_schema,
    view,
    views,
)
from engine.snapshot.manifest import Manifest
from engine.snapshot.records import Cadence, Candidates, Mix, Seen, Sums, UserRecord

_WHOLE_SHOP = -1
_ALWAYS_HASHED = ("bases", "categories", "fallback", "tower")
_Bases = NDArray[np.uint64]
_RECORDS = {"sums": Sums, "seen": Seen, "mix": Mix, "cadence": Cadence}


class Snapshot:
    """One published night, mapped into memory. Safe to share between threads; nothing in it can be written.

    Open it with `Snapshot.open`. Views that it gave out stay valid after `close`, and after its folder is deleted.
    """

    def __init__(self, manifest: Manifest, batches: Mapping[str, pa.RecordBatch]) -> None:
        self.manifest = manifest
        self.items = ItemTable(batches[file_name("items")])
        self.categories: tuple[str, ...] = tuple(batches[file_name("categories")].column("name").to_pylist())
        self.tower: dict[str, NDArray[np.float32]] = _tower(batches[file_name("tower")])
        self._fallback = _fallback(batches[file_name("fallback")])
        shards = [
            _Shard(manifest.snapshot_id, {table: batches[file_name(table, number)] for table in SHARD_TABLES})
            for number in range(manifest.shards)
            if batches[file_name("users", number)].num_rows
        ]
        self._shards: list[_Shard] | None = shards
        self._where = np.stack([shard.where for shard in shards]) if shards else np.empty((0, 3), np.int64)
        find(self._where, bytes(KEY_BYTES))  # compiled now, not at the first request

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> Snapshot:
        """Map a snapshot after checking its manifest, sizes and footers.

        Args:
            folder: of one snapshot.
            verify: also hash every file, which reads them all; without it the time to open is the same for any
                number of users, and what is held of a person is checked when they are looked up.

        Raises:
            NoSnapshot: there is no manifest, so nothing whole was ever written here.
            SnapshotTooNew: a later version wrote it.
            SnapshotCorrupt: a file is missing, cut, swapped or changed; names it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        tables = file_tables(manifest.shards)
        if set(tables) != set(manifest.files):
            odd = sorted(set(tables) ^ set(manifest.files))[0]
            raise corrupt(folder / MANIFEST, f"{manifest.shards} shards and the list of files disagree about {odd}")
        for name, entry in manifest.files.items():
            _check_size(folder / name, entry.bytes)
        # What consent hangs on is hashed at every open: it is small, and no block's checksum covers it.
        hashed = [name for name, table in tables.items() if verify or table in _ALWAYS_HASHED]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for name, found in zip(hashed, pool.map(hash_file, (folder / name for name in hashed)), strict=True):
                if found != manifest.files[name].sha256:
                    raise corrupt(folder / name, "its SHA-256 differs from the manifest's")
        sizes = (len(manifest.decays), manifest.width, manifest.neighbours)
        batches = {name: map_batch(folder / name, table_schema(table, *sizes)) for name, table in tables.items()}
        for name, batch in batches.items():
            if batch.num_rows != manifest.files[name].rows:
                raise corrupt(folder / name, f"expected {manifest.files[name].rows} rows, found {batch.num_rows}")
        snapshot = cls(manifest, batches)
        snapshot._check_order(folder)
        return snapshot

    def user(self, key: bytes) -> UserRecord | None:
        """What the night knows of one person, without copying any of it.

        Args:
            key: rotating user key, 16 bytes.

        Returns:
            the record, or None for a key that the snapshot does not have.

        Raises:
            SnapshotCorrupt: their candidates changed since they were written; the record's other tables say so themselves.
            SnapshotError: the key has another length, or the snapshot is closed.
        """
        if len(key) != KEY_BYTES:
            raise SnapshotError(
                f"The user key has {len(key)} bytes, expected {KEY_BYTES}.", "Derive it with UserKey.derive."
            )
        shards = self._shards
        if shards is None:
            raise SnapshotError(f"Snapshot {self.manifest.snapshot_id} is closed.", "Take the one that is served now.")
        found = find(self._where, key)
        if found >= 0:
            return UserRecord(shards[found >> 32].tables, found & 0xFFFFFFFF)
        if found == MISSING:
            return None
        raise _damaged(self.manifest.snapshot_id)

    def fallback(self, category: int = _WHOLE_SHOP, region: str = "") -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Item codes and scores for people of whom nothing may be used: best first, empty where there is none.

        Args:
            category: row of `categories`, or -1 for the whole shop.
            region: ISO 3166-2 or a prefix of it; the narrowest list that covers it is taken. '': what is sold everywhere.
        """
        narrow = region.upper()
        while narrow and (narrow, category) not in self._fallback:
            narrow = narrow.rpartition("-")[0]
        return self._fallback.get((narrow, category), (np.empty(0, np.int32), np.empty(0, np.float32)))

    @property
    def vocabulary(self) -> Mapping[str, Any]:
        """The consent vocabulary that the night's bases are written in, as its own JSON."""
        return self.manifest.vocabulary

    @property
    def profiles(self) -> tuple[Mapping[str, Any], ...]:
        """Fallback profiles, each {"name": str, "groups": int}; the first is the whole."""
        return self.manifest.profiles

    def close(self) -> None:
        """Let go of the users' files; the mapping ends when the last view of it does."""
        self._shards = None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_order(self, folder: Path) -> None:
        for before, after in pairwise(self._shards or []):
            if before.last >= after.first:
                raise corrupt(folder, "its user shards are not in the order of their keys")


class _Rows:
    """One table of a shard, as each user's rows of it, checked as they are cut out."""

    __slots__ = ("_bases", "_columns", "_kind", "_name", "_table", "_where")

    def __init__(
        self, name: str, where: NDArray[np.int64], table: str, columns: Mapping[str, NDArray[Any]], bases: _Bases
    ) -> None:
        self._name = name
        self._where = where
        self._table = USER_TABLES.index(table)
        self._kind = _RECORDS[table]
        self._columns = tuple((name == "basis_code", column) for name, column in columns.items())
        self._bases = bases

    def __call__(self, user: int) -> Any:
        span = rows(self._where, user, self._table)
        if span == DAMAGED:
            raise _damaged(self._name)
        start, bases = span >> 32, self._bases
        stop = start + (span & 0xFFFFFFFF)
        return self._kind(
            *[bases.take(column[start:stop]) if coded else column[start:stop] for coded, column in self._columns]
        )


class _Candidates:
    """The candidates of a shard, as each user's."""

    __slots__ = ("_bases", "_mapped", "_where")

    def __init__(self, where: NDArray[np.int64], bases: _Bases, mapped: object) -> None:
        self._where = where
        self._bases = bases
        self._mapped = mapped  # `where` holds addresses: a record that outlives its snapshot must keep what lies there

    def __call__(self, user: int) -> Candidates:
        return Candidates(*candidates(self._where, user, self._bases))


class _Shard:
    """The users of one range of keys."""

    __slots__ = ("first", "last", "tables", "where")

    def __init__(self, name: str, batches: Mapping[str, pa.RecordBatch]) -> None:
        keys, block = views(batches["users"]).values()
        # A copy: the file was hashed a moment ago, and what a code means must not change under it.
        bases = view(batches["bases"].column("basis")).copy()
        columns = {table: views(batches[table]) for table in USER_TABLES}
        where = place(keys, block, [list(each.values()) for each in columns.values()])
        self.tables: dict[str, Callable[[int], Any]] = {
            table: _Rows(name, where, table, columns[table], bases) for table in _RECORDS
        }
        self.tables["candidates"] = _Candidates(where, bases, (keys, block, columns))
        self.where = where
        self.first, self.last = keys[:1].tobytes(), keys[-1:].tobytes()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a snapshot's folder.

    Raises:
        NoSnapshot: there is none.
        SnapshotTooNew, SnapshotCorrupt: as `Manifest.from_json`.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSnapshot(
            f"{folder} holds no {MANIFEST}.", "Finish writing the snapshot, or name another folder."
        ) from error
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error}.", "Mend the rights of the folder.") from error
    return Manifest.from_json(text, str(path))


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        SnapshotCorrupt: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise corrupt(path, str(error)) from error


def _damaged(name: str) -> SnapshotCorrupt:
    return SnapshotCorrupt(
        f"What snapshot {name} holds of one person is not what was written.",
        "Look after the disk and memory of this machine; in a folder, publish the snapshot again from its run.",
    )


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise corrupt(path, f"it is missing ({error.strerror})") from error
    if found != expected:
        raise corrupt(path, f"expected {expected} bytes, found {found}")


def _fallback(batch: pa.RecordBatch) -> dict[tuple[str, int], tuple[NDArray[np.int32], NDArray[np.float32]]]:
    category, item, score = (view(batch.column(name)) for name in ("category", "item", "score"))
    encoded = batch.column("region").dictionary_encode()
    region, names = view(encoded.indices), encoded.dictionary.to_pylist()
    starts = np.flatnonzero(np.append(True, (np.diff(region) != 0) | (np.diff(category) != 0)))[: len(category)]
    ends = np.append(starts, len(category))[1:]
    segments = zip(region[starts].tolist(), category[starts].tolist(), starts, ends, strict=True)
    return {(names[place], code): (item[start:end], score[start:end]) for place, code, start, end in segments}


def _tower(batch: pa.RecordBatch) -> dict[str, NDArray[np.float32]]:
    arrays = {}
    for name, shape, values in zip(*(batch.column(part) for part in ("name", "shape", "values")), strict=True):
        arrays[name.as_py()] = view(values.values).reshape(shape.as_py())
    return arrays
