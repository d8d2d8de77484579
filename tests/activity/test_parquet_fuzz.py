"""Whatever the bytes of a file are, reading it ends in sound batches or in FileRefused: no other error, no crash, no hang.

Each case has a number that says all of it. One alone:  python -m tests.activity.test_parquet_fuzz FOLDER NUMBER 1
"""

from __future__ import annotations

import datetime as dt
import functools
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from engine.activity.parquet import MAYBE_TEXT, MOMENT, NUMBER, TEXT, TEXTS, batches
from engine.errors import FileRefused
from tests.activity.parquet_bytes import (
    BINARY,
    LIST,
    SET,
    STRUCT,
    WHOLE,
    Fields,
    Taken,
    closed,
    encoded,
    split,
    written,
)

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # that one case may take
KINDS = {
    "event_id": MAYBE_TEXT,
    "user_id": MAYBE_TEXT,
    "item_id": TEXT,
    "event": TEXT,
    "ts": MOMENT,
    "value": NUMBER,
    "flags": TEXTS,
}
WRITTEN: tuple[dict[str, Any], ...] = (
    {"compression": "none"},
    {"compression": "none", "row_group_size": 7, "write_page_checksum": True},
    {"compression": "none", "use_dictionary": False, "store_schema": False},
    {"compression": "none", "data_page_version": "2.0", "max_rows_per_page": 20},
    {"compression": "zstd", "write_page_checksum": True},
    {"compression": "snappy", "data_page_version": "2.0", "dictionary_pagesize_limit": 200},
    {"compression": "gzip", "use_dictionary": ["event"]},
    {"compression": "lz4", "row_group_size": 30},
    {"compression": "brotli", "store_schema": False},
    {
        "compression": "none",
        "use_dictionary": False,
        "column_encoding": {
            "event_id": "DELTA_BYTE_ARRAY",
            "user_id": "DELTA_LENGTH_BYTE_ARRAY",
            "ts": "DELTA_BINARY_PACKED",
            "value": "BYTE_STREAM_SPLIT",
        },
    },
)
NUMBERS = (0, 1, -1, 2, 127, 1 << 15, 1 << 20, 1 << 28, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))


