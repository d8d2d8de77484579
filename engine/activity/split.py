"""Ingest, first half: a partition of the log becomes a part, by person and in order, with pseudonyms for ids."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from engine.activity.order import Events, different, latest, order_of_keys, settled_order
from engine.activity.parts import About, Partition, write_about, write_run
from engine.activity.people import People
from engine.activity.rows import REASONS, Checked, Rules, read_rows
from engine.errors import ContractError, FileRefused
from engine.identity import KEY_BYTES

_STRETCH = 2_000_000  # events that are sorted at once: about 100 bytes each
_FLOOD = 10  # times data.events_per_user: what a run keeps of one person, source and event
_STRANGERS = 10_000  # unknown items that a part remembers; with more it is read again when the catalogue changes
QUARANTINE = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])  # line: null for a file


def read_partition(
    partition: Partition,
    filesystem: fs.FileSystem,
    rules: Rules,
    people: People,
    folder: Path | None,
    stretch: int = _STRETCH,
) -> About:
    """Read the files of a partition and leave its part in a folder.

    A file that cannot be read to its end counts as not there: it is quarantined whole, by name.

    Args:
        folder: empty; None: read, check and count, and write nothing.
        stretch: events that are sorted at once.
    """
    began = time.monotonic()
    refused: dict[str, FileRefused] = {}
    while True:
        part, broken = _Draft(About(partition.name), rules, folder, stretch), dict[str, FileRefused]()
        for file in partition.files:
            if file.name in refused:
                part.quarantine(file.name, None, [refused[file.name].why])
                continue
            try:
                for checked in read_rows(filesystem, file.path, rules, people):
                    if not broken:
                        part.take(file.name, checked)
            except FileRefused as error:
                broken[file.name] = error
        if not broken:
            break
        # What was taken of a file before it broke off is among the rest: once all such are known, begin again without.
        refused |= broken
        for path in folder.iterdir() if folder else ():
            path.unlink()
    about = part.finished()
    about.refused = {name: _told(error) for name, error in sorted(refused.items())}
    about.seconds = round(time.monotonic() - began, 3)
    if folder is not None:
        write_about(folder, about)
    return about


def _told(error: FileRefused) -> dict[str, str]:
    told = {"why": error.why, "message": error.message}
    if isinstance(error, ContractError):
        told |= {"column": error.column, "expected": error.expected, "found": error.found}
    return told


@dataclass(slots=True)
class _Draft:
    """A part on its way: what was counted so far, and the events that wait to be sorted."""

    about: About
    rules: Rules
    folder: Path | None
    stretch: int
    counts: Counter[str] = field(default_factory=Counter)
    tally: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    strangers: set[int] = field(default_factory=set)
    quarantined: list[pa.Table] = field(default_factory=list)
    events: list[Events] = field(default_factory=list)
    people: list[NDArray[np.uint8]] = field(default_factory=list)
    known: int = 0  # rows of `people`
    waiting: int = 0

    def take(self, file: str, checked: Checked) -> None:
        about = self.about
        about.rows += checked.rows
        self.counts += checked.counts
        self.tally += checked.tally
        about.near |= checked.near
        about.forget(checked.expired, self.rules.since)
        for source, moment in checked.latest.items():
            about.latest[str(source)] = max(moment, about.latest.get(str(source), moment))
        self.strangers.update(checked.strangers.tolist())
        if checked.ahead is not None:
            about.ahead = min(checked.ahead, checked.ahead if about.ahead is None else about.ahead)
        if len(checked.line):
            about.bad[file] = about.bad.get(file, 0) + len(checked.line)
            self.quarantine(file, checked.line, [REASONS[code] for code in checked.reason.tolist()])
        if self.folder is None:
            return
        carried = checked.carried
        person = np.where(carried.person < 0, -1, carried.person + self.known).astype(np.int32)
        self.events.append(replace(carried, person=person))
        self.people.append(checked.people)
        self.known += len(checked.people)
        self.waiting += len(carried)
        if self.waiting >= self.stretch:
            self.write()

    def quarantine(self, file: str, line: NDArray[np.int64] | None, reasons: list[str]) -> None:
        lines = pa.nulls(len(reasons), pa.int64()) if line is None else pa.array(line)
        columns = [pa.array([file] * len(reasons), pa.string()), lines, pa.array(reasons)]
        self.quarantined.append(pa.table(columns, schema=QUARANTINE))

    def write(self) -> None:
        """Sort what waits into a run."""
        if self.waiting and self.folder is not None:
            self.counts += _write_run(Events.concat(self.events), self.people, self.rules, self.folder, self.about)
        self.events, self.people, self.known, self.waiting = [], [], 0, 0

    def finished(self) -> About:
        self.write()
        if self.quarantined and self.folder is not None:
            pq.write_table(pa.concat_tables(self.quarantined), self.folder / "quarantine.parquet", compression="zstd")
        about = self.about
        about.counts = dict(sorted(self.counts.items()))
        about.tally = [[*key, many] for key, many in sorted(self.tally.items())]
        about.strangers = sorted(self.strangers)
        if len(about.strangers) > _STRANGERS:
            about.strangers, about.catalogue = [], self.rules.catalogue()
        return about


def _write_run(
    events: Events, people: list[NDArray[np.uint8]], rules: Rules, folder: Path, about: About
) -> Counter[str]:
    """Sort and write; returns what was left out on the way."""
    everybody = np.concatenate(people)
    seen = np.zeros(len(everybody) + 1, bool)
    seen[events.person] = True
    rows = np.flatnonzero(seen[:-1])
    order, new = order_of_keys(_keys(everybody[rows]))
    known = everybody[rows[order[new]]]
    code = np.full(len(everybody) + 1, len(known), np.int32)
    code[rows[order]] = np.cumsum(new) - 1
    items, item = np.unique(events.item, return_inverse=True)
    events = replace(events, person=code[events.person], item=item.astype(np.int32))
    before = len(events)
    # Which of two that share a mark counts, a night decides when it knows what it may look at; what is quite alike is one.
    events = different(settled_order(events))
    after = len(events)
    # The night caps what is left after consent and retention; far more than that nobody needs of one person.
    kind = events.source.astype(np.int64) << 8 | events.event
    kept = latest(events, kind, _FLOOD * rules.data.events_per_user) | (events.person == len(known))
    events = events if kept.all() else events.take(kept)
    first = int(np.searchsorted(events.person, len(known)))
    if first < len(events):
        by_mark = first + np.argsort(events.mark[first:])
        events = events.take(np.concatenate([np.arange(first), by_mark]))
    write_run(folder, about.runs, known, rules.items.take(pa.array(items)), events)
    about.runs += 1
    about.add(events)
    return Counter({"-duplicate": before - after, "-over_events_per_user": after - len(events)})


def _keys(people: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(people[:, :KEY_BYTES]).view(f"S{KEY_BYTES}").ravel()
