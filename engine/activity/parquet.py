"""One Parquet file, checked against the contract before a row is read, batch by batch; other columns never are.

Whatever the bytes are, reading ends in batches or in FileRefused, and takes no more than a bounded amount of memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from engine.activity.bounds import HEADROOM, bounded, read_footer, refusing
from engine.activity.footer import Group, checked_groups
from engine.activity.mapping import UNITS, near_miss
from engine.errors import ContractError, FileRefused
from engine.schema import TIME

Wanted = dict[str, tuple[str, "Kind"]]  # contract name -> (name in the file, what it must be)
BATCH = 262_144  # rows
LARGEST_TABLE = 4 << 30  # bytes that `read` gathers
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999, in seconds since 1970
_NAMES_SHOWN, _NAMES_TRIED = 30, 2000
_WIDE = 512  # bytes a row, unpacked; the wider rows are, the fewer make a batch
_AT_ONCE = 1 << 28  # bytes of a row group that are fetched before its first page is unpacked; a larger one is streamed
_STREAMED = 8 << 20  # bytes a read of it
_ONCE = frozenset({"event_id"})  # a name a row: a dictionary of it costs twice what it saves


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


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the file: its name, what it must be, and the places of its leaves among those of all columns."""

    theirs: str
    kind: Kind
    leaves: range


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that keeps the contract; runs are places of row groups that are read together."""

    file: pq.ParquetFile
    picked: dict[str, _Column]
    groups: list[Group]
    runs: list[list[int]]


def batches(
    filesystem: fs.FileSystem,
    path: str,
    wanted: Wanted,
    required: tuple[str, ...],
    stands_in: tuple[str, str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Some columns of one Parquet file under their contract names, at most BATCH rows at a time.

    Text is string, or dictionary<int32, string> where names repeat, and always UTF-8: what is not is read as '', which is no
    id, event or source, so that its row goes the way of other bad rows. Numbers are float64; times are as the file has them.

    Args:
        required: contract names that must be there; the others may be absent and are then left out.
        stands_in: a pair of columns; the second is not read where the first has a value in every row.

    Raises:
        ContractError: a column is missing or mistyped: file, column, expected, found.
        FileRefused: the file is empty, broken, too large to be sound, gone, or changes while it is read.
    """
    with _opened(filesystem, path, wanted, required) as opened:
        for run in opened.runs:
            columns, groups = dict(opened.picked), [opened.groups[place] for place in run]
            if stands_in and stands_in[0] in columns:
                (leaf,) = columns[stands_in[0]].leaves
                if all(group.chunks[leaf].complete for group in groups):
                    columns.pop(stands_in[1], None)
            leaves = sorted({leaf for column in columns.values() for leaf in column.leaves})
            most, left = _most(groups), sum(group.rows for group in groups)
            pieces = opened.file.reader.iter_batches(most, run, column_indices=leaves, use_threads=False)
            for batch in _gathered(path, pieces, columns, most):
                left -= batch.num_rows
                yield batch
            if left:
                raise FileRefused(path, "bad_page", f"{left} of the rows that its footer tells of are not there")


def read(filesystem: fs.FileSystem, path: str, wanted: Wanted, required: tuple[str, ...]) -> pa.Table:
    """All of `batches` as one table, with text as plain strings."""
    plain, taken = [], 0
    for batch in batches(filesystem, path, wanted, required):
        with refusing(path, "bad_page"), bounded():
            columns = {name: _plain(batch.column(name)) for name in batch.schema.names}
            plain.append(pa.table(columns))
        taken += plain[-1].nbytes
        if taken > LARGEST_TABLE:
            raise FileRefused(path, "too_large", f"it unpacks to more than {LARGEST_TABLE >> 20} MiB")
    if plain:
        return pa.concat_tables(plain)
    with _opened(filesystem, path, wanted, required) as opened:
        schema = opened.file.schema_arrow
        types = {name: each.kind.becomes or schema.field(each.theirs).type for name, each in opened.picked.items()}
        return pa.schema(types).empty_table()


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


@contextlib.contextmanager
def _opened(filesystem: fs.FileSystem, path: str, wanted: Wanted, required: tuple[str, ...]) -> Iterator[_Opened]:
    with refusing(path, "bad_footer"):
        about = filesystem.get_file_info(path)
        if about.type == fs.FileType.NotFound:
            raise FileRefused(path, "vanished", "")
        if about.type != fs.FileType.File:
            raise FileRefused(path, "bad_footer", "it is no file")
        if not about.size:
            raise FileRefused(path, "zero_bytes", "it is empty")
        source = filesystem.open_input_file(path)
    with source:
        metadata, footer = read_footer(path, source, about.size)
        with refusing(path, "bad_footer"):
            schema = metadata.schema.to_arrow_schema()
            picked = _picked(path, schema, wanted, required)
            if sum(map(_leaves, schema.types)) != metadata.num_columns:
                raise FileRefused(path, "bad_footer", "its columns are not those of its schema")
            leaves = {leaf: column.kind is not TEXTS for column in picked.values() for leaf in column.leaves}
            groups = checked_groups(path, footer, leaves, about.size)
            texts = [
                column for name, column in picked.items() if column.kind in (TEXT, MAYBE_TEXT) and name not in _ONCE
            ]
            large = any(_packed(group) > _AT_ONCE for group in groups)
            file = pq.ParquetFile(
                source,
                metadata=metadata,
                read_dictionary=[leaf for text in texts for leaf in text.leaves if _coded(groups, leaf)],
                page_checksum_verification=True,
                pre_buffer=not large,
                buffer_size=_STREAMED if large else 0,
            )
        yield _Opened(file, picked, groups, _runs(groups))
    with refusing(path, "bad_page"):
        now = filesystem.get_file_info(path)
    if now.type == fs.FileType.File and (now.size, now.mtime_ns) != (about.size, about.mtime_ns):
        raise FileRefused(path, "bad_page", "it changed while it was read")


