"""Parquet from any filesystem, checked against the contract before a row is read, and only the columns that it names."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from engine.activity.mapping import DataSettings
from engine.errors import ContractError, DataError
from engine.schema import TIME

Kind = tuple[str, Callable[[pa.DataType], bool]]


def _stringy(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _stringy(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _strings(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return pa.types.is_null(kind) or (listed and (_stringy(kind.value_type) or pa.types.is_null(kind.value_type)))


TEXT: Kind = ("string", _stringy)
MAYBE_TEXT: Kind = ("string", lambda kind: _stringy(kind) or pa.types.is_null(kind))
NUMBER: Kind = ("a number", _number)
TEXTS: Kind = ("list<string>", _strings)
MOMENT: Kind = ("timestamp", lambda kind: pa.types.is_timestamp(kind) or pa.types.is_null(kind))
WHOLE: Kind = ("a whole number", pa.types.is_integer)
FLAG: Kind = ("boolean", pa.types.is_boolean)


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path inside it of a URI or a local path.

    Raises:
        DataError: the scheme is unknown.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
    try:
        filesystem, inside = fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be opened: {error}", "Use a local path, s3:// or gs://.") from error
    return filesystem, inside


def parquet_files(data: DataSettings) -> list[str]:
    """Paths of the log's files below `data.path`, sorted.

    Raises:
        DataError: there is none.
    """
    filesystem, root = locate(data.path)
    found: list[str] = []
    for part in data.log:
        path = f"{root}/{part}"
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            found.append(path)
        elif info.type == fs.FileType.Directory:
            inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            found += [entry.path for entry in inside if entry.is_file and entry.path.endswith(".parquet")]
    if not found:
        raise DataError(f"No Parquet file under {data.path} in {', '.join(data.log)}.", "Check data.path and data.log.")
    return sorted(set(found))


def digest(filesystem: fs.FileSystem, path: str) -> str:
    """SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def read(
    filesystem: fs.FileSystem, path: str, wanted: dict[str, tuple[str, Kind]], required: tuple[str, ...]
) -> pa.Table:
    """Some columns of one Parquet file under their contract names.

    Args:
        wanted: contract name -> (name in the file, what it must be).
        required: contract names that must be there; the others may be absent and are then left out.

    Raises:
        ContractError: a column is missing or mistyped: file, column, expected, found.
        DataError: the file is not Parquet, or broken.
    """
    try:
        with filesystem.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            schema = file.schema_arrow
            picked = {}
            for name, (theirs, (expected, fits)) in wanted.items():
                if theirs not in schema.names:
                    if name not in required:
                        continue
                    near = difflib.get_close_matches(theirs, schema.names, 1, cutoff=0.5)
                    raise ContractError(
                        path,
                        theirs,
                        expected,
                        "no such column" + (f" (near: '{near[0]}')" if near else ""),
                        f"Map the contract's '{name}' in conf/data to one of {', '.join(schema.names)}.",
                    )
                kind = schema.field(theirs).type
                if not fits(kind):
                    raise ContractError(
                        path, theirs, expected, str(kind), f"Cast it, or map '{name}' to another column in conf/data."
                    )
                picked[name] = theirs
            table = file.read(columns=sorted(set(picked.values())), use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{path} is missing.", "Check data.path and the names in conf/data.") from error
        raise DataError(f"{path} is not a readable Parquet file: {error}", "Write it again, or take it away.") from error
    return pa.table({name: table[theirs] for name, theirs in picked.items()})


def as_time(column: pa.ChunkedArray, unit: str, zone: str) -> pa.ChunkedArray:
    """A timestamp or integer column as microseconds UTC. Units are never guessed."""
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return column.cast(TIME)
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64()).cast(pa.timestamp(unit, tz="UTC"))
    elif column.type.tz is None and zone != "UTC":
        column = pc.assume_timezone(column, zone, ambiguous="earliest", nonexistent="latest")
    elif column.type.tz is None:
        column = column.cast(pa.timestamp(column.type.unit, tz="UTC"))
    return column.cast(TIME, safe=False)
