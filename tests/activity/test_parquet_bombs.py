"""A Parquet file that would fill the memory is refused, and a large one that is sound is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from engine.activity.bounds import LARGEST_FOOTER
from engine.activity.parquet import MAYBE_TEXT, TEXT, batches
from engine.errors import FileRefused
from tests.activity.parquet_bytes import (
    BINARY,
    CHUNK,
    DATA_AT,
    GROUP_ROWS,
    GROUPS,
    I32,
    I64,
    KEYS_AND_VALUES,
    LIST,
    PACKED,
    PAGE_UNPACKED,
    PLAIN,
    SCHEMA,
    STRUCT,
    UNPACKED,
    Taken,
    closed,
    edited,
    encoded,
    field,
    file_of,
    varint,
    written,
)

LOCAL = fs.LocalFileSystem()
ROOT = Path(__file__).resolve().parents[2]
WANTED = {"x": ("x", TEXT)}

# Reads a file in a process of its own: how it ended, and by how many MiB its memory had grown at most.
MEASURED = """
import sys
from pyarrow import fs
from engine.activity.parquet import TEXT, TEXTS, read
from engine.errors import FileRefused

def told(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) >> 10

before = told("VmRSS")
try:
    read(fs.LocalFileSystem(), sys.argv[1], {"x": ("x", TEXTS if sys.argv[2] == "list" else TEXT)}, ("x",))
    end = "read"
except FileRefused as error:
    end = error.why
