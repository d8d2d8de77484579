"""Small logs in real Parquet files, and what the first stage makes of them."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from engine.activity.mapping import DataSettings, EventRule
from engine.activity.rows import Rows, read_rows
from engine.activity.settle import Settled, settle_bucket
from engine.activity.split import SplitContext, SplitReport, split_files
from engine.identity import UserKey, UserKeys
from engine.schema import STANDINGS, TIME

LOG = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event", pa.string()),
        ("ts", TIME),
        ("value", pa.float64()),
        ("source", pa.string()),
        ("session_id", pa.string()),
        ("flags", pa.list_(pa.string())),
    ]
)
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = 86_400_000_000
NOW = 1_767_225_600_000_000 + 60 * DAY  # START and 60 days
SOURCES = ("web", "store")
TRAIN, PROFILE = (1, 2), (4, 8)  # by source
ALL = 15
KEYS = UserKeys(UserKey(b"s" * 32), UserKey(b"r" * 32))
CANCELLING = {
    "purchase": EventRule(means="purchase"),
    "view": EventRule(means="view"),
    "cancel": EventRule(undoes="purchase"),
}
Row = dict[str, Any]


def row(item: str | None = "a", event: str | None = "view", day: float = 0.0, **rest: Any) -> Row:
    """An event of ann's on the web, `day` days after START."""
    plain = {"user_id": "ann", "source": "web", "ts": START + dt.timedelta(days=day)}
    return {"item_id": item, "event": event} | plain | rest


def write(path: Path, rows: Sequence[Row], schema: pa.Schema = LOG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def micros(day: float) -> int:
    return NOW - 60 * DAY + int(day * DAY)


@dataclass
class Shop:
    """A catalogue of the items a, b, c and d, a log, and what people granted: bits of TRAIN and PROFILE by raw id."""

    folder: Path
    data: DataSettings = field(default_factory=DataSettings)
    granted: Mapping[str, int] = field(default_factory=lambda: {"ann": ALL, "bob": ALL})
    items: tuple[str, ...] = ("a", "b", "c", "d")
    dropped: tuple[str, ...] = ()
    buckets: int = 1
    _count: Iterable[int] = field(default_factory=itertools.count)

    def fresh(self, name: str) -> Path:
        return self.folder / f"{name}-{next(iter(self._count))}"

    def read(self, rows: Sequence[Row], schema: pa.Schema = LOG) -> Rows:
        return self.read_file(write(self.fresh("log") / "part.parquet", rows, schema))

    def read_file(self, path: Path) -> Rows:
        items, dropped = pa.array(self.items, pa.string()), pa.array(self.dropped, pa.string())
        return read_rows(fs.LocalFileSystem(), str(path), self.data, items, dropped, SOURCES, NOW)

    def reasons(self, rows: Sequence[Row], schema: pa.Schema = LOG) -> dict[str, int]:
        return self.read(rows, schema).counts

    def context(self) -> SplitContext:
        standings = pa.table(
            [
                pa.array(KEYS.stable.derive_many(self.granted), STANDINGS.field(0).type),
                pa.array(self.granted.values(), pa.uint64()),
                pa.nulls(len(self.granted), pa.uint8()),
            ],
            schema=STANDINGS,
        )
        items, dropped = pa.array(self.items, pa.string()), pa.array(self.dropped, pa.string())
        data = self.data
        data.path = data.path or str(self.folder)
        return SplitContext(data, items, dropped, SOURCES, standings, TRAIN, PROFILE, KEYS, self.buckets, NOW)

    def split(self, *files: Sequence[Row]) -> tuple[Path, SplitReport]:
        """The folder with the buckets, each file of rows a part of its own; and the report of the last part."""
        folder = self.fresh("split")
        for number, rows in enumerate(files):
            path = write(folder / "log" / f"{number}.parquet", rows)
            report = split_files([str(path)], self.context(), folder, folder / "quarantine", f"part-{number}")
        return folder, report

    def settle(
        self, *files: Sequence[Row], as_of: float = 59, moments: Sequence[float] = (59,), half_life: float = 30.0
    ) -> list[Settled]:
        """Each bucket, settled. as_of, moments, half_life: days."""
        folder, _ = self.split(*files)
        return [
            settle_bucket(
                folder / f"bucket-{bucket:05d}", self.data, micros(as_of), [micros(day) for day in moments], half_life
            )
            for bucket in range(self.buckets)
        ]

    def kept(self, *files: Sequence[Row], **how: Any) -> list[tuple[str, int]]:
        """Item and day of each event that is left, of all people, in the order of the shard."""
        (settled,) = self.settle(*files, **how)
        return [
            (self.items[each["item"]], (each["ts"] - START).days)
            for each in settled.activity.select(["item", "ts"]).to_pylist()
        ]


def as_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def popularity(settled: Settled, place: int = 0) -> dict[str, tuple[float, int]]:
    """Weight and people by item."""
    return {"abcd"[each["item"]]: (each["weight"], each["people"]) for each in settled.popularity[place].to_pylist()}


def settled_alike(shop: Shop, rows: list[Row]) -> Settled:
    """The bucket, after a look at whether the rows' order counts."""
    orders = [rows, rows[::-1], *(random.Random(seed).sample(rows, len(rows)) for seed in range(3))]
    found = [shop.settle(order)[0] for order in orders]
    assert len({(as_bytes(each.activity), as_bytes(each.popularity[0])) for each in found}) == 1
    return found[0]