@functools.cache
def valid(how: int) -> bytes:
    rows = 60
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    table = pa.table(
        {
            "event_id": [f"e{number:05d}" for number in range(rows)],
            "user_id": [f"user-{number % 7}" if number % 5 else None for number in range(rows)],
            "item_id": [f"item-{number % 11}" for number in range(rows)],
            "event": pa.array(["view", "purchase", "click"] * (rows // 3)).dictionary_encode(),
            "ts": [start + dt.timedelta(minutes=number) for number in range(rows)],
            "value": [number / 3 if number % 2 else None for number in range(rows)],
            "flags": [["gift"] * (number % 4) if number % 3 else None for number in range(rows)],
        }
    )
    return written(table, **WRITTEN[how])


def case(number: int) -> bytes:
    """The broken file of a number."""
    chance = random.Random(number)
    content = bytearray(valid(chance.randrange(len(WRITTEN))))
    change = chance.choice((flip, flip, cut, splice, resize, lie_in_footer, lie_in_footer, lie_in_pages, lie_in_pages))
    return change(content, chance)


def flip(content: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 8, 40))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def cut(content: bytearray, chance: random.Random) -> bytes:
    left = content[: chance.randrange(len(content))]
    return bytes(left) + (bytes(content[-8:]) if chance.random() < 0.5 else b"")


def splice(content: bytearray, chance: random.Random) -> bytes:
    other = valid(chance.randrange(len(WRITTEN)))
    size, at, to = chance.randint(1, 400), chance.randrange(len(other)), chance.randrange(len(content))
    content[to : to + size] = other[at : at + size]
    return bytes(content)


def resize(content: bytearray, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        content[-8:-4] = (chance.choice(NUMBERS) % 2**32).to_bytes(4, "little")
        return bytes(content)
    at, size = chance.randrange(len(content)), chance.randint(1, 64)
    content[at : at + chance.choice((0, size))] = chance.randbytes(chance.choice((0, size)))
    return bytes(content)


def lie_in_footer(content: bytearray, chance: random.Random) -> bytes:
    body, footer = split(bytes(content))
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        lie(footer, chance)
    return closed(body, encoded(footer))


def lie_in_pages(content: bytearray, chance: random.Random) -> bytes:
    taken = Taken.apart(bytes(content))
    for _ in range(chance.choice((1, 1, 2, 4))):
        pages = chance.choice(chance.choice(taken.pages))
        page = chance.choice(pages)
        what = chance.randrange(6)
        if what < 3:
            lie(page.header, chance)
        elif what == 3 and page.body:
            page.body = flip(bytearray(page.body), chance)
        elif what == 4:
            page.body = page.body[: chance.randint(0, len(page.body))]
        else:
            pages[chance.randrange(len(pages))] = chance.choice(chance.choice(chance.choice(taken.pages)))
    return taken.together()


def lie(fields: Fields, chance: random.Random) -> None:
    """Change one field somewhere below."""
    places = [(fields, place) for place in range(len(fields))]
    for parent, place in places:
        kind, value = parent[place][1:]
        if kind == STRUCT:
            places += [(value, inner) for inner in range(len(value))]
        elif kind in (LIST, SET) and value[0] == STRUCT:
            places += [(each, inner) for each in value[1] for inner in range(len(each))]
    if not places:
        return
    parent, place = chance.choice(places)
    found = parent[place]
    kind, value = found[1:]
    if chance.random() < 0.15:
        del parent[place]
    elif kind in WHOLE:
        near = (value + 1, value - 1, value * 2, chance.getrandbits(chance.choice((3, 8, 16, 31))))
        found[2] = chance.choice((*NUMBERS, *near, *near, *near))
        if not -(2**63) <= found[2] < 2**63:
            found[2] = 0
    elif kind == BINARY:
        found[2] = chance.choice((b"", b"\xff", value[:-1], value * 2, chance.randbytes(len(value))))
    elif kind in (LIST, SET):
        inner, values = value
        if values:
            values = chance.choice((values[1:], values[:-1], values * 2, [values[0]] * 100, values[::-1], []))
        found[2] = (inner, values)
    elif kind != STRUCT:
        found[2] = not value


def attempt(path: Path) -> str:
    """What reading a file ends in: "read", or why it was refused."""
    wanted = {name: (name, kind) for name, kind in KINDS.items()}
    try:
        for batch in batches(
            fs.LocalFileSystem(), str(path), wanted, ("item_id", "event", "ts"), ("event_id", "flags")
        ):
            batch.validate(full=True)
            for name in batch.schema.names:
                kind = batch.schema.field(name).type
                plain = kind.value_type if pa.types.is_dictionary(kind) else kind
                assert KINDS[name].becomes in (plain, None), (name, kind)
    except FileRefused as error:
        return error.why
    return "read"


def main(folder: str, first: str, count: str) -> None:
    """Run some cases; the one that is being run stands in the file `running`, should it be the last."""
    path, running = Path(folder) / "case.parquet", Path(folder) / "running"
    ends: dict[str, int] = {}
    for number in range(int(first), int(first) + int(count)):
        running.write_text(str(number))
        path.write_bytes(case(number))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # kills a case that hangs
        end = attempt(path)
        signal.setitimer(signal.ITIMER_REAL, 0)
        ends[end] = ends.get(end, 0) + 1
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    sys.stdout.write(f"{ends} peak {int(peak.split()[1]) >> 10} MiB\n")


def held(folder: Path, first: int, count: int) -> str:
    told = subprocess.run(
        [sys.executable, "-m", "tests.activity.test_parquet_fuzz", str(folder), str(first), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, (
        f"case {(folder / 'running').read_text()} ended {told.returncode}: {told.stderr[-2000:]}"
    )
    assert int(told.stdout.split()[-2]) < 1200, told.stdout
    return told.stdout


def test_each_way_of_writing_is_read_when_nothing_is_changed(tmp_path: Path) -> None:
    for how in range(len(WRITTEN)):
        (tmp_path / "a.parquet").write_bytes(valid(how))
        assert attempt(tmp_path / "a.parquet") == "read"
        (tmp_path / "a.parquet").write_bytes(Taken.apart(valid(how)).together())
        assert attempt(tmp_path / "a.parquet") == "read"


def test_no_bytes_escape_as_another_error(tmp_path: Path) -> None:
    ends = held(tmp_path, 0, 600)
    assert all(why in ends for why in ("read", "bad_footer", "bad_page")), ends


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 21_000, 2000))
def test_no_bytes_escape_as_another_error_at_length(tmp_path: Path, first: int) -> None:
    held(tmp_path, first, 2000)


if __name__ == "__main__":
    main(*sys.argv[1:])
