"""The folder of published snapshots and the one pointer to what is served.

root/20260131-0123456789ab/   a snapshot; never changed once it is here
root/.incoming-xxxxxxxx/      one being written, or on its way out; locked by its owner while that lives
root/current.json             {"current": id, "previous": [ids, newest first]}
root/.lock                    held while the pointer moves; a killed owner lets go of it
"""

from __future__ import annotations

import builtins
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import NoSnapshot, PublishConflict, SnapshotCorrupt, SnapshotError
from engine.snapshot.layout import MANIFEST, corrupt, sync_folder
from engine.snapshot.manifest import Manifest
from engine.snapshot.reader import Snapshot, read_manifest
from engine.snapshot.writer import write_text

ANY_PARENT = "*"
_POINTER = "current.json"
_INCOMING = ".incoming-"
_ID = re.compile(r"\d{8}-[0-9a-f]{12}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pointer:
    current: str
    previous: tuple[str, ...]  # served before it, newest first


class Registry:
    """Publishes snapshots on one machine's disk, for any number of processes there.

    Args:
        root: the folder; made at the first write.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._owned: dict[Path, int] = {}  # staged folders and the descriptors that lock them

    def stage(self) -> Path:
        """A new empty folder to write a snapshot into; `sweep` removes it once this process is gone."""
        with self._locked():
            folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            folder.chmod(0o755)  # the reader may be another user
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._owned[folder] = handle
        return folder

    def publish(self, staged: Path, expected_parent: str = ANY_PARENT) -> Manifest:
        """Move a finished snapshot into place and point at it. Readers see the old one or the new one.

        Doing it twice, or again after a crash, changes nothing: a snapshot that is here already is kept, and `staged`
        dropped.

        Args:
            staged: a folder that `SnapshotWriter.finish` has ended, on the same disk.
            expected_parent: the id that must still be current, "" for none; by default whatever is.

        Raises:
            SnapshotError: the folder is no whole snapshot.
            PublishConflict: another publisher moved the pointer; `staged` stays where it is.
        """
        staged = Path(staged)
        with Snapshot.open(staged, verify=False) as whole:
            manifest = whole.manifest
        name = manifest.snapshot_id
        with self._locked():
            pointer = self._pointer()
            served = pointer.current if pointer else ""
            if expected_parent not in (ANY_PARENT, served) and served != name:
                raise PublishConflict(
                    f"{name} was to follow {expected_parent or 'nothing'}, but {served or 'nothing'} is served now.",
                    "Look at what the other run published; publish again if this one should replace it.",
                )
            self._place(staged, name)
            self._point(pointer, name)
        return manifest

    def current(self) -> str:
        """The id that is served.

        Raises:
            NoSnapshot: nothing was published yet.
            SnapshotCorrupt: the pointer is unreadable.
        """
        pointer = self._pointer()
        if pointer is None:
            raise NoSnapshot(f"{self.root} has no published snapshot.", "Run `python -m jobs.nightly` to make one.")
        return pointer.current

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
                # the pointer moved on and a sweep took the folder in between: the new one is what was asked for

    def open(self, name: str, verify: bool = True) -> Snapshot:
        """Open one snapshot by its id.

        Raises:
            NoSnapshot, SnapshotTooNew, SnapshotCorrupt: as `Snapshot.open`.
        """
        folder = self._folder(name)
        snapshot = Snapshot.open(folder, verify)
        if snapshot.manifest.snapshot_id != name:
            raise corrupt(folder, f"it holds {snapshot.manifest.snapshot_id}")
        return snapshot

    def list(self) -> list[Manifest]:
        """Every snapshot here, newest first. One that cannot be read is left out, and the log says why."""
        manifests = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            if not _ID.fullmatch(folder.name):
                continue
            try:
                manifests.append(read_manifest(folder))
            except SnapshotError as error:
                _log.warning("Snapshot %s is left out: %s", folder.name, error)
        return sorted(manifests, key=lambda manifest: (manifest.created_at, manifest.snapshot_id), reverse=True)

    def promote(self, name: str) -> None:
        """Serve a snapshot that is here already. Also mends a pointer that is unreadable.

        Raises:
            NoSnapshot: it is not here; the remedy lists what is.
            SnapshotTooNew, SnapshotCorrupt: it cannot be served.
        """
        with self._locked():
            self.open(name, verify=False).close()
            try:
                pointer = self._pointer()
            except SnapshotCorrupt as error:
                _log.warning("The history of served snapshots is lost: %s", error)
                pointer = None
            self._point(pointer, name)

    def rollback(self) -> str:
        """Serve what was served before, and forget that this one was; doing it again goes back further.

        Returns:
            the id that is served now.

        Raises:
            NoSnapshot: nothing was served before, or it is gone.
        """
        with self._locked():
            pointer = self._pointer()
            earlier = self._still_here(pointer.previous) if pointer else ()
            if not earlier:
                raise NoSnapshot(
                    f"{self.root} has no snapshot that was served before.",
                    "Promote one by its id: `bodega snapshot list`.",
                )
            self.open(earlier[0], verify=False).close()
            self._write(_Pointer(earlier[0], earlier[1:]))
        return earlier[0]

    def sweep(self, keep: int = 3) -> builtins.list[str]:
        """Remove old snapshots and what killed publishers left. Whoever has one mapped keeps reading it.

        Args:
            keep: newest snapshots to keep, beside the current one and the one before it.

        Returns:
            names of the folders removed.
        """
        with self._locked():
            pointer = self._pointer()
            kept = {pointer.current, *self._still_here(pointer.previous)[:1]} if pointer else set()
            kept |= {manifest.snapshot_id for manifest in self.list()[: max(keep, 0)]}
            removed = sorted(
                path.name for path in self.root.iterdir() if _ID.fullmatch(path.name) and path.name not in kept
            )
            for name in removed:
                self._discard(self.root / name)
            for folder in sorted(self.root.glob(f"{_INCOMING}*")):
                if folder not in self._owned and _is_orphan(folder):
                    shutil.rmtree(folder)
                    removed.append(folder.name)
        return removed

    def _place(self, staged: Path, name: str) -> None:
        target = self.root / name
        if staged.resolve() == target.resolve():
            return
        if target.exists():
            try:
                Snapshot.open(target).close()
            except SnapshotError as error:
                _log.warning("Snapshot %s is replaced by its new copy: %s", name, error)
                self._discard(target)
            else:
                shutil.rmtree(staged)
        if not target.exists():
            try:
                staged.rename(target)
            except OSError as error:
                raise SnapshotError(
                    f"{staged} cannot move to {target}: {error}.", "Write into the folder that Registry.stage() makes."
                ) from error
            sync_folder(self.root)
        handle = self._owned.pop(staged, None)
        if handle is not None:
            os.close(handle)

    def _discard(self, folder: Path) -> None:
        # First out of sight: a removal that is cut off must not leave half a snapshot under its id.
        grave = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
        folder.rename(grave / folder.name)
        shutil.rmtree(grave)

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        if not _ID.fullmatch(name) or not (folder / MANIFEST).exists():
            here = ", ".join(manifest.snapshot_id for manifest in self.list()[:5])
            raise NoSnapshot(f"{self.root} has no snapshot '{name}'.", f"Name one of: {here or 'none yet'}.")
        return folder

    def _still_here(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if (self.root / name / MANIFEST).exists())

    def _point(self, pointer: _Pointer | None, name: str) -> None:
        if pointer is None:
            self._write(_Pointer(name, ()))
        elif pointer.current != name:
            earlier = tuple(old for old in (pointer.current, *pointer.previous) if old != name)
            self._write(_Pointer(name, self._still_here(earlier)))

    def _write(self, pointer: _Pointer) -> None:
        record = {"current": pointer.current, "previous": list(pointer.previous)}
        write_text(self.root / _POINTER, json.dumps(record, indent=2) + "\n")

    def _pointer(self) -> _Pointer | None:
        path = self.root / _POINTER
        try:
            record = json.loads(path.read_bytes())
            names = (record["current"], *record["previous"])
            if not all(isinstance(name, str) and _ID.fullmatch(name) for name in names):
                raise ValueError(f"not snapshot ids: {names}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotCorrupt(
                f"{path} is not a pointer: {error!r}.",
                "Point again with `bodega snapshot promote ID`; `bodega snapshot list` names them.",
            ) from error
        return _Pointer(names[0], tuple(names[1:]))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SnapshotError(f"{self.root} cannot be written: {error}.", "Mend the rights of the folder.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _is_orphan(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # its owner lives
    finally:
        os.close(handle)
    return True
