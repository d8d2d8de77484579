"""Ingest, first half: a partition of the log becomes a part, by person and in order, with pseudonyms for ids."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from engine.activity.order import Events, distinct, latest, order_of_keys, settled_order
from engine.activity.parts import About, Partition, write_about, write_run
from engine.activity.people import People
from engine.activity.rows import REASONS, Checked, Rules, read_rows
from engine.errors import ContractError, FileRefused
from engine.identity import KEY_BYTES

_RUN = 2_000_000  # events that are sorted at once: about 100 bytes each
_FLOOD = 10  # times data.events_per_user: what a run keeps of one person, source and event
_STRANGERS = 10_000  # unknown items that a part remembers; with more it is read again whenever the catalogue changes
QUARANTINE = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])  # line: null for a file


@dataclass(slots=True)
class _Run:
    """Events on their way into a run."""

    events: list[Events] = field(default_factory=list)
    people: list[NDArray[np.uint8]] = field(default_factory=list)
    size: int = 0
    known: int = 0

    def add(self, checked: Checked) -> None:
        carried = checked.carried
        person = np.where(carried.person < 0, -1, carried.person + self.known).astype(np.int32)
        self.events.append(replace(carried, person=person))
        self.people.append(checked.people)
        self.known += len(checked.people)
        self.size += len(carried)


def read_partition(
    partition: Partition,
    filesystem: fs.FileSystem,
    rules: Rules,
    people: People,
    folder: Path | None,
    run: int = _RUN,
    step: Callable[[], None] = lambda: None,
) -> About:
    """Read the files of a partition and leave its part in a folder.

    A file that cannot be read to its end counts as not there: it is quarantined whole, by name.

    Args:
        folder: empty; None: read, check and count, and write nothing.
        run: events of one run.
        step: called after each batch.
    """
    began = time.monotonic()
    refused: dict[str, FileRefused] = {}
    while True:
        try:
            about = _attempt(partition, filesystem, rules, people, folder, run, refused, step)
            break
        except FileRefused as error:  # what was taken of it is among the rest: begin again without it
            refused[_name_of(partition, error.file)] = error
            for path in folder.iterdir() if folder else ():
                path.unlink()
    about.refused = {name: _told(error) for name, error in sorted(refused.items())}
    about.seconds = round(time.monotonic() - began, 3)
    if folder is not None:
        write_about(folder, about)
    return about


def _name_of(partition: Partition, path: str) -> str:
    return next(file.name for file in partition.files if file.path == path)


def _told(error: FileRefused) -> dict[str, str]:
    told = {"why": error.why, "message": error.message}
    if isinstance(error, ContractError):
        told |= {"column": error.column, "expected": error.expected, "found": error.found}
    return told


def _attempt(
    partition: Partition,
    filesystem: fs.FileSystem,
    rules: Rules,
    people: People,
    folder: Path | None,
    run_size: int,
    refused: dict[str, FileRefused],
    step: Callable[[], None],
) -> About:
    about, counts, tally = About(partition.name), Counter[str](), Counter[tuple[int, int, int]]()
    strangers: set[int] = set()
    ahead: list[int] = []
    quarantined: list[pa.Table] = []
    run = _Run()
    for file in partition.files:
        if file.name in refused:
            quarantined.append(_quarantine(file.name, None, [refused[file.name].why]))
            continue
        for checked in read_rows(filesystem, file.path, rules, people):
            about.rows += checked.rows
            counts += checked.counts
            tally += checked.tally
            about.near |= checked.near
            about.forget(checked.expired, rules.since)
            for source, moment in checked.latest.items():
                about.latest[str(source)] = max(moment, about.latest.get(str(source), moment))
            strangers.update(checked.strangers.tolist())
            ahead += [checked.ahead] if checked.ahead is not None else []
            if len(checked.line):
                about.bad[file.name] = about.bad.get(file.name, 0) + len(checked.line)
                quarantined.append(
                    _quarantine(file.name, checked.line, [REASONS[code] for code in checked.reason.tolist()])
                )
            if folder is not None:
                run.add(checked)
                if run.size >= run_size:
                    counts += _write_run(run, rules, folder, about)
                    run = _Run()
            step()
    if run.size:
        counts += _write_run(run, rules, folder, about) if folder is not None else Counter()
    if quarantined and folder is not None:
        pq.write_table(pa.concat_tables(quarantined), folder / "quarantine.parquet", compression="zstd")
    about.counts = dict(sorted(counts.items()))
    about.tally = [[*key, many] for key, many in sorted(tally.items())]
    about.strangers = sorted(strangers) if len(strangers) <= _STRANGERS else [-1]
    about.ahead = min(ahead, default=None)
    return about


def _quarantine(name: str, line: NDArray[np.int64] | None, reasons: list[str]) -> pa.Table:
    lines = pa.nulls(len(reasons), pa.int64()) if line is None else pa.array(line)
    return pa.table([pa.array([name] * len(reasons), pa.string()), lines, pa.array(reasons)], schema=QUARANTINE)


def _write_run(run: _Run, rules: Rules, folder: Path, about: About) -> Counter[str]:
    """Sort and write; returns what was left out on the way."""
    events = Events.concat(run.events)
    everybody = np.concatenate(run.people)
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
    events = distinct(settled_order(events))
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
