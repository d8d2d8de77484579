"""One night: its settings, its folder, and what every stage asks for."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.activity.files import Digests, LogFile, live_files, locate, log_files
from engine.consent import Ledger, Profile, Vocabulary, parse_profiles
from engine.errors import SettingsError
from engine.identity import UserKeys
from jobs import record
from jobs.cluster import Cluster, connected
from jobs.code import libraries, our_code, plugins
from jobs.lock import run_lock
from jobs.progress import say
from jobs.runs import named
from jobs.settings import Settings
from jobs.stage import fingerprint, finished

HOLDOUT, FULL = "holdout", "full"
PARTS = (HOLDOUT, FULL)
# What changes where the work is done, but not its outcome.
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,127}")
_OUTSIDE_THE_RUN = ("out", "run", "store", "cluster", "force", "dry_run", "gates", "file", "links", "shop")


@dataclass
class Night:
    """A run: what it was asked, where it works, and when it began."""

    settings: Settings
    folder: Path
    inputs: dict[str, str]  # digest by file, and the ledger's state
    ledger_sequence: int
    began: float
    plugins: str = ""  # version and digest of each plugin of a team that the settings name

    def after(self, *stages: str) -> dict[str, str]:
        """Inputs of a stage: what it builds on, and the code that works.

        A team's plugins count for each of these stages, whichever uses them: their files may be shared, and a stage that is
        done again for nothing costs less than one that is wrongly believed. Ingest knows none.
        """
        works = {name: self.inputs[name] for name in ("code", "libraries")} | {"plugins": self.plugins}
        return {name: finished(self.folder, name).fingerprint for name in stages} | works

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The consent vocabulary."""
        return self.settings.consent.vocabulary()

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """The stored profiles, the full one first."""
        return parse_profiles(self.settings.consent.profiles, self.vocabulary)

    @cached_property
    def keys(self) -> UserKeys:
        """The deployment's user keys."""
        return UserKeys.load(self.settings.store.keys)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that the outcome depends on; purposes count by the vocabulary's version, which is among the inputs."""
        told = {name: value for name, value in asdict(self.settings).items() if name not in _OUTSIDE_THE_RUN}
        # Where the servers' events lie says nothing: what lies there is among the inputs.
        data = {name: value for name, value in told["data"].items() if name != "live"}
        return told | {"data": data, "consent": {name: told["consent"][name] for name in ("sources", "profiles")}}

    def consent(self) -> tuple[pa.Table, pa.Table]:
        """schema.STANDINGS and schema.LINKS at the run's ledger sequence."""
        with opened_ledger(self.settings) as (ledger, _):
            standings, sequence = ledger.standings()  # a replay up to a sequence takes four times as long
            if sequence != self.ledger_sequence:
                standings, _ = ledger.standings(self.ledger_sequence)
            return standings, ledger.links.at(self.ledger_sequence)


@contextlib.contextmanager
def opened_ledger(settings: Settings) -> Iterator[tuple[Ledger, UserKeys]]:
    """The consent ledger and the keys of its people; keys are made for a new ledger alone, where the settings say so.

    Raises:
        LedgerUnavailable: it cannot be opened, or belongs to another stable key. SettingsError: a key is missing.
    """
    folder = settings.store.ledger.removeprefix("sqlite:///").rpartition("/")[0]
    if settings.store.ledger.startswith("sqlite:///") and folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Ledger.open(settings.store.ledger, settings.consent.vocabulary())) as ledger:
        keys = UserKeys.load(settings.store.keys, create=settings.store.make_keys and ledger.sequence() == 0)
        ledger.bind(keys.stable.key_id)
        yield ledger, keys


@contextlib.contextmanager
def night(settings: Settings, begins: bool = True, looks: bool = False) -> Iterator[tuple[Night, Cluster]]:
    """Open the run that these settings and this input name, hold its lock, and connect to Ray.

    Args:
        begins: whether a run may begin here; steps after the first want one that is there.
        looks: whether the caller knows a dry run, and changes nothing in it.

    Raises:
        SettingsError: a setting makes no sense. DataError: there is no input. RunLocked: another process works on it.
    """
    began = time.monotonic()
    settings.data.check()
    if settings.dry_run and not looks:
        raise SettingsError("Only jobs.ingest and jobs.publish know dry_run.", "Run one of them, or leave it out.")
    if settings.run and not _RUN.fullmatch(settings.run):
        raise SettingsError(
            f"run is '{settings.run}'.", "Use letters, digits and . _ = - only, a letter or digit first."
        )
    if settings.store.keep < 0:
        raise SettingsError(f"store.keep is {settings.store.keep}.", "Keep 0 or more, beside what serves.")
    if settings.buckets < 0 or settings.neighbours < 1:
        raise SettingsError("buckets must be 0 or more, and neighbours at least 1.", "Correct the command.")
    if not (settings.popularity_days > 0 and settings.evaluate.holdout_days > 0):
        raise SettingsError("popularity_days and evaluate.holdout_days must be above 0.", "Correct the command.")
    out = Path(settings.out).resolve()
    (out / "runs").mkdir(parents=True, exist_ok=True)
    with opened_ledger(settings) as (ledger, keys):
        sequence, version = ledger.sequence(), ledger.vocabulary.version
    files = digests(settings)
    inputs = files | {
        "ledger": str(sequence),
        "keys": f"{keys.stable.key_id} {keys.rotating.key_id}",
        "vocabulary": version,
        "code": our_code(),
        "libraries": libraries(),
    }
    made = Night(settings, out, inputs, sequence, began, plugins(settings))
    made.folder = out / "runs" / (settings.run or f"night-{fingerprint(inputs, made.config)[:12]}")
    if not begins and settings.run:
        named(out, settings.run, whole=True)  # which tells a name that was mistyped
    with run_lock(made.folder), connected(settings.cluster) as cluster:
        record.keep(made.folder, settings, inputs | {"plugins": made.plugins})
        say(f"run {made.folder.name}: {len(files)} input files, ledger at {sequence}")
        yield made, cluster


def iso(microseconds: int) -> str:
    """A time as people read it, UTC."""
    return moment(microseconds).isoformat()


def moment(microseconds: int) -> dt.datetime:
    """A time with its zone."""
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=microseconds)


def table(path: Path) -> pa.Table:
    """An Arrow file of a stage, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_table(path: Path, rows: pa.Table) -> Path:
    """Write an Arrow file of a stage, uncompressed, so that it can be mapped.

    Whole or not at all: a task that was taken for lost may be writing the same one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(waiting), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    waiting.replace(path)
    return path


def digests(settings: Settings) -> dict[str, str]:
    """SHA-256 of the catalogue and of each file of the log and below data.live, by name; a file that has not changed is not
    read again.
    """
    data = settings.data
    filesystem, root = locate(data.path)
    about = filesystem.get_file_info(f"{root}/{data.catalogue}")
    catalogue = LogFile(about.path, data.catalogue, about.size or 0, about.mtime_ns or 0)
    known = Digests(Path(settings.store.parts) / "digests.json")
    of_log, live = known.of(filesystem, [*log_files(data), catalogue]), live_files(data)
    return of_log | (known.of(locate(data.live)[0], live) if live else {})
