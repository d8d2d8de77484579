"""The consent ledger as one server process sees it: followed by a mirror, from which replies are made, and watched for faults.

A reply reads memory alone. What was acknowledged longer ago than `consent_bound_seconds` is in it, or the reply uses nothing of
the person: the mirror says since when it is known, and a ledger that does not answer makes it older with every second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from engine.consent.changes import Held
from engine.consent.ledger import Ledger
from engine.consent.mirror import Mirror, clock
from engine.consent.vocabulary import Vocabulary
from engine.errors import BodegaError, ConsentStale, LedgerReplaced, LedgerUnavailable
from engine.identity import UserKeys
from engine.serving.ledger_mark import LedgerMark
from engine.serving.settings import ServeSettings
from engine.serving.snapshots import unforeseen

_log = structlog.get_logger("bodega.ledger")
_TURN_SECONDS = 0.05  # some ten writes long
_RESTORE = (
    "Restore the newer ledger: withdrawals are missing from this one. If they are to be lost, remove ledger-seen.json "
    "from the cache and publish a night on this ledger."
)


@dataclass(frozen=True, slots=True)
class _Opened:
    ledger: Ledger
    keys: UserKeys
    mirror: Mirror
    file: tuple[int, int]  # device and inode when it was opened; zeros where it is no file

    def close(self) -> None:
        self.ledger.close()


class ReplicaLedger:
    """Threads share it; one thread calls `look`."""

    def __init__(self, settings: ServeSettings, vocabulary: Vocabulary, night: Callable[[], tuple[int, str]]) -> None:
        """
        Args:
            night: how far the ledger had come for the snapshot in service, and the head of its audit log there.
        """
        self._settings = settings
        self._vocabulary = vocabulary
        self._night = night
        self._bound = settings.consent_bound_seconds
        self._file = _file_of(settings.ledger)
        self._folder = Path(settings.cache or settings.out)
        self._mark = LedgerMark(self._folder / "ledger-seen.json")
        self._opened: _Opened | None = None
        self._highest = 0  # sequence that this process has seen
        self._seen = (0, "")  # a sequence and the head of the audit log at it
        self._checked = float("-inf")
        self._was_open = False
        self._settling = threading.Thread()  # none yet
        self._silent = False  # and replies were made without what was known
        self._lock = threading.Lock()
        # A ledger that hangs must not take every thread that lists need.
        self._room = threading.BoundedSemaphore(max(1, settings.threads // 2))
        self.fault: BodegaError | None = None  # what the last look found

    @property
    def ready(self) -> bool:
        """Whether it was heard at least once."""
        return self._was_open

    @property
    def available(self) -> bool:
        """Whether consent can be read and recorded."""
        return self._opened is not None and self.fault is None

    @property
    def silence(self) -> float:
        """Seconds since which nothing was heard; infinite where it is not open."""
        opened = self._opened
        return clock() - opened.mirror.heard if opened is not None else float("inf")

    @property
    def sequence(self) -> int:
        """How far the mirror has come."""
        opened = self._opened
        return opened.mirror.sequence if opened is not None else 0

    def standing(self, key: bytes, least: int = 0) -> Held:
        """What somebody allows, from memory: everything acknowledged longer ago than the bound is in it.

        Args:
            key: stable, 16 bytes.
            least: a sequence that must be in it, from a token. The ledger is asked where it was not heard of yet.

        Raises:
            ConsentStale: the ledger was not heard within the bound, or not as far as the token.
            LedgerUnavailable: it is not open, is not the one that was known, or fails for longer than the bound.
        """
        opened, bound = self._opened, self._bound
        if opened is None:
            raise self._refusal()
        mirror = opened.mirror
        if mirror.sequence < least and clock() - mirror.heard <= bound:
            _try_to_hear(mirror, bound)
        silence = clock() - mirror.heard
        if silence > bound:
            self._tell_silence(True)
            if self.fault is not None:
                raise self._refusal()
            raise ConsentStale(f"The consent ledger was not heard for {silence:.1f} s.", "Try again.")
        if self._silent:
            self._tell_silence(False)
        if mirror.sequence < least:
            raise ConsentStale("The ledger has not heard the state of the token yet.", "Try again.")
        return mirror.held(key)

    @contextmanager
    def at_work(self) -> Iterator[tuple[Ledger, UserKeys]]:
        """The ledger itself, and the keys that name people in it, to write or to read histories.

        Raises:
            LedgerUnavailable: it is not open, fails, or too many calls wait for it already.
        """
        opened = self._opened
        if opened is None or self.fault is not None:
            raise self._refusal()
        self._refuse_another_file(opened)
        if not self._room.acquire(timeout=_TURN_SECONDS):
            raise LedgerUnavailable("Too many calls wait for the consent ledger.", "Try again in a moment.")
        try:
            yield opened.ledger, opened.keys
        finally:
            self._room.release()

    def enforce(self, sequence: int) -> None:
        """Have every reply from now on know what was recorded at a sequence, and remember that the ledger came so far.

        Raises:
            LedgerUnavailable: the ledger does not answer: what was recorded must not be acknowledged.
        """
        opened = self._opened
        if opened is None:
            raise self._refusal()
        opened.mirror.catch_up()
        self._refuse_another_file(opened)
        self._saw(sequence, "")

    def look(self, thoroughly: bool = False) -> None:
        """Hear the ledger, open it where it is not, and every `watch_seconds` hold it against what was known. Never raises.

        Args:
            thoroughly: hold it against what was known now.
        """
        try:
            self._look(thoroughly)
            self.fault = None
        except LedgerReplaced as error:
            # What is known is of another ledger: not a reply more, and everything anew once the right one is back.
            self.fault, opened, self._opened = error, self._opened, None
            if opened is not None:
                opened.close()
        except Exception as failure:  # noqa: BLE001 - whatever happens, the watcher goes on
            self.fault = failure if isinstance(failure, BodegaError) else unforeseen(failure)

    def close(self) -> None:
        """Let go of it."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _look(self, thoroughly: bool) -> None:
        opened = self._opened
        due = thoroughly or clock() - self._checked >= self._settings.watch_seconds
        if opened is None:
            if due:
                self._checked = clock()
                self._opened = self._open()
                self._was_open = True
            elif self.fault is not None:
                raise self.fault
            return
        found = _identity(self._file)
        if found is None:
            # A new, empty ledger in its place would hide the loss from the operator.
            raise LedgerReplaced(f"{self._file} is gone.", "Put it back; it is opened again.")
        if found != opened.file:
            self._opened = None
            opened.close()
            self._opened = self._open()
            return
        if due or self.fault is not None:
            self._checked = clock()
            self._check_forward(opened.ledger)
        opened.mirror.catch_up()
        if opened.mirror.unsettled and not self._settling.is_alive():
            # Aside: with millions of people it takes longer than the bound, and looks must go on.
            self._settling = threading.Thread(target=_settle, args=(opened.mirror,), name="bodega-settle", daemon=True)
            self._settling.start()

    def _open(self) -> _Opened:
        settings, found = self._settings, _identity(self._file)
        if not Path(settings.out).is_dir():
            raise LedgerUnavailable(
                f"The folder {settings.out} does not exist.", "Run the night into it, or mend out=."
            )
        if self._file is not None:
            if found is None and self._was_open:
                raise LedgerReplaced(f"{self._file} is gone.", "Put it back; it is opened again.")
            if found is not None and not self._file.stat().st_size:
                raise LedgerUnavailable(f"{self._file} is empty.", "Restore it, or remove it to begin a new one.")
        ledger = Ledger.open(settings.ledger, self._vocabulary, settings.ledger_patience_seconds)
        try:
            # Keys are made for a new ledger alone: others would not find the people of an old one.
            keys = UserKeys.load(settings.keys, create=ledger.sequence() == 0)
            ledger.bind(keys.stable.key_id)
            if not self._highest:
                self._seen = self._mark.read()
                self._highest = self._seen[0]
            self._check_forward(ledger)
            mirror = Mirror.open(ledger, keys.stable.key_id, self._folder / "consent")
        except BaseException:
            ledger.close()
            raise
        return _Opened(ledger, keys, mirror, _identity(self._file) or _NO_FILE)

    def _check_forward(self, ledger: Ledger) -> None:
        """A ledger that went back, as one from a backup does, has lost withdrawals that were acknowledged.

        It may have come as far again since, by other changes: its audit log then tells of another past.
        """
        # Before the ledger is asked: whatever this process records meanwhile must not make its answer look old.
        night = self._night()
        highest = max(self._highest, night[0])
        sequence = ledger.sequence()
        if sequence < highest:
            raise LedgerReplaced(f"The consent ledger stands at {sequence}, it was at {highest} before.", _RESTORE)
        for at, head in (self._seen, night):
            if head and ledger.audit_head(at) != head:
                raise LedgerReplaced(f"The consent ledger tells of another past than it did at {at}.", _RESTORE)
        self._seen = (sequence, ledger.audit_head(sequence))
        self._saw(*self._seen)

    def _tell_silence(self, silent: bool) -> None:
        """Once, and not with every reply."""
        with self._lock:
            told, self._silent = self._silent is silent, silent
        if not told and silent:
            _log.warning("consent_stale", bound_seconds=self._bound, silence=round(self.silence, 3))
        elif not told:
            _log.info("consent_stale_over")

    def _refuse_another_file(self, opened: _Opened) -> None:
        # An open SQLite file outlives its name: what is written to it now would be lost.
        if _identity(self._file) != opened.file:
            raise LedgerUnavailable(f"{self._file} is gone or was replaced.", "Put it back; it is opened again.")

    def _saw(self, sequence: int, head: str) -> None:
        """It may not be found further back, not by the next process either."""
        with self._lock:
            self._highest = max(self._highest, sequence)
        self._mark.keep(sequence, head)

    def _refusal(self) -> LedgerUnavailable:
        fault = self.fault
        if fault is None:
            return LedgerUnavailable("The consent ledger is not open.", "See AdminService.GetStatus for the cause.")
        return LedgerUnavailable(fault.message, fault.remedy)


def _settle(mirror: Mirror) -> None:
    try:
        mirror.settle()
    except BodegaError as error:
        _log.warning("consent_not_settled", error=error.message)


def _try_to_hear(mirror: Mirror, patience: float) -> None:
    try:
        mirror.catch_up(patience)
    except LedgerUnavailable as error:
        _log.warning("token_not_heard", error=error.message)


_NO_FILE = (0, 0)


def _file_of(url: str) -> Path | None:
    """The file that a ledger lives in; None where a server keeps it."""
    try:
        address = make_url(url)
    except ArgumentError:
        return None  # opening it says what is wrong
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


def _identity(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return _NO_FILE
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
