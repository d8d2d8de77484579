"""The published snapshots and the one pointer to what is served: a folder, or a prefix of an object store.

To publish is, in this order: the shards, whole and durable; the manifest, last; the pointer, in one step that a reader
sees done or not at all. Whoever is killed on the way leaves the old snapshot served and some waste that a sweep takes.
`Folder` and `Bucket` name their steps; everything else is decided here, once for both.
"""

from __future__ import annotations

import builtins
import hashlib
import logging
import secrets
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from engine.errors import NoSnapshot, PublishConflict, SnapshotCorrupt, SnapshotError
from engine.snapshot.cache import Cache
from engine.snapshot.folder import Folder
from engine.snapshot.layout import MANIFEST
from engine.snapshot.manifest import Manifest
from engine.snapshot.pointer import ID, POINTER, Pointer
from engine.snapshot.reader import Snapshot

ANY_PARENT = "*"
GRACE = timedelta(days=1)
_TRIES = 20  # of a move that others were faster than
_GIB = 2**30
_log = logging.getLogger(__name__)


class Store(Protocol):
    """What a registry needs of the place where snapshots lie; see `Folder` and `Bucket`."""

    def locked(self) -> AbstractContextManager[None]: ...
    def read(self) -> tuple[bytes | None, Any]: ...
    def move(self, pointer: Pointer, version: Any, mark: str) -> bool: ...
    def place(self, staged: Path, manifest: Manifest, pointer: Pointer | None, before: str) -> str: ...
    def names(self, pointer: Pointer | None) -> set[str]: ...
    def manifest(self, name: str, pointer: Pointer | None) -> Manifest: ...
    def check(self, name: str, pointer: Pointer | None) -> None: ...
    def open(self, name: str, pointer: Pointer | None, cache: Cache | None, verify: bool) -> Snapshot: ...
    def found(self) -> dict[str, str]: ...
    def remove(self, names: Collection[str], places: Collection[str]) -> list[str]: ...
    def sweep(self, pointer: Pointer | None, grace: timedelta) -> list[str]: ...


