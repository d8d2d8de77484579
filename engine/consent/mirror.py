"""What one replica knows of everybody's consent, so that no reply waits for the ledger.

The people of some moment, mapped, and over them those who moved since, as the ledger tells them. `heard` says since when all of
it is known: whatever was acknowledged before that is in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from engine.consent.changes import Held
from engine.consent.ledger import Ledger
from engine.consent.people import Origin, People, load, rows_of
from engine.errors import LedgerReplaced, LedgerUnavailable

_log = structlog.get_logger("bodega.consent")
_MANY = 1 << 16  # people who moved, at which they are put among the others
_FLOOD = 1 << 18  # changes at once, past which reading everybody anew is quicker
_LONG = 3600.0  # seconds after which they are, however few: what was erased is not to stay in a file
_SUFFIX = ".people"
# It goes on while a machine sleeps, which the monotonic clock of Linux does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds since some moment; never goes back, and never stands still while this process or its machine does."""
    return time.clock_gettime(_CLOCK)


class Mirror:
    """Threads share it. Make it with `Mirror.open`."""

    def __init__(self, ledger: Ledger, stable_key: str, people: People, folder: Path | None) -> None:
        self._ledger = ledger
        self._stable_key = stable_key
        self._folder = folder
        self._state: tuple[People, dict[bytes, Held]] = people, {}  # replaced whole; the second one grows
        self._oldest = clock()  # since when something may be in the second one
        self._turn = threading.Lock()
        self.sequence = people.origin.sequence
        self.heard = float("-inf")

    @classmethod
    def open(cls, ledger: Ledger, stable_key: str, folder: Path | None) -> Mirror:
        """From the newest file that belongs to this ledger's past, else from the ledger; then caught up.

        Args:
            stable_key: id of the key that names people.
            folder: where the files are; None keeps none.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        people = _kept(ledger, stable_key, folder) if folder is not None else None
        if people is None:
            people = _in_file(_read(ledger, stable_key), folder)
        mirror = cls(ledger, stable_key, people, folder)
        mirror.catch_up()
        return mirror

    def __len__(self) -> int:
        people, moved = self._state
        return len(people) + len(moved)  # at most: somebody may be in both

    def held(self, key: bytes) -> Held:
        """What one person's consent comes to, as far as it was heard; of a stranger, nothing. Compare `heard` first."""
        people, moved = self._state
        return moved.get(key) or people.find(key) or Held(key, 0, 0, 0, 0, 0)

    def catch_up(self, patience: float = -1) -> None:
        """Take in everything that was acknowledged before this call.

        Args:
            patience: seconds to wait while another thread does; -1 waits for it.

        Raises:
            LedgerUnavailable: the ledger does not answer, or makes no sense; LedgerReplaced: it went back.
        """
        asked = clock()
        with self._alone(patience):
            if self.heard >= asked:
                return  # whoever had the turn before asked after this call began
            began = clock()
            _, moved = self._state
            if not moved:
                self._oldest = began
            with self._ledger.moves(self.sequence) as (head, batches):
                if head < self.sequence:
                    raise LedgerReplaced(
                        f"The consent ledger stands at {head}, it was at {self.sequence} before.",
                        "Restore the newer ledger: withdrawals are missing from this one.",
                    )
                flooded = head - self.sequence > _FLOOD
                for batch in () if flooded else batches:
                    moved.update({held.key: held for held in batch})
            if flooded:
                people = _read(self._ledger, self._stable_key)
                self._state, head = (people, {}), people.origin.sequence
            self.sequence, self.heard = head, began

    @property
    def unsettled(self) -> bool:
        """Whether those who moved are many, or it is long since."""
        moved = self._state[1]
        return bool(moved) and (len(moved) >= _MANY or clock() - self._oldest >= _LONG)

    def settle(self) -> None:
        """Put those who moved among the others. It takes its time, in one thread; replies and looks go on meanwhile.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        people, moved = self._state
        with self._alone():
            began, sequence, now = clock(), self.sequence, dict(moved)
        origin = _origin(self._ledger, self._stable_key, sequence)
        settled = _in_file(people.with_moved(now.values(), origin), self._folder)
        with self._alone():
            left = {key: held for key, held in moved.items() if now.get(key) is not held}
            if self._state[0] is people:  # else it was all read anew meanwhile
                self._state, self._oldest = (settled, left), began

    @contextmanager
    def _alone(self, patience: float = -1) -> Iterator[None]:
        if not self._turn.acquire(timeout=patience):
            raise LedgerUnavailable("The consent ledger has not answered yet.", "Try again.")
        try:
            yield
        finally:
            self._turn.release()


def _read(ledger: Ledger, stable_key: str) -> People:
    state, sequence = ledger.state()
    return People(rows_of(state), _origin(ledger, stable_key, sequence))


def _origin(ledger: Ledger, stable_key: str, sequence: int) -> Origin:
    return Origin(
        stable_key=stable_key,
        vocabulary=ledger.vocabulary.version,
        sequence=sequence,
        audit_head=ledger.audit_head(sequence),
    )


def _in_file(people: People, folder: Path | None) -> People:
    """The same people, mapped from a file where one can be written: processes beside this one then share the memory."""
    if folder is None or not len(people):
        return people
    path = folder / f"{people.origin.sequence:020d}{_SUFFIX}"
    try:
        people.save(path)
        mapped = load(path)
        for older in _files(folder):
            if older.name < path.name:
                older.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        _log.warning("consent_file_not_kept", path=str(path), error=str(error))
        return people
    return mapped


def _kept(ledger: Ledger, stable_key: str, folder: Path) -> People | None:
    """The newest file of people that is whole, and of this ledger's past under its vocabulary."""
    head = ledger.sequence()
    for path in reversed(_files(folder)):
        try:
            people = load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("consent_file_unreadable", path=str(path), error=str(error))
            continue
        origin = people.origin
        known = (origin.stable_key, origin.vocabulary) == (stable_key, ledger.vocabulary.version)
        # Without a row of the audit log nothing says that it is the same past.
        if (
            known
            and origin.audit_head
            and origin.sequence <= head
            and ledger.audit_head(origin.sequence) == origin.audit_head
        ):
            return people
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
