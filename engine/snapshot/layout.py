"""Which files a snapshot has, what stands in each, and how one is written and mapped.

Every file is uncompressed Arrow IPC with a single batch, so that a column is one run of bytes that NumPy views where
it lies (format: https://arrow.apache.org/docs/format/Columnar.html). A file carries its own name, so that two of one
size cannot be swapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine import schema
from engine.errors import SnapshotCorrupt, SnapshotError
from engine.identity import KEY_BYTES

GIVEN_TABLES = ("candidates", "sums", "seen", "mix", "cadence")  # as the night makes them
USER_TABLES = ("candidates", "ways", "sums", "seen", "mix", "cadence")  # as files hold them
SHARD_TABLES = ("users", "bases", *USER_TABLES)
SINGLE_TABLES = ("items", "categories", "fallback", "tower")
MANIFEST = "manifest.json"
BASIS_CODE = pa.uint16()  # a consent vocabulary makes some hundred bases; eight bytes a candidate would double its size
KEY_TYPE = np.dtype(f"S{KEY_BYTES}")
_OWN_NAME = b"bodega.file"
# Python's own mmap can give advice too, and keeps a descriptor for each file.
_libc = ctypes.CDLL(None) if hasattr(mmap, "MADV_HUGEPAGE") else None


def file_name(table: str, shard: int | None = None) -> str:
    """The file of a table, or of one shard of it."""
    return f"{table}.arrow" if shard is None else f"{table}-{shard:05d}.arrow"


def file_tables(shards: int) -> dict[str, str]:
    """Every Arrow file of a snapshot and the table that it belongs to."""
    names = {file_name(table, shard): table for shard in range(shards) for table in SHARD_TABLES}
    return names | {file_name(table): table for table in SINGLE_TABLES}


def table_schema(table: str, decays: int, width: int, neighbours: int) -> pa.Schema:
    """The Arrow schema of a table as a file holds it, given the number of decays, the vectors' width and the neighbours.

    It differs from what the writer is given in three ways: the ways of a candidate are rows of their own; a basis is a code,
    the row of it in the shard's bases; and where a person's rows lie is one column, so that one look tells it: for each of
    USER_TABLES checksum (engine/snapshot/blocks.py), start and count.
    """
    if table == "users":
        spans = pa.list_(pa.uint32(), 3 * len(USER_TABLES))
        return pa.schema([schema.SNAPSHOT_USERS.field("user_key"), ("block", spans)])
    own = {"candidates": schema.STORED_CANDIDATES, "ways": schema.WAYS, "bases": schema.BASES}.get(table)
    kind = own if own is not None else given_schema(table, decays, width, neighbours)
    if table in USER_TABLES and "basis" in kind.names:
        return kind.set(kind.get_field_index("basis"), pa.field("basis_code", BASIS_CODE))
    return kind


def given_schema(table: str, decays: int, width: int, neighbours: int) -> pa.Schema:
    """The Arrow schema in which a writer is given a table."""
    if table == "sums":
        return schema.sums_schema(decays, width)
    if table == "items":
        return schema.items_schema(width, neighbours)
    return {
        "users": schema.SNAPSHOT_USERS,
        "candidates": schema.CANDIDATES,
        "seen": schema.SEEN,
        "mix": schema.MIX,
        "cadence": schema.CADENCE,
        "categories": schema.CATEGORIES,
        "fallback": schema.FALLBACK,
        "tower": schema.TOWER,
    }[table]


def checked(name: str, table: pa.Table, expected: pa.Schema) -> pa.RecordBatch:
    """One table as a single batch in exactly the expected schema.

    Raises:
        SnapshotError: a column is missing, extra, out of order, of another type, or has nulls.
    """
    found = [(field.name, field.type) for field in table.schema]
    wanted = [(field.name, field.type) for field in expected]
    if found != wanted:
        differing = next((pair for pair in zip(wanted, found, strict=False) if pair[0] != pair[1]), (wanted, found))
        raise SnapshotError(
            f"{name}: expected {_spell(differing[0])}, found {_spell(differing[1])}.",
            "Build the table with the schema of engine/schema.py, columns in its order.",
        )
    arrays = [_one_array(table.column(place), field.type) for place, field in enumerate(expected)]
    for field, array in zip(expected, arrays, strict=True):
        if _has_nulls(array):
            raise SnapshotError(
                f"{name}: column '{field.name}': expected no nulls, found some.",
                "Fill them first: engine/schema.py says which value stands for none.",
            )
    marked = expected.with_metadata({_OWN_NAME: name.encode()})
    return pa.RecordBatch.from_arrays(arrays, schema=marked)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write one file durably; it appears under its name only when whole.

    Raises:
        SnapshotError: the disk refuses.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            with pa.ipc.new_file(file, batch.schema) as sink:
                sink.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a disk that refuses this as well, the first refusal is told
            unfinished.unlink(missing_ok=True)
        raise SnapshotError(
            f"{path} cannot be written: {error}.", "Free the disk or mend its rights, and run again."
        ) from error


def map_batch(path: Path, expected: pa.Schema) -> pa.RecordBatch:
    """Map one file and check its footer; the data itself is not read.

    Raises:
        SnapshotCorrupt: the file is missing, is not Arrow IPC, or holds something else than its name says.
    """
    try:
        with pa.memory_map(str(path)) as file:  # the mapping outlives the descriptor, which a process has few of
            reader = pa.ipc.open_file(pa.BufferReader(_mapped(file)))
            if not reader.schema.equals(expected):
                raise corrupt(path, f"expected the columns {_spell(expected)}, found {_spell(reader.schema)}")
            if (reader.schema.metadata or {}).get(_OWN_NAME) != path.name.encode():
                raise corrupt(path, "its footer carries another file's name")
            if reader.num_record_batches != 1:
                raise corrupt(path, f"expected 1 batch, found {reader.num_record_batches}")
            batch = reader.get_batch(0)
            batch.validate()
    except (OSError, pa.ArrowException) as error:
        raise corrupt(path, str(error)) from error
    if any(_has_nulls(column) for column in batch.columns):
        raise corrupt(path, "expected no nulls, found some")
    return batch


def _mapped(file: pa.MemoryMappedFile) -> pa.Buffer:
    """A whole file as it is mapped, without the order to read it from the disk that pyarrow gives for what it hands out.

    In pages of 2 MiB where the file system has them, with which looking people up takes a fifth less time.
    """
    first = file.read_buffer(1)
    if _libc is not None:
        _libc.madvise(ctypes.c_void_p(first.address), ctypes.c_size_t(file.size()), mmap.MADV_HUGEPAGE)
    return pa.foreign_buffer(first.address, file.size(), base=first)


def view(array: pa.Array) -> NDArray[Any]:
    """A fixed-width column as NumPy, without a copy but for booleans: (n,), or (n, size) for lists of a fixed size."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        return view(array.flatten()).reshape(len(array), kind.list_size)
    if pa.types.is_boolean(kind):
        unpacked: NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
        unpacked.flags.writeable = False
        return unpacked
    dtype = KEY_TYPE if pa.types.is_fixed_size_binary(kind) else np.dtype(kind.to_pandas_dtype())
    data = array.buffers()[1]
    if not len(array) or data is None:
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)


