"""Each fault of a Parquet file is refused by its name, and no other error comes of it."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from pyarrow import fs

from engine.activity.bounds import bounded
from engine.activity.parquet import TEXT, batches, read
from engine.errors import FileRefused
from tests.activity.parquet_bytes import (
    BINARY,
    CHUNK,
    GROUP_ROWS,
    GROUPS,
    KEYS_AND_VALUES,
    LIST,
    PLAIN,
    STRUCT,
    VALUES,
    Taken,
    closed,
    edited,
    encoded,
    file_of,
    split,
)

LOCAL = fs.LocalFileSystem()
ROOT = Path(__file__).resolve().parents[2]
WANTED = {"x": ("x", TEXT)}


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
