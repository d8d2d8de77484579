"""What one server process holds: the snapshot that it serves, the ledger, the keys and the policies, and what ails it.

A watcher looks at the pointer and at the ledger every second. A new snapshot is opened beside the old one and takes its
place; the old one is closed when its last request ends. One that is refused leaves the old one in place.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy import make_url

from engine.consent.ledger import Ledger
from engine.consent.profiles import Profile, parse_profiles
from engine.consent.vocabulary import Vocabulary
from engine.errors import BodegaError, LedgerUnavailable, NoSnapshot, SnapshotError, UnknownThing
from engine.identity import UserKeys
from engine.policy import Chain, load_policies
from engine.serving.settings import ServeSettings
from engine.snapshot import Registry, Snapshot

_log = structlog.get_logger("bodega.replica")


@dataclass(frozen=True, slots=True)
class Served:
    """One snapshot in service, with the keys and profiles that belong to it."""

    snapshot: Snapshot
    keys: UserKeys
    profiles: tuple[Profile, ...]

    @property
    def name(self) -> str:
        """The snapshot's id."""
        return self.snapshot.manifest.snapshot_id


@dataclass(frozen=True, slots=True)
class _OpenLedger:
    ledger: Ledger
    keys: UserKeys
    file: tuple[int, int]  # device and inode when it was opened


