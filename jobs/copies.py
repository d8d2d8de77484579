"""Where a deployment keeps what it has of people, as it lies there: parts of the log, runs, snapshots, what replicas keep.

Reads alone: a part that is looked at does not count as used, and nothing is fetched, raised or removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.activity.columns import DAY, event_name
from engine.activity.parts import About
from engine.consent import Vocabulary
from engine.errors import ConsentError
from engine.schema import EVENTS
from engine.snapshot.pointer import ID
from jobs import record
from jobs.night import moment, table
from jobs.runs import STAGES
from jobs.stage import read_json

KEY, _PLACE = "user_key", "owner"
# Copies that exist or may exist, and that nothing here can look into.
BEYOND = (
    ("the log itself", "it lies where data.path says, with user ids; Bodega reads it and removes nothing there"),
    ("backups", "of the ledger, the log, runs and snapshots: not known here"),
    (
        "other machines",
        "caches of replicas elsewhere, replicas of a database, old versions in an object store: not known here",
    ),
)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a stage of a run holds of people. files: those with a row or more a person; bytes: of the stage."""

    run: str
    stage: str
    folder: Path
    files: list[Path]
    by_place: list[Path]
    bytes: int
    facts: dict[str, Any]
    named: bool  # somebody gave it a name: it stays until somebody removes it
    retention: dict[str, float]  # days by event, as the run was asked


def parts_of(store: Path) -> Iterator[tuple[str, About]]:
    """Every generation of every part that lies there, by name, replaced ones too.

    What cannot be read of a part is passed over by nobody: its name comes with an About without a generation.
    """
    known = {each.name for each in fields(About)}
    for folder in sorted(store.iterdir()) if store.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir():
            continue
        said = read_json(folder / "part.json")
        try:
            about = About(**{name: value for name, value in (said or {}).items() if name in known})
        except TypeError:
            about = About("")
        about.generation = folder.name if said and about.name else ""
        yield folder.name, about


def stages_of(runs: Path) -> Iterator[RunFiles]:
    """Each stage of each run, whole or not, with the files in which people have rows."""
    for run in sorted(runs.iterdir()) if runs.is_dir() else ():
        if not run.is_dir():
            continue
        asked = (record.kept(run) or {}).get("settings", {}).get("data", {})
        for name in STAGES:
            folder = run / name
            if not folder.is_dir():
                continue
            everything = [path for path in folder.rglob("*") if path.is_file()]
            columns = {path: schema_of(path).names for path in sorted(everything) if path.suffix == ".arrow"}
            held, placed = ([path for path, names in columns.items() if of in names] for of in (KEY, _PLACE))
            facts = (read_json(folder / "_stage.json") or {}).get("facts", {})
            size = sum(path.stat().st_size for path in everything)
            named = not run.name.startswith("night-")
            yield RunFiles(
                run.name, name, folder, held, placed, size, facts, named, dict(asked.get("retention_days") or {})
            )


def retention_of(runs: Path, otherwise: dict[str, float]) -> dict[str, float]:
    """Days by event that the newest run here was asked to retain; what the settings say where there is none.

    The settings of a look need not be those of the nights.
    """
    kept = [found for run in (runs.iterdir() if runs.is_dir() else ()) if (found := record.kept(run))]
    newest = max(kept, key=lambda each: str(each.get("last", "")), default=None)
    return dict(newest["settings"].get("data", {}).get("retention_days") or {}) if newest else otherwise


def schema_of(path: Path) -> pa.Schema:
    """The columns of an Arrow file; none where it is not whole."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).schema
    except (OSError, pa.ArrowInvalid):
        return pa.schema([])


def people_in(files: Sequence[Path]) -> int:
    """How many people have a row in any of the files."""
    found = pa.array([], pa.binary(16))
    for path in files:
        keys = table(path)[KEY].unique()
        found = pa.chunked_array([found, keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys]).unique()
    return len(found)


def places_in(files: Sequence[Path]) -> int:
    """How many people have a row by their place, over files of which several may be of one bucket."""
    most: dict[str, int] = {}
    for path in files:
        bucket = path.stem.rpartition("bucket-")[2]
        most[bucket] = max(most.get(bucket, 0), len(table(path)[_PLACE].unique()))
    return sum(most.values())


def oldest_by_event(abouts: Sequence[About]) -> dict[str, int]:
    """By event, the time of the oldest row of parts, microseconds since the epoch."""
    least: dict[str, int] = {}
    for about in abouts:
        for code, when in about.oldest.items():
            name = event_name(int(code))
            least[name] = min(when, least.get(name, when))
    return least


def until(event: str, oldest: int, retention: dict[str, float]) -> str:
    """The day up to which the oldest row of an event may be kept, as the settings retain it."""
    days = retention.get(event.removeprefix("undo "))
    return f"{moment(oldest + int(days * DAY)):%Y-%m-%d}" if days is not None else "no end is set"


def basis_words(vocabulary: Vocabulary, mask: int) -> list[str]:
    """The grants that a basis relies on, in words: profile:web (purchase), sensitive:web."""
    words = [
        f"{purpose}:{source}" + (f" ({event})" if event else "")
        for (purpose, source, event), bit in vocabulary.bits().items()
        if mask >> bit & 1
    ]
    return words or ["no grant"]


def vocabulary_of(stored: Any) -> Vocabulary | None:
    """The vocabulary of a manifest; None where it holds none that can be read."""
    try:
        return Vocabulary.from_json(stored)
    except ConsentError:
        return None


def by_event(event: NDArray[np.uint8], ts: NDArray[np.int64]) -> dict[str, tuple[int, int]]:
    """By event, how many rows and the oldest of them."""
    found = {}
    for code in np.unique(event).tolist():
        times = ts[event == code]
        found[event_name(int(code)) if code >= len(EVENTS) else EVENTS[code]] = (len(times), int(times.min()))
    return found


def rows_of(path: Path, key: bytes) -> pa.Table:
    """One person's rows of an Arrow file."""
    whole = table(path)
    return whole.filter(pc.equal(whole[KEY], pa.scalar(key, pa.binary(16))))


def kept_people(cache: Path) -> list[Path]:
    """Files in which replicas of this machine keep what everybody allows."""
    return sorted((cache / "consent").glob("*.people"))


def fetched(cache: Path) -> list[Path]:
    """Snapshots that were fetched from an object store, or are staged on their way to one."""
    return (
        sorted(path for path in cache.rglob("*") if path.is_dir() and ID.fullmatch(path.name)) if cache.is_dir() else []
    )


def size_of(*paths: Path) -> int:
    """Bytes of files and of what lies in folders."""
    found = 0
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [path]
        found += sum(each.stat().st_size for each in inside if each.is_file())
    return found


def plain_json(told: Any) -> str:
    """As --json prints it."""
    return json.dumps(told, indent=2, ensure_ascii=False)
