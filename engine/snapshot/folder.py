"""Published snapshots in a folder of one machine's disk.

root/20260131-0123456789ab/   a snapshot: read-only files, never changed once it is here
root/.incoming-xxxxxxxx/      one being written, or on its way out; locked by its owner while that lives
root/current.json             {"current": id, "previous": [ids, newest first]}
root/.lock                    held while anything here changes; a killed owner lets go of it
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

from engine.errors import SnapshotError
from engine.snapshot.cache import Cache
from engine.snapshot.layout import MANIFEST, corrupt, sync_folder
from engine.snapshot.manifest import Manifest
from engine.snapshot.pointer import ID, POINTER, Pointer
from engine.snapshot.reader import Snapshot, read_manifest
from engine.snapshot.staging import Staging, loud, seal

_log = logging.getLogger(__name__)


class Folder:
    """Publishes for any number of processes on one machine; every change is made under the lock.

    Steps of publishing, in order, each a method or function that a test can break: `seal`, `_into_place`, `_sync`,
    `_write_pointer`. All but the last leave the pointer as it was, and the last is one rename.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = Staging(root)

    def __str__(self) -> str:
        return str(self.root)

    def locked(self) -> AbstractContextManager[None]:
        """Alone among the processes of this machine."""
        return self.staging.locked()

    def read(self) -> tuple[bytes | None, None]:
        """The pointer's text, None before the first publish."""
        path = self.root / POINTER
        try:
            return path.read_bytes(), None
        except (FileNotFoundError, NotADirectoryError):
            return None, None
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read: {error}.", "Mend the rights of the folder.") from error

    def move(self, pointer: Pointer, version: None, mark: str) -> bool:
        """Write the pointer; nobody else can, inside the lock."""
        self._write_pointer(pointer)
        return True

    def place(self, staged: Path, manifest: Manifest, pointer: Pointer | None, before: str) -> str:
        """Move a staged snapshot under its id, where a whole one is not there already; returns ''."""
        name = manifest.snapshot_id
        target = self.root / name
        if staged.resolve() == target.resolve():
            return ""
        if target.exists():
            try:
                Snapshot.open(target).close()
            except SnapshotError as error:
                _log.warning("Snapshot %s is replaced by its new copy: %s", name, error)
                self.staging.discard(target)
            else:
                shutil.rmtree(staged, ignore_errors=True)
        if not target.exists():
            seal(staged)
            self._into_place(staged, target)
        self._sync()
        self.staging.release(staged)
        return ""

    def names(self, pointer: Pointer | None) -> set[str]:
        """Ids of the snapshots here."""
        if not self.root.is_dir():
            return set()
        return {path.name for path in self.root.iterdir() if ID.fullmatch(path.name) and (path / MANIFEST).exists()}

    def manifest(self, name: str, pointer: Pointer | None) -> Manifest:
        """The manifest of one that is here."""
        return read_manifest(self.root / name)

    def check(self, name: str, pointer: Pointer | None) -> None:
        """Refuse one that cannot be served, by everything but the hashes."""
        self.open(name, pointer, None, verify=False).close()

    def open(self, name: str, pointer: Pointer | None, cache: Cache | None, verify: bool) -> Snapshot:
        """Map one where it lies; hashed once a machine where there is a cache to remember it."""
        folder = self.root / name
        if verify and cache is not None:
            cache.verify_once(folder)
            verify = False
        snapshot = Snapshot.open(folder, verify)
        if snapshot.manifest.snapshot_id != name:
            raise corrupt(folder, f"it holds {snapshot.manifest.snapshot_id}")
        return snapshot

    def found(self) -> dict[str, str]:
        """Places that a pointer has to name: none, ids are enough here."""
        return {}

    def remove(self, names: Iterable[str], places: Iterable[str]) -> list[str]:
        """Remove snapshots, damaged ones too. Whoever has one mapped keeps reading it."""
        removed = list(names)
        for name in removed:
            self.staging.discard(self.root / name)
        return removed

    def sweep(self, pointer: Pointer | None, grace: timedelta) -> list[str]:
        """Remove what dead publishers left; the lock tells at once that they are dead, so `grace` is not needed."""
        half = [
            path.name
            for path in self.root.iterdir()
            if ID.fullmatch(path.name)
            and not (path / MANIFEST).exists()
            and (not pointer or path.name != pointer.current)
        ]
        return sorted([*self.remove(half, ()), *self.staging.sweep()])

    def _into_place(self, staged: Path, target: Path) -> None:
        try:
            staged.rename(target)
        except OSError as error:
            raise SnapshotError(
                f"{staged} cannot move to {target}: {error}.", "Write into the folder that Registry.stage() makes."
            ) from error

    def _sync(self) -> None:
        with loud(self.root):
            sync_folder(self.root)

    def _write_pointer(self, pointer: Pointer) -> None:
        path = self.root / POINTER
        before, _ = self.read()
        with loud(path):
            _write(path, pointer.to_json().encode())
        try:
            sync_folder(self.root)
        except (OSError, SnapshotError) as error:
            # The rename is visible and may not last: what readers see must be what a crash would leave.
            with contextlib.suppress(OSError):
                path.unlink() if before is None else _write(path, before, durably=False)
            now, _ = self.read()
            stands = "stands as before" if now == before else "HAS MOVED all the same"
            raise SnapshotError(
                f"{path} cannot be made durable: {error}; it {stands}.", "Look after the disk, and run again."
            ) from error


def _write(path: Path, text: bytes, durably: bool = True) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(text)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
