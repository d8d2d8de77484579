"""What one server process holds: the snapshot that it serves, the ledger, the keys and the policies, and what ails it.

Two watchers look at the ledger and at the pointer every second, each in a thread of its own: fetching a snapshot may take
minutes, and consent must not wait for it.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy import make_url

from engine.consent.ledger import Ledger
from engine.consent.profiles import parse_profiles
from engine.consent.vocabulary import Vocabulary
from engine.errors import BodegaError, LedgerUnavailable, UnknownThing
from engine.identity import UserKeys
from engine.policy import Chain, load_policies
from engine.serving.ledger_mark import LedgerMark
from engine.serving.settings import ServeSettings
from engine.serving.snapshots import Served, Snapshots, unforeseen
from engine.snapshot import Lineage

_log = structlog.get_logger("bodega.replica")
_LEDGER_CODES = ("ledger_unavailable",)
_SNAPSHOT_CODES = ("no_snapshot", "snapshot_refused", "snapshot_gone", "store_unavailable")
PROBLEMS = (*_LEDGER_CODES, *_SNAPSHOT_CODES, "record_damaged")  # whatever may ail a process
_JOIN_SECONDS = 5.0
_RESTORE = (
    "Restore the newer ledger: withdrawals are missing from this one. If they are to be lost, remove ledger-seen.json "
    "from the cache and publish a night on this ledger."
)
__all__ = ["PROBLEMS", "Replica", "Served"]


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
        self.snapshots = Snapshots(settings, self.vocabulary)
        self.started_at = datetime.now(UTC)
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # at the ledger
        self._ledger: _OpenLedger | None = None
        self._highest = 0  # sequence of the ledger that this process has seen
        self._seen = (0, "")  # a sequence and the head of the audit log at it
        self._mark = LedgerMark(Path(settings.cache or settings.out) / "ledger-seen.json")
        self._ledger_heard = time.monotonic()
        self._ledger_path = Path(make_url(settings.ledger).database or "")
        self._problems: Mapping[str, BodegaError] = {}  # replaced whole, never changed: many threads read it
        self._damaged: tuple[Served, BodegaError] | None = None  # in which somebody's record cannot be read
        self._stopping = threading.Event()
        self._watchers: list[threading.Thread] = []
        self._looked = (threading.Event(), threading.Event())  # at ledger and snapshots, for the first time

    @property
    def ready(self) -> bool:
        """Whether lists can be served: a snapshot is open, and the ledger was heard at least once."""
        return self.served is not None and self._ledger is not None

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
        found, damaged, served = dict(self._problems), self._damaged, self.served
        if damaged is not None and damaged[0] is served:
            found["record_damaged"] = damaged[1]
        return sorted(found.items(), key=lambda problem: problem[0])

    def damaged(self, served: Served, error: BodegaError) -> None:
        """Tell operators, once a snapshot, that the record of somebody in it cannot be read."""
        with self._lock:
            told = served is not self.served or (self._damaged is not None and self._damaged[0] is served)
            if not told:
                self._damaged = (served, error)
        if not told:
            self.snapshots.doubt(served)
            _log.warning("record_damaged", snapshot=served.name, error=error.message, remedy=error.remedy)

    def consent(self) -> tuple[Ledger, UserKeys]:
        """The ledger, and the keys that name people in it.

        Raises:
            LedgerUnavailable: it is not open, its file is no longer the one that was opened, or the last look at it found
                a fault, such as that it went back.
        """
        held = self._ledger
        if held is None:
            raise LedgerUnavailable("The consent ledger is not open.", "See AdminService.GetStatus for the cause.")
        found = self._problems.get("ledger_unavailable")
        if found is not None:
            raise LedgerUnavailable(found.message, found.remedy)
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
        return self.snapshots.served

    def lease(self) -> AbstractContextManager[Served]:
        """The snapshot in service, kept open for the block whatever is published meanwhile.

        Raises:
            NoSnapshot: there is none yet.
        """
        return self.snapshots.lease()

    def promote(self, name: str) -> Served:
        """Serve a snapshot that the registry has; in effect here at once.

        Raises:
            SnapshotError: as `Snapshots.promote`.
        """
        served = self.snapshots.promote(name)
        self._look_for_snapshots()
        return served

    def rollback(self) -> Served:
        """Serve what was served before; in effect here at once.

        Raises:
            SnapshotError: as `Snapshots.rollback`.
        """
        served = self.snapshots.rollback()
        self._look_for_snapshots()
        return served

    def look(self) -> None:
        """Take up what changed since the last look. Never raises: what went wrong is in `problems`."""
        self._look_for_ledger()
        self._look_for_snapshots()

    def watch(self, changed: Callable[[], None], patience: float) -> None:
        """Look at once and then every `watch_seconds`, in threads of their own, and call `changed` after each look.

        Args:
            patience: seconds to wait for the first looks; a snapshot that is still being fetched then is taken up later.
        """
        looks = (self._look_for_ledger, self._look_for_snapshots)
        for look, done in zip(looks, self._looked, strict=True):

            def run(look: Callable[[], None] = look, done: threading.Event = done) -> None:
                while not self._stopping.is_set():
                    look()
                    changed()
                    done.set()
                    self._stopping.wait(self.settings.watch_seconds)

            name = look.__name__.replace("_look_for_", "bodega-")
            self._watchers.append(threading.Thread(target=run, name=name, daemon=True))
        for watcher in self._watchers:
            watcher.start()
        until = time.monotonic() + patience
        for done in self._looked:
            done.wait(max(0.0, until - time.monotonic()))

    def wait_no_longer(self) -> None:
        """Have `watch` return, whatever was not looked at yet."""
        for done in self._looked:
            done.set()

    def close(self) -> None:
        """Stop watching and let go of everything."""
        self._stopping.set()
        for watcher in self._watchers:
            watcher.join(
                _JOIN_SECONDS
            )  # one that fetches may take longer, and holds nothing that a process needs to end
        self.snapshots.close()
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
                raise LedgerUnavailable(f"{self._ledger_path} is gone.", "Put it back.")
            self._ledger = self._open_ledger()
            if held is not None:
                held.ledger.close()
        self._ledger_heard = time.monotonic()

    def saw(self, sequence: int) -> None:
        """Remember how far the ledger has come: it may not be found further back, not by the next process either."""
        with self._lock:
            self._highest = max(self._highest, sequence)
        self._mark.keep(sequence, "")

    def _check_forward(self, ledger: Ledger) -> None:
        """A ledger that went back, as one from a backup does, has lost withdrawals that were acknowledged.

        It may have come as far again since, by other changes: its audit log then tells of another past.
        """
        sequence = ledger.sequence()
        served = self.served
        lineage = served.snapshot.manifest.lineage if served is not None else Lineage(run="")
        night = (lineage.ledger_sequence, lineage.audit_head)
        highest = max(self._highest, night[0])
        if sequence < highest:
            raise LedgerUnavailable(f"The consent ledger stands at {sequence}, it was at {highest} before.", _RESTORE)
        for at, head in (self._seen, night):
            if head and ledger.audit_head(at) != head:
                raise LedgerUnavailable(f"The consent ledger tells of another past than it did at {at}.", _RESTORE)
        self._seen = (sequence, ledger.audit_head(sequence))
        with self._lock:
            self._highest = max(self._highest, sequence)
        self._mark.keep(*self._seen)

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
            if not self._highest:
                self._seen = self._mark.read()
                self._highest = self._seen[0]
            self._check_forward(ledger)
        except BodegaError:
            ledger.close()
            raise
        return _OpenLedger(ledger, keys, _identity(self._ledger_path) or (0, 0))

    def _look_for_ledger(self) -> None:
        with self._looking:
            self._tell(_LEDGER_CODES, _caught("ledger_unavailable", self._look_at_ledger))

    def _look_for_snapshots(self) -> None:
        before = self.served
        self._tell(_SNAPSHOT_CODES, _caught("snapshot_refused", self.snapshots.look))
        if self.served is not before:
            self._damaged = None
            self._look_for_ledger()  # the snapshot says how far it had come, and by which past

    def _tell(self, codes: Sequence[str], found: Mapping[str, BodegaError]) -> None:
        """Put what was found in the place of what was known under these codes, and log what changed."""
        with self._lock:
            before = self._problems
            self._problems = {code: error for code, error in before.items() if code not in codes} | dict(found)
        for code in codes:
            was, now = before.get(code), found.get(code)
            if now is not None and str(was) != str(now):
                _log.warning(code, error=now.message, remedy=now.remedy, reason=now.reason)
            elif now is None and was is not None:
                _log.info(f"{code}_over")


def _caught(code: str, step: Callable[[], Mapping[str, BodegaError] | None]) -> Mapping[str, BodegaError]:
    try:
        return step() or {}
    except Exception as failure:  # noqa: BLE001 - whatever happens, the watcher goes on and what serves serves on
        return {code: failure if isinstance(failure, BodegaError) else unforeseen(failure)}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
