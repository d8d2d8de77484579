"""Each fault of a Parquet file is refused by its name, in bounded memory; no other error comes of it."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from pyarrow import fs

from engine.activity.bounds import LARGEST_FOOTER, bounded
from engine.activity.parquet import MAYBE_TEXT, TEXT, batches, read
from engine.errors import FileRefused
from tests.activity.parquet_bytes import (
    ABOUT,
    BINARY,
    COLUMNS,
    DATA_AT,
    GROUP_ROWS,
    GROUPS,
    I32,
    I64,
    KEYS_AND_VALUES,
    LIST,
    PACKED,
    PAGE_UNPACKED,
    SCHEMA,
    STRUCT,
    UNPACKED,
    VALUES,
    Taken,
    closed,
    edited,
    encoded,
    field,
    split,
    varint,
    written,
)

LOCAL = fs.LocalFileSystem()
ROOT = Path(__file__).resolve().parents[2]
WANTED = {"x": ("x", TEXT)}
PLAIN = {"use_dictionary": False, "compression": "none"}
CHUNK = (GROUPS, 0, COLUMNS, 0, ABOUT)


def file_of(rows: int = 1000, **how: Any) -> bytes:
    return written(pa.table({"x": [f"name {row}" for row in range(rows)], "y": list(range(rows))}), **how)


def refused(path: Path, content: bytes | None = None) -> FileRefused:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileRefused) as caught:
        read(LOCAL, str(path), WANTED, ("x",))
    assert caught.value.file == str(path)
    return caught.value


# --- not a file, or not a whole one -----------------------------------------------------------------------------------


WHOLE_FILE = file_of()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "zero_bytes"),
        (b"P", "bad_footer"),
        (b"PAR1", "bad_footer"),
        (b"PAR1PAR1", "bad_footer"),
        (b"PAR1" + b"\0" * 4 + b"PAR1", "bad_footer"),
        (b"a,b\n1,2\n" * 10, "bad_footer"),
        (WHOLE_FILE[:-1], "bad_footer"),
        (WHOLE_FILE[:-40], "bad_footer"),
        (WHOLE_FILE[: len(WHOLE_FILE) // 2], "bad_footer"),
        (WHOLE_FILE[:4] + WHOLE_FILE[-2000:], "bad_footer"),
        (WHOLE_FILE[:-4] + b"PAR2", "bad_footer"),
        (WHOLE_FILE[:-8] + b"\xff\xff\xff\xff" + b"PAR1", "bad_footer"),
        (WHOLE_FILE[:-8] + b"\x10\0\0\0" + b"PAR1", "bad_footer"),
    ],
)
def test_a_file_that_is_no_parquet_or_cut_short_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    error = refused(tmp_path / "day.parquet", content)
    assert error.why == why
    assert "day.parquet is not a readable Parquet file" in str(error)


def test_a_missing_file_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    gone = refused(tmp_path / "gone.parquet")
    assert gone.why == "vanished" and "gone.parquet is missing" in str(gone)
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "link.parquet").why == "vanished"
    (tmp_path / "folder.parquet").mkdir()
    assert refused(tmp_path / "folder.parquet").why == "bad_footer"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(WHOLE_FILE)
    (tmp_path / "a.parquet").chmod(0)
    assert "ermission" in str(refused(tmp_path / "a.parquet"))


def started(path: Path) -> Iterator[pa.RecordBatch]:
    path.write_bytes(file_of(3 * (1 << 18), row_group_size=1 << 18))
    found = batches(LOCAL, str(path), WANTED, ("x",))
    assert next(found).num_rows == 1 << 18
    return found


def test_a_file_that_is_written_over_while_it_is_read_is_refused(tmp_path: Path) -> None:
    found = started(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(file_of(10))
    with pytest.raises(FileRefused):
        list(found)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """What was read is whole, but it is not what lies there under its name."""
    found = started(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(file_of(10))
    (tmp_path / "b.parquet").replace(tmp_path / "a.parquet")
    with pytest.raises(FileRefused, match="changed while it was read"):
        list(found)


def test_a_file_that_vanishes_while_it_is_read_is_read_or_refused(tmp_path: Path) -> None:
    found = started(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    assert sum(batch.num_rows for batch in found) == 2 << 18  # a disk keeps what is open; an object store refuses


# --- pages ------------------------------------------------------------------------------------------------------------


def flipped(content: bytes, offset: int = 40) -> bytes:
    page = Taken.apart(content)
    body = bytearray(page.pages[0][0][-1].body)
    body[offset % len(body)] ^= 1
    page.pages[0][0][-1].body = bytes(body)
    return page.together()


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip", "lz4", "brotli"])
def test_a_flipped_bit_of_a_page_is_seen_by_its_checksum(tmp_path: Path, codec: str) -> None:
    content = file_of(compression=codec, write_page_checksum=True)
    for offset in (0, 5, -1):
        assert refused(tmp_path / "a.parquet", flipped(content, offset)).why == "bad_page"


@pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli"])
def test_a_page_without_a_checksum_that_does_not_unpack_is_refused(tmp_path: Path, codec: str) -> None:
    taken = Taken.apart(file_of(compression=codec))
    page = taken.pages[0][0][-1]
    page.body = bytes(len(page.body))
    assert refused(tmp_path / "a.parquet", taken.together()).why == "bad_page"


def test_rows_that_the_footer_tells_of_and_the_pages_have_not_are_missed(tmp_path: Path) -> None:
    taken = Taken.apart(file_of(1000, max_rows_per_page=100, **PLAIN))
    taken.pages[0][0].pop()
    error = refused(tmp_path / "a.parquet", taken.together())
    assert error.why == "bad_page"


@pytest.mark.parametrize("number", [0, 1, 999, 1001, 5000])
def test_a_footer_with_another_number_of_rows_is_refused(tmp_path: Path, number: int) -> None:
    content = edited(file_of(1000), number, GROUPS, 0, GROUP_ROWS)
    assert refused(tmp_path / "a.parquet", content).why == "bad_footer"
    if number > 1000:  # the column says so, too
        content = edited(content, number, *CHUNK, VALUES)
        assert refused(tmp_path / "a.parquet", content).why == "bad_page"


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    class Keys(pe.KmsClient):  # type: ignore[misc]
        def __init__(self, _: object) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, _: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, wrapped: bytes, _: str) -> bytes:
            return base64.b64decode(wrapped)

    for plaintext_footer in (False, True):
        config = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": ["x"]}, plaintext_footer=plaintext_footer)
        how = pe.CryptoFactory(Keys).file_encryption_properties(pe.KmsConnectionConfig(), config)
        with pq.ParquetWriter(
            tmp_path / "a.parquet", pa.schema({"x": pa.string()}), encryption_properties=how
        ) as writer:
            writer.write_table(pa.table({"x": ["a"] * 10}))
        error = refused(tmp_path / "a.parquet")
        assert error.why in ("bad_footer", "bad_page")


# --- bombs ------------------------------------------------------------------------------------------------------------

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


def test_the_bound_is_lifted_when_reading_pauses_or_fails(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    free = resource.getrlimit(resource.RLIMIT_DATA)
    found = started(tmp_path / "a.parquet")
    assert resource.getrlimit(resource.RLIMIT_DATA) == free
    with pytest.raises(ValueError, match="any"), bounded():
        assert resource.getrlimit(resource.RLIMIT_DATA) != free
        raise ValueError("any")
    assert resource.getrlimit(resource.RLIMIT_DATA) == free
    broken = flipped(file_of(write_page_checksum=True))
    threads = [threading.Thread(target=lambda: list(found)) for _ in range(1)]
    threads += [threading.Thread(target=refused, args=(tmp_path / f"{at}.parquet", broken)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == free


def test_what_a_footer_says_beside_the_contract_is_of_no_account(tmp_path: Path) -> None:
    body, footer = split(WHOLE_FILE)
    pair = [[1, BINARY, b"ARROW:schema"], [2, BINARY, base64.b64encode(os.urandom(300))]]
    footer = [each for each in footer if each[0] != KEYS_AND_VALUES]
    position = next(place for place, each in enumerate(footer) if each[0] > KEYS_AND_VALUES)
    footer.insert(position, [KEYS_AND_VALUES, LIST, (STRUCT, [pair])])
    (tmp_path / "a.parquet").write_bytes(closed(body, encoded(footer)))
    try:
        read(LOCAL, str(tmp_path / "a.parquet"), WANTED, ("x",))
    except FileRefused as error:
        assert error.why == "bad_footer"
