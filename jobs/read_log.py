"""The first half of ingest on Ray: each partition of the log that the store of parts does not know yet is read, once."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from engine.activity.columns import DAY
from engine.activity.files import live_files, locate, log_files
from engine.activity.mapping import DataSettings
from engine.activity.parts import About, Partition, PartStore, partitions
from engine.activity.people import People
from engine.activity.report import Reading, summed
from engine.activity.rows import Rules, marks_of
from engine.activity.settle import retained_since
from engine.activity.split import read_partition
from engine.errors import DataError
from engine.identity import UserKeys
from jobs.cluster import Cluster
from jobs.memory import measured
from jobs.settings import Settings
from jobs.stage import fingerprint

# What of conf/data decides on the rows of a part; the rest is for each night to decide.
_READS = ("columns", "constants", "time_unit", "time_zone", "order", "events", "events_per_user")
_TASKS_A_CPU = 8
_LOOKS = 4  # into the store at once


class LogReader:
    """A log, the events that servers took beside it, and the store of their parts, as one night reads them.

    Args:
        digests: SHA-256 of each file of either, by name.
        offered, dropped: item ids of the catalogue, on offer or not; among the former Categories.ids.
        keys: the deployment's; None for a dry run, which writes nothing.
        now: microseconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        digests: dict[str, str],
        offered: pa.Array,
        dropped: pa.Array,
        keys: UserKeys | None,
        now: int,
    ) -> None:
        self.settings = settings
        files = [*log_files(settings.data), *live_files(settings.data)]
        # What came after the log was looked through is left to the next night.
        self.files = [file for file in files if file.name in digests] if keys else files
        self.partitions = partitions(self.files)
        self.keys = keys
        salt = int.from_bytes(keys.rotating.derive_many(["\0marks of events"])[0][:8]) if keys else 0
        items = pa.concat_arrays([offered, dropped]).sort()
        self.rules = Rules(settings.data, items, dropped, tuple(settings.consent.sources), now, salt)
        self.live_rules = replace(self.rules, data=settings.data.plain())
        self.store = PartStore(Path(settings.store.parts))
        secrets = [keys.stable.key_id, keys.rotating.key_id] if keys else []
        told, code = (settings.consent.sources, secrets), _code()
        read_with = [fingerprint(_reading(rules.data), *told, code) for rules in (self.rules, self.live_rules)]
        self.names = {
            part.name: fingerprint(
                part.name, {file.name: digests.get(file.name, "") for file in part.files}, read_with[part.live]
            )[:32]
            for part in self.partitions
        }

    def known(self) -> dict[str, About]:
        """By partition, the parts of which a night of this catalogue and clock would know no more."""
        marks = np.sort(marks_of(self.rules.items, self.rules.salt))
        keys = [self.names[part.name] for part in self.partitions]
        with ThreadPoolExecutor(_LOOKS) as pool:  # a look waits for the disk, or for the network that it lies behind
            abouts = zip(self.partitions, pool.map(self.store.newest, keys), strict=True)
            return {part.name: about for part, about in abouts if about is not None and self._holds(about, marks)}

    def _holds(self, about: About, marks: NDArray[np.uint64]) -> bool:
        if about.refused or (about.ahead is not None and about.ahead <= self.rules.newest):
            return False  # what looked like a broken file may have been the network
        if about.catalogue:
            return about.catalogue == self.rules.catalogue()
        if not about.strangers or not len(marks):
            return True
        strangers = np.array(about.strangers, np.uint64)
        place = np.minimum(np.searchsorted(marks, strangers), len(marks) - 1)
        return not bool((marks[place] == strangers).any())

    def read(self, cluster: Cluster, left: list[Partition], since: NDArray[np.int64] | None = None) -> list[About]:
        """Read partitions, a task a few of them; each is kept as soon as it is read.

        Args:
            since: (256,) by event code, the earliest time that is to be kept; None: all is.
        """
        if not left:
            return []
        tasks = min(len(left), _TASKS_A_CPU * cluster.cpus)
        asked = [_Asked(part, self.names[part.name], self.store.generation(self.names[part.name])) for part in left]
        store = self.store if self.keys else None
        rules = [replace(each, since=since) for each in (self.rules, self.live_rules)]
        shared = cluster.share((rules, self.keys, store))
        groups = [asked[at::tasks] for at in range(tasks)]
        return [about for group in cluster.each(_read, groups, shared, label="read log") for about in group]

    def surely_past(self) -> NDArray[np.int64] | None:
        """Where retention ends at the least: reckoned by the night's time if it is set, else by the last day but one of
        the log. It spares sorting what would be thrown away; a night that turns out to be earlier reads again.
        """
        data = self.settings.data
        asked = data.as_of_microseconds()
        if asked is None:
            days = sorted({day for part in self.partitions if (day := part.day) is not None})
            if len(days) < 2 or not data.retention_days:
                return None
            asked = min(int(np.datetime64(days[-2], "us").astype(np.int64)), self.rules.now)
        return retained_since(data, asked)

    def forget(self, cluster: Cluster, abouts: list[About], since: NDArray[np.int64]) -> None:
        """Remove from the store what is past its retention by a day or more."""
        # By the day: at a finer step the same parts would be written anew night after night.
        day_ago = np.maximum(since, np.iinfo(np.int64).min + DAY) - DAY
        late = [self.names[about.name] for about in abouts if about.older_than(day_ago)]
        tasks = min(len(late), _TASKS_A_CPU * cluster.cpus)
        groups = [late[at::tasks] for at in range(tasks)]
        cluster.each(_forget, groups, cluster.share((self.store, since)), label="forget")

    def summed(self, abouts: list[About]) -> Reading:
        """The log as a whole."""
        return summed(abouts, len(self.files), self.rules.sources)

    def keep_quarantine(self, abouts: list[About], folder: Path) -> None:
        """Copy what was refused beside the run."""
        shutil.rmtree(folder, ignore_errors=True)
        for number, about in enumerate(abouts):
            kept = self.store.root / about.generation / "quarantine.parquet"
            if kept.exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(kept, folder / f"part-{number:05d}.parquet")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A partition to read, its key in the store, and the generation that will not do, or ''."""

    partition: Partition
    key: str
    outdated: str


def _read(group: list[_Asked], shared: tuple[list[Rules], UserKeys | None, PartStore | None]) -> list[About]:
    by_kind, keys, store = shared  # of the log, of live events
    people, found = People(keys), []
    filesystems = {live: locate(by_kind[live].data.path)[0] for live in {asked.partition.live for asked in group}}
    for asked in group:
        live = asked.partition.live
        with measured() as memory:
            about = _part(asked, filesystems[live], by_kind[live], people, store)
        about.peak = memory.peak
        found.append(about)
    return found


def _part(asked: _Asked, filesystem: fs.FileSystem, rules: Rules, people: People, store: PartStore | None) -> About:
    if store is None:
        return read_partition(asked.partition, filesystem, rules, people, None)
    there = store.newest(asked.key)
    if there is not None and there.generation != asked.outdated:
        return there  # by a worker that was lost before it came to the end of its group
    with store.draft(asked.key) as folder:
        read_partition(asked.partition, filesystem, rules, people, folder)
    made = store.newest(asked.key)
    if made is None:
        raise DataError(
            f"The part of {asked.partition.name} vanished from {store.root}.", "Let no other hand touch it."
        )
    return made


def _forget(keys: list[str], shared: tuple[PartStore, NDArray[np.int64]]) -> None:
    store, since = shared
    for key in keys:
        store.forget(key, since)


def _reading(data: DataSettings) -> dict[str, Any]:
    """What a part depends on of the settings."""
    config = {name: value for name, value in asdict(data).items() if name in _READS}
    return config | {"coarse": data.coarsen.time, "impressions": data.weights.get("impression", 0.0) > 0}


def _code() -> str:
    """Names what reads: our own code and the libraries whose hashes and types a part rests upon."""
    engine = Path(__file__).resolve().parents[1] / "engine"
    sources = [*sorted((engine / "activity").glob("*.py")), engine / "identity.py", engine / "schema.py"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    return fingerprint(digests, {name: version(name) for name in ("polars", "pyarrow", "numpy")})
