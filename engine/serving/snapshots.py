"""The snapshot in service: taken up beside the old one, leased to requests, refused, promoted, rolled back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from engine.consent.profiles import Profile
from engine.consent.vocabulary import Vocabulary
from engine.errors import BodegaError, NoSnapshot, SnapshotCorrupt, SnapshotError
from engine.identity import UserKeys
from engine.serving.settings import ServeSettings
from engine.snapshot import Registry, Snapshot

_log = structlog.get_logger("bodega.snapshots")
_GIB = 2**30
_TURNS = 3  # of one look, when the pointer moves meanwhile


@dataclass(frozen=True, slots=True)
class Served:
    """One snapshot in service, with the keys, the profiles and the consent vocabulary that belong to it."""

    snapshot: Snapshot
    keys: UserKeys
    profiles: tuple[Profile, ...]
    vocabulary: Vocabulary  # that gives its bits their meaning; the server's own object where it is the same
    copy: int  # which one of it is mapped: its inode

    @property
    def name(self) -> str:
        """The snapshot's id."""
        return self.snapshot.manifest.snapshot_id


@dataclass(frozen=True, slots=True)
class _Refused:
    name: str
    error: BodegaError
    at: float  # of the monotonic clock


class Snapshots:
    """What a process serves of what a registry has. Shared by all threads; nothing is fetched before the first look.

    Args:
        vocabulary: that the ledger is read with.

    Raises:
        SettingsError: `snapshots` names no place for them.
    """

    def __init__(self, settings: ServeSettings, vocabulary: Vocabulary) -> None:
        self.registry = Registry(settings.snapshots, settings.cache or None, int(settings.cache_gib * _GIB))
        self.swaps = 0  # snapshots taken up by this process after its first
        self.refusals: Counter[str] = Counter()  # by reason
        self._settings = settings
        self._vocabulary = vocabulary
        self._looking = threading.Lock()  # held for as long as a fetch takes
        self._lock = threading.Lock()  # held for a moment
        self._served: Served | None = None
        self._in_use: dict[int, tuple[Served, int]] = {}  # by id(): requests under way on each
        self._refused: _Refused | None = None
        self._doubted: Served | None = None
        self._fetched_anew = ""  # once for each: where it is damaged again, the machine is at fault

    @property
    def served(self) -> Served | None:
        """What is served now; hold it with `lease` to read from it."""
        return self._served

    @property
    def age_seconds(self) -> float:
        """Of what is served, since it was written; 0 before the first."""
        served = self._served
        return (datetime.now(UTC) - served.snapshot.manifest.created_at).total_seconds() if served else 0.0

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

    def look(self) -> Mapping[str, BodegaError]:
        """Take up what the pointer names, or what was served before it where nothing serves yet and it is refused.

        Returns:
            what ails the snapshots, by stable code: no_snapshot, snapshot_refused, snapshot_gone, store_unavailable.
        """
        with self._looking:
            try:
                for _ in range(_TURNS):
                    wanted = self.registry.history()
                    problems = self._take(wanted)
                    # What goes while it is opened was overtaken, and what overtook it is there.
                    if not problems or self.registry.current() == wanted[0]:
                        break
            except NoSnapshot as error:
                problems = {} if self._served else {"no_snapshot": error}
            except SnapshotCorrupt as error:  # of the pointer itself
                problems = {"snapshot_refused": error}
            except SnapshotError as error:
                problems = {"store_unavailable": error}
                if self._served is None:
                    self._serve_without_the_store()
            return problems | self._gone()

    def doubt(self, served: Served) -> None:
        """Something in what is served is not what was written: the next look takes up another copy, where there is one."""
        self._doubted = served

    def promote(self, name: str) -> Served:
        """Serve a snapshot that the registry has, here at once and elsewhere at their next look.

        Raises:
            NoSnapshot: the registry does not have it.
            SnapshotError: this process cannot serve it; the pointer stays.
        """
        with self._looking:
            fresh = self._beside(name)
            self._point(fresh, lambda: self.registry.promote(name))
            return fresh

    def rollback(self) -> Served:
        """Serve what was served before, here at once and elsewhere at their next look.

        Raises:
            NoSnapshot: nothing was served before, or it is gone.
            PublishConflict: another snapshot was published meanwhile.
            SnapshotError: this process cannot serve it; the pointer stays.
        """
        with self._looking:
            now, *earlier = self.registry.history()
            if not earlier:
                self.registry.rollback(expected=now)  # which says so
            fresh = self._beside(earlier[0])
            self._point(fresh, lambda: self.registry.rollback(expected=now))
            return fresh

    def close(self) -> None:
        """Let go of what is served."""
        with self._lock:
            served, self._served = self._served, None
        if served is not None:
            served.snapshot.close()

    def _take(self, wanted: tuple[str, ...]) -> dict[str, BodegaError]:
        name = wanted[0]
        served, doubted, self._doubted = self._served, self._doubted, None
        anew = doubted is not None and doubted is served and self._fetched_anew != name and self.registry.distrust(name)
        if anew:
            self._fetched_anew = name
        # Publishing again is how a damaged copy is mended: what is mapped is then no longer what lies there.
        if served is not None and served.name == name and not anew and self._lies_as_opened(served):
            self._refused = None
            return {}
        refused = self._refused
        if refused is None or refused.name != name or not self._waits(refused.at):
            try:
                self._swap(self._open(name))
            except Exception as failure:  # noqa: BLE001 - whatever a disk may hold, what serves serves on
                refused = self._refuse(name, failure)
                if self._served is None:
                    self._fall_back(wanted[1:])
            else:
                return {}
        instead = self._served.name if self._served else "nothing"
        told = SnapshotError(
            f"Snapshot {name} is refused, {instead} is served: {refused.error.message}", refused.error.remedy
        )
        told.reason = refused.error.reason
        return {"snapshot_refused": told}

    def _fall_back(self, earlier: tuple[str, ...]) -> None:
        """Serve the newest of them that is whole."""
        for name in earlier:
            try:
                self._swap(self._open(name))
            except Exception as failure:  # noqa: BLE001 - as above; the next one may be whole
                self._refuse(name, failure, remember=False)
            else:
                return

    def _serve_without_the_store(self) -> None:
        """Serve what this machine served last: the ledger says what of it may still be used, whatever its age."""
        try:
            self._swap(self._fit(self.registry.open_served_last(self._settings.verify)))
        except NoSnapshot:
            return
        except Exception as failure:  # noqa: BLE001 - as above; the store may come back with a whole one
            self._refuse("of the cache", failure, remember=False)

    def _refuse(self, name: str, failure: Exception, remember: bool = True) -> _Refused:
        error = failure if isinstance(failure, BodegaError) else unforeseen(failure)
        refused = _Refused(name, error, time.monotonic())
        self.refusals[error.reason] += 1
        if remember:
            self._refused = refused
        _log.warning("snapshot_refused", snapshot=name, error=error.message, reason=error.reason)
        return refused

    def _waits(self, since: float) -> bool:
        return time.monotonic() - since < self._settings.retry_seconds

    def _gone(self) -> dict[str, BodegaError]:
        served = self._served
        if served is None or self.registry.copy_of(served.name):
            return {}
        error = SnapshotError(
            f"The files of {served.name} were removed while it is served.",
            "It serves until this process ends: publish again, or promote another, before a restart.",
        )
        return {"snapshot_gone": error}

    def _beside(self, name: str) -> Served:
        served = self._served
        if served is not None and served.name == name and self._lies_as_opened(served):
            return served
        return self._open(name)

    def _lies_as_opened(self, served: Served) -> bool:
        return self.registry.copy_of(served.name) in (served.copy, 0)  # 0: it is gone, which `_gone` tells

    def _point(self, fresh: Served, move: Callable[[], object]) -> None:
        try:
            move()
        except BaseException:
            if fresh is not self._served:
                fresh.snapshot.close()
            raise
        if fresh is not self._served:
            self._swap(fresh)
        self._refused = None

    def _swap(self, fresh: Served) -> None:
        with self._lock:
            old, self._served = self._served, fresh
            idle = old is not None and id(old) not in self._in_use
        self.swaps += old is not None
        self.registry.note_served(fresh.name)
        _log.info("snapshot_served", snapshot=fresh.name, before=old.name if old else None)
        if old is not None and idle:
            old.snapshot.close()

    def _open(self, name: str) -> Served:
        copy = self.registry.copy_of(name)  # before: one that is replaced meanwhile is taken up once more
        return self._fit(self.registry.open(name, verify=self._settings.verify), copy)

    def _fit(self, snapshot: Snapshot, copy: int = 0) -> Served:
        """With its keys and profiles, where this server can serve it; closed where not."""
        name = snapshot.manifest.snapshot_id
        try:
            made_with = Vocabulary.from_json(snapshot.vocabulary)
            if made_with.version == self._vocabulary.version:
                made_with = self._vocabulary
            else:  # grants are translated by name, so that what it does not know of is not granted
                _log.warning("snapshot_of_another_vocabulary", snapshot=name, sources=", ".join(made_with.sources))
            keys = UserKeys.load(self._settings.keys)
            written_with = snapshot.manifest.lineage.key_id
            if written_with and written_with != keys.rotating.key_id:
                raise SnapshotError(
                    f"Snapshot {name} names people by the rotating key {written_with}, {self._settings.keys} holds "
                    f"{keys.rotating.key_id}.",
                    "Put the key of that night there, or run the night again.",
                )
            profiles = tuple(Profile(str(each["name"]), int(each["groups"])) for each in snapshot.profiles)
        except BaseException:
            snapshot.close()
            raise
        return Served(snapshot, keys, profiles, made_with, copy or self.registry.copy_of(name))


def unforeseen(failure: Exception) -> BodegaError:
    """A fault of the program or the machine, as an error that operators are told."""
    return BodegaError(f"{type(failure).__name__}: {failure}", "Report it with the log; the last good state serves on.")
