"""Parquet from any filesystem, checked against the contract before a row is read; other columns never are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from engine.activity.mapping import UNITS, DataSettings, near_miss
from engine.errors import ContractError, DataError
from engine.schema import TIME

_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999, in seconds since 1970
_NAMES_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Kind:
    """What a column must be.

    expected: in words. fits: whether a file's type is that. becomes: what it is read as; None: as it is.
    """

    expected: str
    fits: Callable[[pa.DataType], bool]
    becomes: pa.DataType | None = None


def _stringy(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _stringy(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind) or types.is_null(kind))


def _strings(kind: pa.DataType) -> bool:
    types = pa.types
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(types.is_null(kind) or (listed and (_stringy(kind.value_type) or types.is_null(kind.value_type))))


def _moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_null(kind))


TEXT = Kind("string", _stringy, pa.string())
MAYBE_TEXT = Kind("string", lambda kind: _stringy(kind) or pa.types.is_null(kind), pa.string())
NUMBER = Kind("a number", _number, pa.float64())
TEXTS = Kind("list<string>", _strings, pa.list_(pa.string()))
MOMENT = Kind("timestamp", _moment)
WHOLE = Kind("a whole number", pa.types.is_integer)
FLAG = Kind("boolean", pa.types.is_boolean, pa.bool_())


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path inside it of a URI or a local path.

    Raises:
        DataError: the scheme is unknown.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
    try:
        filesystem, inside = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be opened: {error}", "Use a local path, file://, s3:// or gs://.") from error
    return filesystem, inside


def parquet_files(data: DataSettings) -> list[str]:
    """Paths of the log's files below `data.path`, sorted.

    Names that begin with _ or . are work in progress, by Hive's custom, and left alone.

    Raises:
        DataError: an entry of `data.log` is not there, or none holds a file.
    """
    filesystem, root = locate(data.path)
    found: list[str] = []
    for part in data.log:
        path = f"{root}/{part}"
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            beside = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
            near = near_miss(part, [entry.base_name for entry in beside])
            meant = f"; did you mean '{near}'?" if near else "."
            raise DataError(
                f"data.log names '{part}', which is not in {data.path}{meant}", "Check data.path and data.log."
            )
        if info.type == fs.FileType.File:
            found.append(path)
        else:
            inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            found += [entry.path for entry in inside if entry.is_file and _counts(entry.path[len(path) :])]
    if not found:
        raise DataError(f"No Parquet file under {data.path} in {', '.join(data.log)}.", "Check data.path and data.log.")
    return sorted(set(found))


def _counts(inside: str) -> bool:
    return inside.endswith(".parquet") and not any(part[0] in "_." for part in PurePosixPath(inside.strip("/")).parts)


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
    """Some columns of one Parquet file under their contract names, as the types of their kinds.

    Text that is not UTF-8 is read as '', which is no id, event or source: its rows go the way of other bad rows.

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
            picked = _picked(path, file.schema_arrow, wanted, required)
            table = file.read(columns=sorted(set(picked.values())), use_threads=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Check data.path and the names in conf/data.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {error}", "Write it again, or take it away."
        ) from error
    return pa.table({name: _as_kind(table[theirs], wanted[name][1]) for name, theirs in picked.items()})


def _picked(
    path: str, schema: pa.Schema, wanted: dict[str, tuple[str, Kind]], required: tuple[str, ...]
) -> dict[str, str]:
    """Contract name -> name in the file, of the columns that are there."""
    picked = {}
    for name, (theirs, kind) in wanted.items():
        times = schema.names.count(theirs)
        if not times and name not in required:
            continue
        if times != 1:
            near = near_miss(theirs, schema.names)
            shown = [*schema.names[:_NAMES_SHOWN], *(["..."] if len(schema.names) > _NAMES_SHOWN else [])]
            raise ContractError(
                path,
                theirs,
                kind.expected,
                f"{times} columns of this name" if times else f"no such column{near and f' (near: {near!r})'}",
                f"Write it, or name in conf/data what '{name}' is called here; there are {', '.join(shown)}.",
            )
        found = schema.field(theirs).type
        if not kind.fits(found):
            raise ContractError(
                path, theirs, kind.expected, str(found), f"Cast it, or map '{name}' to another column in conf/data."
            )
        picked[name] = theirs
    return picked


def _as_kind(column: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    if kind.becomes is None:
        return column
    column = column.cast(kind.becomes, safe=False)  # a whole number beyond 2^53 is rounded, as any other float is
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # Parquet does not vouch for UTF-8, and polars relies on it.
        if pa.types.is_list(kind.becomes):
            lists = column.cast(pa.list_(pa.binary())).to_pylist()
            texts = pa.array([each and [_decoded(value) for value in each] for each in lists], kind.becomes)
        else:
            texts = pa.array([_decoded(value) for value in column.cast(pa.binary()).to_pylist()], kind.becomes)
        column = pa.chunked_array([texts])
    return column


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return ""


def as_time(column: pa.ChunkedArray, unit: str, zone: str) -> pa.ChunkedArray:
    """A timestamp or whole-number column as microseconds UTC. Units are never guessed.

    Args:
        unit: of a whole number: s, ms, us or ns since 1970, UTC.
        zone: of a timestamp without one. A repeated hour is taken for the first; a skipped one, for its end.

    Returns:
        TIME; what lies outside the years 1 to 9999 becomes their edge.
    """
    if pa.types.is_null(column.type):
        return column.cast(TIME)
    local = pa.types.is_timestamp(column.type) and column.type.tz is None
    unit = column.type.unit if pa.types.is_timestamp(column.type) else unit
    scale = 1000 ** UNITS.index(unit)
    whole = pa.uint64() if column.type == pa.uint64() else pa.int64()
    latest, earliest = min(_LATEST * scale, 2**63 - 1), max(_EARLIEST * scale, -(2**63))
    # An overflow would come out as some other time, or stop the night.
    ticks = pc.min_element_wise(column.cast(whole), pa.scalar(latest, whole), skip_nulls=False).cast(pa.int64())
    ticks = pc.max_element_wise(ticks, pa.scalar(earliest, pa.int64()), skip_nulls=False)
    if local and zone != "UTC":
        times = pc.assume_timezone(ticks.cast(pa.timestamp(unit)), zone, ambiguous="earliest", nonexistent="latest")
    else:
        times = ticks.cast(pa.timestamp(unit, tz="UTC"))
    return times.cast(TIME, safe=False)
