"""Small logs in real Parquet files, and what the first stage makes of them."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from engine.activity.categories import Categories
from engine.activity.files import LogFile
from engine.activity.gather import bind
from engine.activity.mapping import DataSettings, EventRule
from engine.activity.parts import About, Partition, PartStore, Run
from engine.activity.people import People
from engine.activity.rows import REASONS, Checked, Rules, read_rows
from engine.activity.settle import Settled, Tonight, settle_bucket
from engine.activity.split import read_partition
from engine.identity import UserKey, UserKeys, fault_in_id
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
ALL, SENSITIVE = 15, 16
KEYS = UserKeys(UserKey(b"s" * 32), UserKey(b"r" * 32))
CANCELLING = {
    "purchase": EventRule(means="purchase"),
    "view": EventRule(means="view"),
    "cancel": EventRule(undoes="purchase"),
}
TAKEN = {
    "user_id": pl.String,
    "item": pl.Int32,
    "event": pl.UInt8,
    "ts": pl.Int64,
    "value": pl.Float64,
    "source": pl.UInt8,
    "gift": pl.Boolean,
    "mark": pl.UInt64,
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
class Found:
    """What the checks made of a file: the events that are carried on, with the raw id for the test to see."""

    taken: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=TAKEN))
    counts: Counter[str] = field(default_factory=Counter)
    near: dict[str, str] = field(default_factory=dict)
    total: int = 0
    quarantined: list[tuple[int, str]] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)


@dataclass
class Parts:
    """A store with the parts of a log."""

    store: PartStore
    keys: tuple[str, ...]
    abouts: list[About]

    @property
    def runs(self) -> dict[str, int]:
        return {key: about.runs for key, about in zip(self.keys, self.abouts, strict=True)}

    def all_runs(self) -> list[Run]:
        return [self.store.run(key, number) for key, runs in self.runs.items() for number in range(runs)]


@dataclass
class Shop:
    """A catalogue of the items a, b, c and d, a log, and what people granted: bits of TRAIN and PROFILE by raw id.

    erased: by raw id, the day up to which nothing of them counts.
    """

    folder: Path
    data: DataSettings = field(default_factory=DataSettings)
    granted: Mapping[str, int] = field(default_factory=lambda: {"ann": ALL, "bob": ALL})
    erased: Mapping[str, float] = field(default_factory=dict)
    items: tuple[str, ...] = ("a", "b", "c", "d")
    dropped: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    paths: Mapping[str, list[str]] = field(default_factory=dict)  # categories by item, root to leaf
    buckets: int = 1
    _count: Iterable[int] = field(default_factory=itertools.count)

    def fresh(self, name: str) -> Path:
        return self.folder / f"{name}-{next(iter(self._count))}"

    def rules(self) -> Rules:
        items, dropped = pa.array(self.items, pa.string()), pa.array(self.dropped, pa.string())
        known = pa.concat_arrays([items, dropped, self.categories().ids]).sort()
        return Rules(self.data, known, dropped, SOURCES, NOW)

    def categories(self) -> Categories:
        paths = pa.array([self.paths.get(name, []) for name in self.items], pa.list_(pa.string()))
        return Categories.of(paths, np.isin(self.items, self.sensitive))

    def read(self, rows: Sequence[Row], schema: pa.Schema = LOG) -> Found:
        people = {each["user_id"] for each in rows if isinstance(each.get("user_id"), str)}
        return self.read_file(write(self.fresh("log") / "part.parquet", rows, schema), people)

    def read_file(self, path: Path, people: Iterable[str] = ("ann", "bob")) -> Found:
        """What the checks make of a file; `people` are the ids whose pseudonyms are told apart."""
        named = {KEYS.pseudonyms([name])[0]: name for name in people if not fault_in_id(name)}
        found = Found()
        for checked in read_rows(fs.LocalFileSystem(), str(path), self.rules(), People(KEYS)):
            carried = checked.carried
            who = [named[checked.people[at].tobytes()] if at >= 0 else None for at in carried.person.tolist()]
            columns = {name: who if name == "user_id" else getattr(carried, name) for name in TAKEN}
            found.taken = pl.concat([found.taken, pl.DataFrame(columns, schema=TAKEN)])
            found.counts.update(checked.counts)
            found.near |= checked.near
            found.total += checked.rows
            found.quarantined += [
                (line, REASONS[code]) for line, code in zip(checked.line.tolist(), checked.reason.tolist(), strict=True)
            ]
            found.checked.append(checked)
        return found

    def reasons(self, rows: Sequence[Row], schema: pa.Schema = LOG) -> dict[str, int]:
        return dict(self.read(rows, schema).counts)

    def standings(self) -> pa.Table:
        table = pa.table(
            [
                pa.array(KEYS.stable.derive_many(self.granted), STANDINGS.field(0).type),
                pa.array(self.granted.values(), pa.uint64()),
                pa.nulls(len(self.granted), pa.uint8()),
                pa.array(
                    [micros(self.erased[name]) if name in self.erased else 0 for name in self.granted], pa.int64()
                ),
            ],
            schema=STANDINGS,
        )
        return table.sort_by("user_key")

    def split(self, *files: Sequence[Row], together: bool = False, run: int = 1000) -> Parts:
        """Each file of rows a part of its own, or all of them one partition."""
        folder = self.fresh("split")
        paths = [write(folder / "log" / f"{at:03d}.parquet", rows) for at, rows in enumerate(files)]
        listed = [LogFile(str(path), path.name, path.stat().st_size, 0) for path in paths]
        parts = [Partition("all", tuple(listed))] if together else [Partition(file.name, (file,)) for file in listed]
        store, abouts = PartStore(folder / "parts"), []
        for part in parts:
            with store.draft(part.name) as place:
                read_partition(part, fs.LocalFileSystem(), self.rules(), People(KEYS), place, run)
            about = store.newest(part.name)
            assert about is not None
            abouts.append(about)
        return Parts(store, tuple(about.generation for about in abouts), abouts)

    def tonight(self, parts: Parts, as_of: float, moments: Sequence[float], half_life: float) -> Tonight:
        items, dropped = pa.array(self.items, pa.string()), pa.array(self.dropped, pa.string())
        sensitive = np.array([name in self.sensitive for name in self.items])
        categories = self.categories()
        return Tonight(
            self.data,
            parts.store,
            parts.keys,
            bind(parts.store, parts.runs, pa.concat_arrays([items, categories.ids]), dropped),
            KEYS,
            self.standings(),
            TRAIN,
            PROFILE,
            sensitive,
            (SENSITIVE, SENSITIVE),
            micros(as_of),
            tuple(micros(day) for day in moments),
            half_life,
            categories=categories,
        )

    def settle(
        self,
        *files: Sequence[Row],
        as_of: float = 59,
        moments: Sequence[float] = (59,),
        half_life: float = 30.0,
        run: int = 1000,
    ) -> list[Settled]:
        """Each bucket, settled. as_of, moments, half_life: days. run: events that are sorted at once."""
        tonight = self.tonight(self.split(*files, run=run), as_of, moments, half_life)
        return [settle_bucket(bucket, self.buckets, tonight) for bucket in range(self.buckets)]

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