class Replica:
    """Shared by all requests of a process. Making it reads settings and policies; `look` finds everything else.

    Raises:
        ConsentError, PolicyError: the settings of consent or of a policy are wrong.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.vocabulary = Vocabulary(sources=tuple(settings.consent.sources))
        parse_profiles(settings.consent.profiles, self.vocabulary)
        self.policies: dict[str, Chain] = load_policies(settings.policy)
        self.registry = Registry(settings.snapshots)
        self.started_at = datetime.now(UTC)
        self._lock = threading.Lock()
        self._served: Served | None = None
        self._in_use: dict[int, tuple[Served, int]] = {}  # by id(): requests under way on each
        self._ledger: _OpenLedger | None = None
        self._highest = 0  # sequence of the ledger that this process has seen
        self._ledger_heard = time.monotonic()
        self._ledger_path = Path(make_url(settings.ledger).database or "")
        self._problems: dict[str, BodegaError] = {}
        self._refused: tuple[str, float] | None = None  # a snapshot's id, and when it was refused
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether lists can be served: a snapshot is open, and the ledger was heard at least once."""
        return self._served is not None and self._ledger is not None

    @property
    def ledger_ready(self) -> bool:
        """Whether consent can be read and recorded."""
        return self._ledger is not None and "ledger_unavailable" not in self._problems

    @property
    def ledger_silence(self) -> float:
        """Seconds since the ledger last answered the watcher."""
        return time.monotonic() - self._ledger_heard

    def problems(self) -> list[tuple[str, BodegaError]]:
        """What ails this process now, as stable code and error, sorted by code."""
        return sorted(self._problems.items(), key=lambda problem: problem[0])

    def consent(self) -> tuple[Ledger, UserKeys]:
        """The ledger, and the keys that name people in it.

        Raises:
            LedgerUnavailable: it is not open, or its file is no longer the one that was opened.
        """
        held = self._ledger
        if held is None:
            raise LedgerUnavailable("The consent ledger is not open.", "See AdminService.GetStatus for the cause.")
        if _identity(self._ledger_path) != held.file:
            # An open SQLite file outlives its name: reading on would serve grants that were withdrawn elsewhere.
            raise LedgerUnavailable(f"{self._ledger_path} is gone or was replaced.", "Put it back; it is opened again.")
        return held.ledger, held.keys

    def chain(self, surface: str, field: str) -> Chain:
        """The policy of a surface; '' is the default one.

        Args:
            field: of the request, for the error.

        Raises:
            UnknownThing: there is no such surface; the remedy has the nearest one.
        """
        name = surface or self.settings.default_surface
        try:
            return self.policies[name]
        except KeyError:
            near = difflib.get_close_matches(name, self.policies, 1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            known = f"Surfaces: {', '.join(self.policies)}."
            raise UnknownThing(f"There is no surface '{name}'.", hint + known, field) from None

    @property
    def served(self) -> Served | None:
        """What is served now; hold it with `lease` to read from it."""
        return self._served

    @contextmanager
    def lease(self) -> Iterator[Served]:
        """The snapshot in service, kept open for the block whatever is published meanwhile.

        Raises:
            NoSnapshot: there is none yet.
        """
        with self._lock:
            served = self._served
            if served is None:
                raise NoSnapshot("No snapshot is served yet.", "Run `python -m jobs.nightly` to publish one.")
            self._in_use[id(served)] = (served, self._in_use.get(id(served), (served, 0))[1] + 1)
        try:
            yield served
        finally:
            with self._lock:
                left = self._in_use.pop(id(served))[1] - 1
                if left:
                    self._in_use[id(served)] = (served, left)
                last = not left and served is not self._served
            if last:
                served.snapshot.close()

    def look(self) -> None:
        """Take up what changed on disk since the last look. Never raises: what went wrong is in `problems`."""
        self._attempt("ledger_unavailable", self._look_at_ledger)
        self._attempt("snapshot_refused", self._look_at_pointer)

    def watch(self, changed: Callable[[], None]) -> None:
        """Look every `watch_seconds` in a thread of its own, and call `changed` after each look."""

        def run() -> None:
            while not self._stopping.wait(self.settings.watch_seconds):
                self.look()
                changed()

        self._watcher = threading.Thread(target=run, name="bodega-watcher", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Stop watching and let go of everything."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        with self._lock:
            served, self._served = self._served, None
        if served is not None:
            served.snapshot.close()
        if self._ledger is not None:
            self._ledger.ledger.close()
            self._ledger = None

    def _look_at_ledger(self) -> None:
        held = self._ledger
        found = _identity(self._ledger_path)
        if held is not None and found == held.file:
            self._check_forward(held.ledger)
        else:
            if held is not None and found is None:
                # A new, empty ledger in its place would hide the loss from the operator.
                raise LedgerUnavailable(f"{self._ledger_path} is gone.", "Put it back, or restart to begin a new one.")
            self._ledger = self._open_ledger()
            if held is not None:
                held.ledger.close()
        self._ledger_heard = time.monotonic()

    def saw(self, sequence: int) -> None:
        """Remember how far the ledger has come: it may not be found further back."""
        with self._lock:
            self._highest = max(self._highest, sequence)

    def _check_forward(self, ledger: Ledger) -> None:
        """A ledger that went back, as one from a backup does, has lost withdrawals that were acknowledged."""
        sequence = ledger.sequence()
        night = self._served.snapshot.manifest.lineage.ledger_sequence if self._served is not None else 0
        if sequence < max(self._highest, night):
            raise LedgerUnavailable(
                f"The consent ledger stands at {sequence}, it was at {max(self._highest, night)} before.",
                "Restore the newer ledger: withdrawals are missing from this one.",
            )
        self.saw(sequence)

    def _open_ledger(self) -> _OpenLedger:
        if not Path(self.settings.out).is_dir():
            raise LedgerUnavailable(
                f"The folder {self.settings.out} does not exist.", "Run the night into it, or mend out=."
            )
        if _identity(self._ledger_path) is not None and not self._ledger_path.stat().st_size:
            raise LedgerUnavailable(f"{self._ledger_path} is empty.", "Restore it, or remove it to begin a new one.")
        ledger = Ledger.open(self.settings.ledger, self.vocabulary)
        try:
            # Keys are made for a new ledger alone: others would not find the people of an old one.
            keys = UserKeys.load(self.settings.keys, create=ledger.sequence() == 0)
            ledger.bind(keys.stable.key_id)
            self._check_forward(ledger)
        except BodegaError:
            ledger.close()
            raise
        return _OpenLedger(ledger, keys, _identity(self._ledger_path) or (0, 0))

    def _look_at_pointer(self) -> None:
        try:
            name = self.registry.current()
        except NoSnapshot as error:
            if self._served is None:
                self._problems["no_snapshot"] = error
            return
        if self._served is not None and self._served.name == name:
            self._refused = None
            return
        if self._refused is not None and self._refused[0] == name and self._waits(self._refused[1]):
            raise self._problems["snapshot_refused"]
        try:
            fresh = self._open(name)
        except BodegaError:
            self._refused = (name, time.monotonic())
            raise
        with self._lock:
            old, self._served = self._served, fresh
            idle = old is not None and id(old) not in self._in_use
        self._problems.pop("no_snapshot", None)
        self._refused = None
        _log.info("snapshot_served", snapshot=fresh.name, before=old.name if old else None)
        if old is not None and idle:
            old.snapshot.close()

    def _waits(self, since: float) -> bool:
        return time.monotonic() - since < self.settings.retry_seconds

    def _open(self, name: str) -> Served:
        snapshot = self.registry.open(name, verify=self.settings.verify)
        try:
            made_with = Vocabulary.from_json(snapshot.vocabulary)
            if made_with.version != self.vocabulary.version:
                raise SnapshotError(
                    f"Snapshot {name} was made with the consent vocabulary {made_with.version} (sources "
                    f"{', '.join(made_with.sources)}), the ledger is read with {self.vocabulary.version} (sources "
                    f"{', '.join(self.vocabulary.sources)}).",
                    "Run the night with this server's conf/consent, or start the server with the snapshot's.",
                )
            keys = UserKeys.load(self.settings.keys)
            written_with = snapshot.manifest.lineage.key_id
            if written_with and written_with != keys.rotating.key_id:
                raise SnapshotError(
                    f"Snapshot {name} names people by the rotating key {written_with}, {self.settings.keys} holds "
                    f"{keys.rotating.key_id}.",
                    "Put the key of that night there, or run the night again.",
                )
            profiles = tuple(Profile(str(each["name"]), int(each["groups"])) for each in snapshot.profiles)
        except BaseException:
            snapshot.close()
            raise
        return Served(snapshot, keys, profiles)

    def _attempt(self, code: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as failure:  # noqa: BLE001 - whatever a disk may hold, the watcher goes on and what serves serves on
            error = failure if isinstance(failure, BodegaError) else _unforeseen(failure)
            if str(self._problems.get(code)) != str(error):
                _log.warning(code, error=error.message, remedy=error.remedy, reason=error.reason)
            self._problems[code] = error
        else:
            if self._problems.pop(code, None) is not None:
                _log.info(f"{code}_over")


def _unforeseen(failure: Exception) -> BodegaError:
    return BodegaError(f"{type(failure).__name__}: {failure}", "Report it with the log; the last good state serves on.")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