class Registry:
    """Publishes and finds snapshots, for any number of processes; of an object store, of machines.

    Args:
        where: a folder, made at the first write; or s3://bucket/prefix and the like.
        cache: a folder on this disk for what is fetched and for what was hashed; without one, every open of a folder's
            snapshot hashes it again, and an object store's is kept under the home folder.
        cache_bytes: that fetched snapshots may take.
    """

    def __init__(self, where: str | Path, cache: str | Path | None = None, cache_bytes: int = 64 * _GIB) -> None:
        self.where = str(where)
        self._cache = Cache(Path(cache), cache_bytes) if cache else None
        self._store: Store
        if "://" in self.where:
            from engine.snapshot.bucket import Bucket  # a deployment on one disk does without its client

            if self._cache is None:
                of = hashlib.sha256(self.where.encode()).hexdigest()[:8]
                self._cache = Cache(Path.home() / ".cache" / "bodega" / of, cache_bytes)
            self._store = Bucket(self.where)
            self._staging = self._cache.staging
        else:
            folder = Folder(Path(where))
            self._store, self._staging = folder, folder.staging

    @property
    def root(self) -> Path:
        """The folder of the snapshots.

        Raises:
            SnapshotError: they lie in an object store.
        """
        if not isinstance(self._store, Folder):
            raise SnapshotError(f"{self.where} is no folder.", "Ask for the manifest, or open the snapshot.")
        return self._store.root

    def stage(self) -> Path:
        """A new empty folder to write a snapshot into; `sweep` removes it once this process is gone."""
        return self._staging.new()

    def drop(self, staged: Path) -> None:
        """Remove a folder from `stage`; one that was published is gone already."""
        self._staging.drop(staged)

    def publish(self, staged: Path, expected_parent: str = ANY_PARENT) -> Manifest:
        """Put a finished snapshot in place and point at it. Readers see the old one or the new one.

        Doing it twice, or again after a crash or a lost answer, changes nothing: a snapshot that is here already is
        kept, and `staged` dropped.

        Args:
            staged: a folder that `SnapshotWriter.finish` has ended, from `stage`.
            expected_parent: the id that must still be current, "" for none; by default whatever is.

        Raises:
            SnapshotError: the folder is no whole snapshot, or disk or store refuses; the pointer is as it was, unless
                the error says that it is not known.
            PublishConflict: another publisher moved the pointer; `staged` stays where it is.
        """
        staged = Path(staged)
        with Snapshot.open(staged, verify=False) as whole:
            manifest = whole.manifest
        name, made = manifest.snapshot_id, ""
        for _ in range(_TRIES):
            with self._store.locked():
                pointer, version = self._read()
                _require_parent(pointer, name, expected_parent)
                place = self._store.place(staged, manifest, pointer, made)
                if self._move(pointer, version, name, place):
                    break
                if pointer is None or pointer.places.get(name) != place:
                    made = place  # nobody else knows it; one that the pointer named may be swept by the next try
        else:
            raise _restless(self.where)
        if not isinstance(self._store, Folder):
            self._staging.drop(staged)
        return manifest

    def current(self) -> str:
        """The id that is served.

        Raises:
            NoSnapshot: nothing was published yet.
            SnapshotCorrupt: the pointer is unreadable.
            SnapshotError: the store does not answer.
        """
        return self.history()[0]

    def history(self) -> tuple[str, ...]:
        """The id that is served, then those served before it that are still here, newest first.

        Raises:
            as `current`.
        """
        pointer, _ = self._read()
        if pointer is None:
            raise NoSnapshot(f"{self.where} has no published snapshot.", "Run `python -m jobs.nightly` to make one.")
        here = self._store.names(pointer)
        return (pointer.current, *(name for name in pointer.previous if name in here))

    def open_current(self, verify: bool = True) -> Snapshot:
        """Open what is served.

        Raises:
            NoSnapshot, SnapshotTooNew, SnapshotCorrupt: as `Snapshot.open`.
        """
        while True:
            name = self.current()
            try:
                return self.open(name, verify)
            except SnapshotError:
                if self.current() == name:
                    raise
                # the pointer moved on and a sweep took it in between: the new one is what was asked for

    def open(self, name: str, verify: bool = True) -> Snapshot:
        """Open one snapshot by its id; of an object store, once it is fetched.

        Args:
            verify: hash what was not hashed before on this machine.

        Raises:
            NoSnapshot, SnapshotTooNew, SnapshotCorrupt: as `Snapshot.open`.
            SnapshotError: the store does not answer, or disk or cache refuses.
        """
        pointer = self._known(name)
        return self._store.open(name, pointer, self._cache, verify)

    def note_served(self, name: str) -> None:
        """Keep on this machine what is served from an object store, for a start while that is away."""
        if self._cache is not None and not isinstance(self._store, Folder):
            self._cache.note_served(self.where, name)

    def open_served_last(self, verify: bool = True) -> Snapshot:
        """Open what was served last on this machine, without asking the store.

        Raises:
            NoSnapshot: nothing was, or the cache holds it no more.
            SnapshotTooNew, SnapshotCorrupt: as `Snapshot.open`.
        """
        name = self._cache.served_last(self.where) if self._cache is not None else ""
        if self._cache is None or not name:
            raise NoSnapshot(f"Nothing of {self.where} was served on this machine.", "Wait for the store.")
        return self._cache.open(name, None, verify)

    def manifest(self, name: str) -> Manifest:
        """The manifest of one snapshot.

        Raises:
            NoSnapshot, SnapshotTooNew, SnapshotCorrupt: as `Snapshot.open`.
        """
        return self._store.manifest(name, self._known(name))

    def copy_of(self, name: str) -> int:
        """The inode of the copy that `open` would map now; 0 where there is none on this machine."""
        root = self._store.root if isinstance(self._store, Folder) else self._staging.root
        try:
            return (root / name / MANIFEST).stat().st_ino
        except OSError:
            return 0

    def distrust(self, name: str) -> bool:
        """Have the next open fetch it from the object store again; False for a folder, which has no other copy."""
        if self._cache is None or isinstance(self._store, Folder):
            return False
        self._cache.discard(name)
        return True

    def list(self) -> list[Manifest]:
        """Every snapshot here, newest first. One that cannot be read is left out, and the log says why."""
        return self._manifests(self._readable()[0])[0]

    def promote(self, name: str) -> None:
        """Serve a snapshot that is here already. Also mends a pointer that is unreadable.

        Raises:
            NoSnapshot: it is not here; the remedy lists what is.
            SnapshotTooNew, SnapshotCorrupt: it cannot be served.
        """
        for _ in range(_TRIES):
            with self._store.locked():
                pointer, version, lost = self._readable()
                self._require_here(name, pointer)
                self._store.check(name, pointer)
                if lost:  # whatever it said, it has no history now
                    moved = self._store.move(Pointer(name, places=pointer.places if pointer else {}), version, _mark())
                else:
                    moved = self._move(pointer, version, name)
                if moved:
                    return
        raise _restless(self.where)

    def rollback(self, expected: str = ANY_PARENT) -> str:
        """Serve what was served before, and forget that this one was; doing it again goes back further.

        Args:
            expected: the id that must still be current; by default whatever is.

        Returns:
            the id that is served now.

        Raises:
            NoSnapshot: nothing was served before, or it is gone.
            SnapshotTooNew, SnapshotCorrupt: it cannot be served.
            PublishConflict: another is current than expected.
        """
        for _ in range(_TRIES):
            with self._store.locked():
                pointer, version = self._read()
                earlier = pointer.back(self._store.names(pointer)) if pointer else None
                if pointer is None or earlier is None:
                    raise NoSnapshot(
                        f"{self.where} has no snapshot that was served before.",
                        "Promote one by its id: `bodega snapshot list`.",
                    )
                _require_parent(pointer, "", expected)
                self._store.check(earlier.current, pointer)
                if self._store.move(earlier, version, _mark()):
                    return earlier.current
        raise _restless(self.where)

    def sweep(self, keep: int = 3, grace: timedelta = GRACE) -> builtins.list[str]:
        """Remove old snapshots and what killed publishers left. Whoever has one mapped keeps reading it.

        Args:
            keep: newest snapshots to keep, beside the current one and the one before it.
            grace: of an object store, how long nobody wrote to an upload before it counts as left.

        Returns:
            names of what was removed.
        """
        for _ in range(_TRIES):
            with self._store.locked():
                pointer, version = self._read()
                here = self._store.names(pointer)
                kept = {pointer.current, *[name for name in pointer.previous if name in here][:1]} if pointer else set()
                manifests, unknown = self._manifests(pointer)
                kept |= {manifest.snapshot_id for manifest in manifests[: max(keep, 0)]}
                old = sorted(here - kept - unknown)
                left = pointer.without(old) if pointer else None
                # Out of an object store's pointer first: from then on nobody may begin to use them.
                if pointer and left and pointer.places != left.places and not self._store.move(left, version, _mark()):
                    continue
                places = [pointer.places[name] for name in old if name in pointer.places] if pointer else []
                removed = self._store.remove(old, places) + self._store.sweep(left, grace)
            if isinstance(self._store, Folder):
                return removed
            with self._staging.locked():
                return removed + self._staging.sweep()
        raise _restless(self.where)

    def _move(self, pointer: Pointer | None, version: Any, name: str, place: str = "") -> bool:
        moved = pointer.serve(name, self._store.names(pointer)) if pointer else Pointer(name)
        if place and moved.places.get(name) != place:
            moved = moved.placed(name, place)
        return moved == pointer or self._store.move(moved, version, _mark())

    def _read(self) -> tuple[Pointer | None, Any]:
        text, version = self._store.read()
        return (None if text is None else Pointer.parse(text, f"{self.where}/{POINTER}")), version

    def _readable(self) -> tuple[Pointer | None, Any, bool]:
        """The pointer, its version, and whether it is lost: one that names what is found then takes its place."""
        text, version = self._store.read()
        try:
            if text is not None:
                return Pointer.parse(text, f"{self.where}/{POINTER}"), version, False
        except SnapshotCorrupt as error:
            _log.warning("The history of served snapshots is lost: %s", error)
        places = self._store.found()
        return Pointer(min(places), places=places) if places else None, version, True

    def _known(self, name: str) -> Pointer | None:
        pointer = self._readable()[0]
        self._require_here(name, pointer)
        return pointer

    def _require_here(self, name: str, pointer: Pointer | None) -> None:
        here = self._store.names(pointer)
        if not ID.fullmatch(name) or name not in here:
            named = ", ".join(manifest.snapshot_id for manifest in self._manifests(pointer)[0][:5])
            raise NoSnapshot(f"{self.where} has no snapshot '{name}'.", f"Name one of: {named or 'none yet'}.")

    def _manifests(self, pointer: Pointer | None) -> tuple[builtins.list[Manifest], set[str]]:
        """Those that can be read, newest first; and the names of those that a later program, or a better moment, can read."""
        manifests, unknown = [], set()
        for name in self._store.names(pointer):
            try:
                manifests.append(self._store.manifest(name, pointer))
            except SnapshotError as error:
                _log.warning("Snapshot %s is left out: %s", name, error)
                if not isinstance(error, SnapshotCorrupt | NoSnapshot):
                    unknown.add(name)
        newest = sorted(manifests, key=lambda manifest: (manifest.created_at, manifest.snapshot_id), reverse=True)
        return newest, unknown


def _mark() -> str:
    return secrets.token_hex(8)


def _restless(where: str) -> PublishConflict:
    return PublishConflict(
        f"The pointer of {where} moved at every try.", "See who else publishes there, and run again."
    )


def _require_parent(pointer: Pointer | None, name: str, expected: str) -> None:
    served = pointer.current if pointer else ""
    if expected not in (ANY_PARENT, served) and served != name:
        raise PublishConflict(
            f"{name or 'A rollback'} was to follow {expected or 'nothing'}, but {served or 'nothing'} is served now.",
            "Look at what the other run published; publish again if this one should replace it.",
        )
