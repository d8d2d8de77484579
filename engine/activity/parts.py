"""The store of parts: what each partition of the log came to, once read, so that a night reads what is new alone.

    STORE/<key>.<generation>/rows-0.arrow people-0.arrow items-0.arrow quarantine.parquet part.json
    STORE/<key>                 a link to the newest generation

A part is filed under a key made of the bytes it was read from and of the settings, keys and code it was read with. It holds
neither consent nor catalogue codes, which change from night to night. Its people are pseudonyms of the rotating key. A
generation is never changed: a night that has bound its items goes on with it, whatever another night puts in its place.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import itertools
import json
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.activity.columns import event_name
from engine.activity.files import LIVE, LogFile
from engine.activity.order import Events
from engine.identity import KEY_BYTES
from engine.schema import USER_KEY

_PEOPLE = pa.schema([("user_key", USER_KEY), ("seal", USER_KEY), ("end", pa.int64())])  # ends of the rows of each
_ROWS = pa.schema(
    [
        ("item", pa.int32()),
        ("event", pa.uint8()),
        ("ts", pa.int64()),
        ("value", pa.float64()),
        ("source", pa.uint8()),
        ("gift", pa.uint8()),
        ("mark", pa.uint64()),
    ]
)
_ITEMS = pa.schema([("item_id", pa.string())])
_ABOUT = "part.json"
_ABANDONED_S = 86_400.0  # no night takes a day over its ingest


@dataclass(frozen=True, slots=True)
class Partition:
    """Files that are read together: those of one date, or one file of a log that has no dates."""

    name: str
    files: tuple[LogFile, ...]

    @property
    def day(self) -> dt.date | None:
        """The date that its folder is named by."""
        with contextlib.suppress(ValueError):
            return dt.date.fromisoformat(self.name.rpartition("/")[2].removeprefix("date="))
        return None

    @property
    def live(self) -> bool:
        """Whether servers shipped it, so that it is read by the contract as it stands."""
        return self.name.startswith(LIVE)


def partitions(files: Iterable[LogFile]) -> list[Partition]:
    """The log's partitions by name: the files of a Hive folder `date=...` are one, others one each."""

    def folder(file: LogFile) -> str:
        above = file.name.rpartition("/")[0]
        return above if above.rpartition("/")[2].startswith("date=") else file.name

    grouped = itertools.groupby(sorted(files, key=lambda file: (folder(file), file.name)), folder)
    return [Partition(name, tuple(group)) for name, group in grouped]