def views(batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    """Every column of a batch of fixed-width columns, by name."""
    return {name: view(batch.column(name)) for name in batch.schema.names}


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        SnapshotError: the disk refuses.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise SnapshotError(
            f"{folder} cannot be made durable: {error}.", "Free the disk or mend its rights, and run again."
        ) from error


def corrupt(path: Path, what: str) -> SnapshotCorrupt:
    """The error for a file that is not what the manifest says."""
    return SnapshotCorrupt(
        f"{path}: {what.rstrip('.')}.",
        "Roll back with `bodega snapshot rollback`, and publish this one again from its run.",
    )


def _one_array(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    if pa.types.is_boolean(kind):  # the spare bits of a last byte would leak into the checksum
        return (
            pa.array(array.to_numpy(zero_copy_only=False), kind, from_pandas=False) if not array.null_count else array
        )
    return array.cast(kind)  # the names of list children differ by who made them, and would differ in the file


def _has_nulls(array: pa.Array) -> bool:
    if array.null_count:
        return True
    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    return nested and _has_nulls(array.flatten())


def _spell(columns: Any) -> str:
    if isinstance(columns, tuple):
        return f"column '{columns[0]}' of {columns[1]}"
    pairs = [(field.name, field.type) if isinstance(field, pa.Field) else field for field in columns]
    return ", ".join(f"{name} {kind}" for name, kind in pairs) or "no columns"
