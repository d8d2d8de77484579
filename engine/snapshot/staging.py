"""Folders that are being written, or are on their way out: each is locked by its owner while that lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import SnapshotError
from engine.snapshot.layout import sync_folder

_INCOMING = ".incoming-"


class Staging:
    """Unfinished folders below one root, which is made at the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._owned: dict[Path, int] = {}  # folders and the descriptors that lock them

    def new(self) -> Path:
        """An empty folder of this process; `sweep` removes it once the process is gone."""
        with self.locked(), loud(self.root):
            folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            folder.chmod(0o755)  # the reader may be another user
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._owned[folder] = handle
        return folder

    def release(self, folder: Path) -> None:
        """The folder has moved into place or is gone."""
        handle = self._owned.pop(folder, None)
        if handle is not None:
            os.close(handle)

    def drop(self, folder: Path) -> None:
        """Remove a folder that is wanted no more, whole or not."""
        shutil.rmtree(folder, ignore_errors=True)
        self.release(folder)

    def discard(self, folder: Path) -> None:
        """Remove a finished folder. First out of sight: a removal that is cut off leaves nothing half under its name."""
        with loud(folder):
            grave = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            folder.rename(grave / folder.name)
        shutil.rmtree(grave, ignore_errors=True)

    def sweep(self) -> list[str]:
        """Remove what dead owners left; call it inside `locked`.

        Returns:
            names of the folders removed.
        """
        removed = []
        for folder in sorted(self.root.glob(f"{_INCOMING}*")):
            if folder not in self._owned and _is_orphan(folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return removed

    @contextmanager
    def locked(self, name: str = ".lock") -> Iterator[None]:
        """Alone on this machine; a killed owner lets go. Waits.

        Raises:
            SnapshotError: the folder cannot be written.
        """
        with loud(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def seal(folder: Path) -> None:
    """Make the files of a finished folder read-only, and its names durable.

    Raises:
        SnapshotError: the disk refuses.
    """
    with loud(folder):
        for path in folder.iterdir():
            path.chmod(0o444)
        sync_folder(folder)


@contextmanager
def loud(path: Path) -> Iterator[None]:
    """Tell what a disk refuses.

    Raises:
        SnapshotError: an OSError came up.
    """
    try:
        yield
    except OSError as error:
        raise SnapshotError(
            f"{path} cannot be written: {error}.", "Free the disk or mend its rights, and run again."
        ) from error


def _is_orphan(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False  # another sweep took it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # its owner lives
    finally:
        os.close(handle)
    return True