@dataclass(slots=True)
class About:
    """What a part says of itself.

    counts: rows that were not taken, by reason. refused: file -> why it could not be read. tally: [day since 1970, source,
    event, rows]. latest: microseconds by source. oldest: microseconds by event, of what the part holds. strangers: marks of
    item ids that the catalogue did not know. ahead: the earliest time refused as future. bytes: by file of the part.
    """

    name: str
    generation: str = ""
    catalogue: str = ""  # names the catalogue, where there are too many strangers to list
    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)  # rows quarantined, by file
    tally: list[list[int]] = field(default_factory=list)
    latest: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, int] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    strangers: list[int] = field(default_factory=list)
    ahead: int | None = None
    events: int = 0
    runs: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)  # rows removed for retention, by event
    since: dict[str, int] = field(default_factory=dict)  # and the earliest time that was left, by event
    seconds: float = 0.0
    peak: int = 0

    @property
    def forgotten_by_name(self) -> dict[str, int]:
        """`forgotten`, by the event's name."""
        return {event_name(int(event)): rows for event, rows in self.forgotten.items()}

    def forget(self, rows: NDArray[np.int64], since: NDArray[np.int64] | None) -> None:
        """Count (256,) rows that were left out by event code, as older than `since`."""
        if since is None:
            return
        for event in np.flatnonzero(rows).tolist():
            self.forgotten[str(event)] = self.forgotten.get(str(event), 0) + int(rows[event])
            self.since[str(event)] = max(int(since[event]), self.since.get(str(event), int(since[event])))

    def held(self) -> int:
        """Events that the part holds, or held before they were too old."""
        return self.events + sum(self.forgotten.values())

    def lacks(self, since: NDArray[np.int64]) -> bool:
        """Whether something was left out that is wanted from (256,) these times on."""
        return any(moment > since[int(event)] for event, moment in self.since.items())

    def older_than(self, since: NDArray[np.int64]) -> list[str]:
        """Codes of events of which the part holds some from before (256,) times by event code."""
        return [event for event, moment in self.oldest.items() if moment < since[int(event)]]

    def add(self, events: Events) -> None:
        """Count the events of a run."""
        self.events += len(events)
        for event in np.unique(events.event).tolist():
            first = int(events.ts[events.event == event].min())
            self.oldest[str(event)] = min(first, self.oldest.get(str(event), first))


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A stretch of a part: its people by key, their events in settled order, then the anonymous ones by mark.

    keys, seals: (P,) S16. ends: (P,) where the events of each end. items: (I,) ids, ascending, that `rows.item` counts.
    """

    keys: NDArray[np.bytes_]
    seals: NDArray[np.bytes_]
    ends: NDArray[np.int64]
    rows: pa.RecordBatch

    def column(self, name: str) -> NDArray[Any]:
        """A column of the events, as a view."""
        values: NDArray[Any] = self.rows.column(name).to_numpy()
        return values.view(np.bool_) if name == "gift" else values


class PartStore:
    """A folder of parts."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def newest(self, key: str) -> About | None:
        """What the newest generation of a part says of itself; None where there is none, or a file of it is missing."""
        generation = self.generation(key)
        return self.about(generation) if generation else None

    def generation(self, key: str) -> str:
        """The name of the newest generation of a part, or ''."""
        try:
            return (self.root / key).readlink().name
        except OSError:
            return ""

    def about(self, generation: str) -> About | None:
        """What a generation says of itself; None where it or a file of it is missing. It counts as used from now on."""
        folder = self.root / generation
        try:
            with self._locked(fcntl.LOCK_SH):
                about = About(**json.loads((folder / _ABOUT).read_text()))
                whole = all((folder / name).stat().st_size == size for name, size in about.bytes.items())
                os.utime(folder)
        except (OSError, ValueError, TypeError):
            return None
        about.generation = generation
        return about if whole else None

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Looking at parts and taking some away shut each other out, in all processes."""
        handle = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """A folder to fill; when the body ends well it becomes the newest generation of the part, and else it vanishes."""
        self.root.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(4)
        place, whole, link = (
            self.root / name for name in (f".{key}-{token}", f"{key}.{token}", f".{key}-{token}.link")
        )
        place.mkdir()
        try:
            yield place
            _settle_down(place)
            place.rename(whole)
            link.symlink_to(whole.name)
            if (self.root / key).is_dir() and not (self.root / key).is_symlink():
                shutil.rmtree(self.root / key)  # a copy of the store that followed its links
            link.replace(self.root / key)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def run(self, key: str, number: int) -> Run:
        """A run of a part, memory-mapped."""
        return _open_run(self.root / key, number)

    def item_ids(self, key: str, number: int) -> pa.Array:
        """The item ids of a run of a part."""
        return _read(self.root / key / f"items-{number}.arrow").column(0)

    def forget(self, key: str, since: NDArray[np.int64]) -> None:
        """Leave out of a part's newest generation what is beyond retention, and count it.

        Args:
            since: (256,) by event code, the earliest time that is retained, microseconds since the epoch.
        """
        about = self.newest(key)
        if about is None or not about.older_than(since):
            return
        old = about.generation
        with self.draft(key) as folder:
            trimmed = replace(about, oldest={}, forgotten=dict(about.forgotten), since=dict(about.since), events=0)
            for number in range(about.runs):
                _rewrite(folder, number, self.run(old, number), self.item_ids(old, number), since, trimmed)
            quarantine = self.root / old / "quarantine.parquet"
            if quarantine.exists():
                shutil.copyfile(quarantine, folder / quarantine.name)
            write_about(folder, trimmed)

    def sweep(self, used: Collection[str], older_s: float = _ABANDONED_S) -> int:
        """Remove what nothing uses any more: parts, replaced generations, drafts that were left. Returns how many.

        Args:
            used: generations that are named by a night that is kept; of their parts the newest stays.
            older_s: what was used since then stays: another night may be at it.
        """
        keys, gone = {name.rpartition(".")[0] for name in used}, 0
        for folder in self.root.iterdir() if self.root.exists() else ():
            key = folder.name.rpartition(".")[0]
            if folder.is_symlink() or not folder.is_dir() or (key in keys and self.generation(key) == folder.name):
                continue
            with contextlib.suppress(OSError):
                place = folder.with_name(f".{folder.name}.gone")
                with self._locked(fcntl.LOCK_EX):  # nobody finds it whole while it is taken away
                    if time.time() - folder.stat().st_mtime <= older_s:
                        continue
                    folder.rename(place)
                shutil.rmtree(place)
                gone += 1
        for link in self.root.iterdir() if self.root.exists() else ():
            if link.is_symlink() and not link.exists():
                link.unlink(missing_ok=True)
        return gone


def write_run(folder: Path, number: int, people: NDArray[np.uint8], items: pa.Array, events: Events) -> None:
    """Write a run.

    Args:
        people: (P, 32) key and seal of each person, by key.
        items: ids that the events' items count, ascending.
        events: by person in settled order; person P: the anonymous ones.
    """
    ends = np.cumsum(np.bincount(events.person, minlength=len(people))[: len(people)])
    keys, seals = (np.ascontiguousarray(part) for part in (people[:, :KEY_BYTES], people[:, KEY_BYTES:]))
    binary = [
        pa.FixedSizeBinaryArray.from_buffers(USER_KEY, len(people), [None, pa.py_buffer(b)]) for b in (keys, seals)
    ]
    _write(folder / f"people-{number}.arrow", pa.record_batch([*binary, pa.array(ends)], schema=_PEOPLE))
    _write(folder / f"items-{number}.arrow", pa.record_batch([items], schema=_ITEMS))
    columns = [pa.array(np.ascontiguousarray(getattr(events, field.name)).view(_as(field))) for field in _ROWS]
    _write(folder / f"rows-{number}.arrow", pa.record_batch(columns, schema=_ROWS))


def _rewrite(folder: Path, number: int, run: Run, items: pa.Array, since: NDArray[np.int64], about: About) -> None:
    """A run without what is past its retention; `about` is told."""
    event, ts = run.column("event"), run.column("ts")
    kept = ts >= since[event]
    about.forget(np.bincount(event[~kept], minlength=256), since)
    sizes = np.diff(np.concatenate([[0], run.ends, [len(event)]]))
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    columns: dict[str, Any] = {"person": owner} | {
        name: run.column(name) for name in Events.__slots__ if name != "person"
    }
    events = Events(**{name: column[kept] for name, column in columns.items()})
    there = np.unique(events.person[events.person < len(run.keys)])
    code_of = np.full(len(sizes), len(there), np.int32)
    code_of[there] = np.arange(len(there))
    used, item = np.unique(events.item, return_inverse=True)
    events = replace(events, person=code_of[events.person], item=item.astype(np.int32))
    people = np.stack([part[there].view(np.uint8).reshape(-1, KEY_BYTES) for part in (run.keys, run.seals)], axis=1)
    write_run(folder, number, people.reshape(-1, 2 * KEY_BYTES), items.take(pa.array(used)), events)
    about.add(events)


def write_about(folder: Path, about: About) -> None:
    """Write what the part says of itself, last."""
    about.bytes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / _ABOUT).write_text(json.dumps({name: getattr(about, name) for name in About.__slots__}))


def _as(kind: pa.Field) -> Any:
    return kind.type.to_pandas_dtype()


def _open_run(folder: Path, number: int) -> Run:
    people, rows = _read(folder / f"people-{number}.arrow"), _read(folder / f"rows-{number}.arrow")
    keys, seals = (_fixed(people.column(name)) for name in ("user_key", "seal"))
    return Run(keys, seals, people.column("end").to_numpy(), rows)


def _fixed(column: pa.Array) -> NDArray[np.bytes_]:
    return np.frombuffer(column.buffers()[1], f"S{KEY_BYTES}", len(column), column.offset * KEY_BYTES)


def _read(path: Path) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0)


def _write(path: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _settle_down(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