def _packed(group: Group) -> int:
    return sum(chunk.packed for chunk in group.chunks.values())


def _coded(groups: list[Group], leaf: int) -> bool:
    return all(group.chunks[leaf].coded for group in groups)


def _runs(groups: list[Group]) -> list[list[int]]:
    """Neighbours that fill a batch together, for a batch costs much the same however few rows it has."""
    runs: list[list[int]] = []
    rows = packed = 0
    for place, group in enumerate(groups):
        if not group.rows:
            continue
        rows, packed = rows + group.rows, packed + _packed(group)
        if not runs or rows > BATCH or packed > _AT_ONCE:
            runs.append([])
            rows, packed = group.rows, _packed(group)
        runs[-1].append(place)
    return runs


def _most(groups: list[Group]) -> int:
    """Rows of a batch: fewer where they are wide."""
    unpacked = sum(chunk.unpacked for group in groups for chunk in group.chunks.values())
    return max(1, min(BATCH, BATCH * _WIDE * sum(group.rows for group in groups) // max(1, unpacked)))


def _gathered(
    path: str, pieces: Iterator[pa.RecordBatch], columns: dict[str, _Column], most: int
) -> Iterator[pa.RecordBatch]:
    """What pyarrow reads, under contract names: where a dictionary ends it cuts, and so leaves pieces that are joined here."""
    waiting: list[pa.RecordBatch] = []
    while True:
        full = []
        with refusing(path, "bad_page"), bounded():
            piece = next(pieces, None)
            if waiting and (piece is None or sum(map(len, waiting)) + len(piece) > most):
                full.append(_joined(waiting))
                waiting = []
            if piece is not None and len(piece):
                made = [_as_kind(piece.column(column.theirs), column.kind) for column in columns.values()]
                waiting.append(pa.record_batch(made, names=list(columns)))
            if sum(map(len, waiting)) >= most:
                full.append(_joined(waiting))
                waiting = []
        yield from full
        if piece is None:
            return


def _joined(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(pieces) == 1:
        return pieces[0]
    return pa.Table.from_batches(pieces).unify_dictionaries().combine_chunks().to_batches()[0]


def _leaves(kind: pa.DataType) -> int:
    """How many columns of Parquet a type is laid out in."""
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    return sum(_leaves(kind.field(place).type) for place in range(kind.num_fields)) or 1


def _picked(path: str, schema: pa.Schema, wanted: Wanted, required: tuple[str, ...]) -> dict[str, _Column]:
    """The columns that are there, by contract name."""
    starts = [0, *itertools.accumulate(_leaves(kind) for kind in schema.types)]
    picked = {}
    for name, (theirs, kind) in wanted.items():
        times = schema.names.count(theirs)
        if not times and name not in required:
            continue
        if times != 1:
            near = near_miss(theirs, schema.names[:_NAMES_TRIED])
            shown = [*schema.names[:_NAMES_SHOWN], *(["..."] if len(schema.names) > _NAMES_SHOWN else [])]
            raise ContractError(
                path,
                theirs,
                kind.expected,
                f"{times} columns of this name" if times else f"no such column{near and f' (near: {near!r})'}",
                f"Write it, or name in conf/data what '{name}' is called here; there are {', '.join(shown)}.",
                "repeated_column" if times else "missing_column",
            )
        place = schema.names.index(theirs)
        found = schema.types[place]
        if not kind.fits(found):
            raise ContractError(
                path, theirs, kind.expected, str(found), f"Cast it, or map '{name}' to another column in conf/data."
            )
        picked[name] = _Column(theirs, kind, range(starts[place], starts[place + 1]))
    return picked


def _as_kind(column: pa.Array, kind: Kind) -> pa.Array:
    if kind.becomes is None:
        return column
    if pa.types.is_dictionary(column.type):
        values = _as_kind(column.dictionary, kind)
        if kind.becomes == pa.string():
            _check_length(values, column.indices)
            return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), values)
        return values.take(column.indices)
    column = column.cast(kind.becomes, safe=False)  # a whole number beyond 2^53 is rounded, as any other float is
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # Parquet does not vouch for UTF-8, and polars relies on it.
        if pa.types.is_list(kind.becomes):
            lists = column.cast(pa.list_(pa.binary())).to_pylist()
            return pa.array([each and [_decoded(value) for value in each] for each in lists], kind.becomes)
        return pa.array([_decoded(value) for value in column.cast(pa.binary()).to_pylist()], kind.becomes)
    return column


def _check_length(values: pa.Array, codes: pa.Array) -> None:
    """Keep whoever writes a dictionary out from running out of memory.

    Raises:
        MemoryError: the texts that codes stand for take more than HEADROOM together.
    """
    sizes = pc.binary_length(values)
    if (pc.max(sizes).as_py() or 0) * len(codes) > HEADROOM and (pc.sum(sizes.take(codes)).as_py() or 0) > HEADROOM:
        raise MemoryError


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