print(end, told("VmHWM") - before)
"""


def measured(path: Path, content: bytes, kind: str = "text") -> tuple[str, int]:
    path.write_bytes(content)
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), kind], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    end, grown = told.stdout.split()
    return end, int(grown)


def large_chunk() -> bytes:
    """Honest: 2 GiB of the same letter."""
    return written(
        pa.table({"x": pa.chunked_array([pa.array(["b" * (1 << 20)] * 256)] * 9)}),
        use_dictionary=False,
        write_statistics=False,
        compression="zstd",
        row_group_size=1 << 20,
    )


def lying_page(unpacked: int) -> Callable[[], bytes]:
    """A page of a few bytes that says that it unpacks to more than the footer allows for."""

    def content() -> bytes:
        taken = Taken.apart(file_of(1000, use_dictionary=False, compression="zstd"))
        field(taken.pages[0][0][0].header, PAGE_UNPACKED)[2] = unpacked
        return taken.together()

    return content


def lying_chunk() -> bytes:
    """A page that unpacks to 1 GiB in truth, under a footer that tells of 1000 bytes."""
    size = (1 << 30) - 100
    text = pa.StringArray.from_buffers(1, pa.array([0, size], pa.int32()).buffers()[1], pa.py_buffer(bytes(size)))
    how = {"use_dictionary": False, "compression": "zstd", "store_schema": False, "write_statistics": False}
    return edited(written(pa.table({"x": text}), **how), 1000, *CHUNK, UNPACKED)


def long_text_named_often() -> bytes:
    """One text of 1 MiB, a million times."""
    names = pa.array(["a" * (1 << 20)])
    return written(
        pa.table({"x": pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000), names)}), store_schema=False
    )


def long_text_in_lists() -> bytes:
    names = pa.array(["a" * (1 << 20)])
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000), names)
    lists = pa.ListArray.from_arrays(pa.array(range(0, 1_000_001, 10), pa.int32()), texts)
    return written(pa.table({"x": lists}), store_schema=False)


def endless_list() -> bytes:
    """One row of fifty million entries, in a few bytes."""
    size = 50_000_000
    entries = pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int8)), pa.array(["a"]))
    return written(
        pa.table({"x": pa.ListArray.from_arrays(pa.array([0, size], pa.int32()), entries)}), store_schema=False
    )


def footer_of(*groups: bytes, schema: list[list[Any]] | None = None, more: list[list[Any]] | None = None) -> bytes:
    """A file without pages. groups: encoded row groups."""
    leaves = schema if schema is not None else [leaf("x")]
    root = [[4, BINARY, b"schema"], [5, I32, len(leaves)]]
    fields = [[1, I32, 2], [SCHEMA, LIST, (STRUCT, [root, *leaves])], [3, I64, 0]]
    head = encoded([*fields, [GROUPS, LIST, (STRUCT, [])], *(more or [])])
    if not groups:
        return closed(b"PAR1", head)
    listed = b"\x19" + bytes([0xFC]) + varint(len(groups)) + b"".join(groups)
    return closed(b"PAR1", encoded(fields)[:-1] + listed + b"\0")


def leaf(name: str) -> list[list[Any]]:
    return [[1, I32, 6], [3, I32, 1], [4, BINARY, name.encode()], [6, I32, 0]]


def group_of(columns: int, rows: int = 0) -> bytes:
    chunk = encoded([[2, I64, 0]])
    listed = bytes([0xFC]) + varint(columns) + chunk * columns
    return b"\x19" + listed + encoded([[2, I64, 0], [3, I64, rows]]).replace(b"\x26", b"\x16", 1)


def many_pairs() -> bytes:
    pair = [[1, BINARY, b"a"]]
    return footer_of(more=[[KEYS_AND_VALUES, LIST, (STRUCT, [pair] * 400_000)]])


def long_pair() -> bytes:
    pair = [[1, BINARY, b"a"], [2, BINARY, b"b" * (100 << 20)]]
    return footer_of(more=[[KEYS_AND_VALUES, LIST, (STRUCT, [pair])]])


BOMBS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "a chunk of 2 GiB": (large_chunk, ("too_large",)),
    "a page that says 2 GiB": (lying_page(2**31 - 1), ("too_large", "bad_page")),
    "a page that says 400 MiB": (lying_page(400 << 20), ("too_large", "bad_page")),
    "a page of 1 GiB that was not told of": (lying_chunk, ("too_large", "bad_page")),
    "a long text named often": (long_text_named_often, ("too_large", "bad_page")),
    "a long text named often in lists": (long_text_in_lists, ("too_large", "bad_page")),
    "an endless list": (endless_list, ("too_large", "read")),
    "a group of 2^31 rows": (lambda: edited(file_of(), 2**31, GROUPS, 0, GROUP_ROWS), ("too_large",)),
    "a group of 2^28 rows": (lambda: edited(file_of(), 1 << 28, GROUPS, 0, GROUP_ROWS), ("bad_footer",)),
    "a group of -1 rows": (lambda: edited(file_of(), -1, GROUPS, 0, GROUP_ROWS), ("too_large", "bad_footer")),
    "a chunk of -1 bytes": (lambda: edited(file_of(), -1, *CHUNK, UNPACKED), ("bad_footer",)),
    "a chunk beyond the end": (lambda: edited(file_of(**PLAIN), 1 << 40, *CHUNK, DATA_AT), ("bad_footer",)),
    "a chunk longer than the file": (lambda: edited(file_of(), 1 << 40, *CHUNK, PACKED), ("bad_footer",)),
    "many groups": (lambda: footer_of(*[group_of(1)] * 100_000), ("too_large", "bad_footer")),
    "many columns in groups": (lambda: footer_of(*[group_of(100_000)] * 13), ("too_large", "bad_footer")),
    "many columns in the schema": (
        lambda: footer_of(schema=[leaf("x"), *[leaf("y")] * 50_000]),
        ("read",),
    ),
    "columns deep in each other": (
        lambda: footer_of(schema=[[[3, I32, 1], [4, BINARY, b"x"], [5, I32, 1]]] * 10_000),
        ("bad_footer",),
    ),
    "many keys and values": (many_pairs, ("too_large",)),
    "a long value": (long_pair, ("too_large",)),
    "a footer of 4 MiB": (
        lambda: closed(b"PAR1", bytes(LARGEST_FOOTER)),
        ("bad_footer",),
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, bomb: str) -> None:
    content, whys = BOMBS[bomb]
    end, grown = measured(tmp_path / "a.parquet", content(), "list" if "list" in bomb else "text")
    assert end in whys
    assert grown < 1024, f"{grown} MiB"


def test_a_dictionary_that_would_not_fit_when_written_out_is_refused_while_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(long_text_named_often())
    with pytest.raises(FileRefused) as caught:
        list(batches(LOCAL, str(tmp_path / "a.parquet"), WANTED, ("x",)))
    assert caught.value.why == "too_large"
    names = pa.array(["a" * (1 << 20), "b"])
    rarely = pa.DictionaryArray.from_arrays(pa.array([0] * 10 + [1] * 100_000), names)
    (tmp_path / "a.parquet").write_bytes(written(pa.table({"x": rarely})))
    assert sum(batch.num_rows for batch in batches(LOCAL, str(tmp_path / "a.parquet"), WANTED, ("x",))) == 100_010


def test_a_large_row_group_that_is_sound_is_read(tmp_path: Path) -> None:
    rows = 1_000_000
    texts = [f"{row:016x}" for row in range(rows)]
    names = {f"c{at}": texts if at < 3 else [f"name {row % 1000}" for row in range(rows)] for at in range(8)}
    content = written(pa.table({"x": texts, **names}), row_group_size=rows)
    end, grown = measured(tmp_path / "a.parquet", content)
    assert end == "read" and grown < 1024
    wanted = {name: (name, MAYBE_TEXT) for name in ("x", *names)}
    (tmp_path / "a.parquet").write_bytes(content)
    assert sum(batch.num_rows for batch in batches(LOCAL, str(tmp_path / "a.parquet"), wanted, ("x",))) == rows
