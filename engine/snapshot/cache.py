"""A machine's cache: snapshots that were fetched, and which files on this machine were hashed already.

cache/20260131-0123456789ab/   a snapshot fetched whole, each file hashed as it came; its time is when it was last served
cache/.incoming-xxxxxxxx/      one being fetched or staged, or on its way out
cache/.fetch                   held by the one process that fetches; the others wait and find it here
cache/verified/                for each snapshot folder, the files that were hashed, by device, inode, size and times
cache/served-0123abcd          of one store, the id that was served last on this machine

A process that serves a snapshot from here holds a shared lock on its folder, so that no other evicts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from weakref import finalize

from engine.errors import NoSnapshot, SnapshotCorrupt, SnapshotError
from engine.snapshot.layout import MANIFEST, corrupt, file_tables
from engine.snapshot.manifest import FileEntry, Manifest
from engine.snapshot.pointer import ID
from engine.snapshot.reader import Snapshot, hash_file, read_manifest
from engine.snapshot.staging import Staging, loud, seal

_log = logging.getLogger(__name__)
_AT_ONCE = min(4, max(1, (os.cpu_count() or 1) // 2))  # files fetched or hashed side by side: requests need cores too
# A file that is changed within one tick of its clock keeps its times: what is hashed must be older than that.
_TICK_SECONDS = 0.05
Stat = list[int]


class Source(Protocol):
    """Where a snapshot is fetched from."""

    def text(self) -> bytes:
        """The manifest's bytes."""

    def pieces(self, name: str) -> Iterable[bytes]:
        """One file, piece by piece."""


class Cache:
    """One folder, for any number of processes of a machine.

    Args:
        root: made at the first write.
        most: bytes that fetched snapshots may take; an open one and its successor must fit in together.
    """

    def __init__(self, root: Path, most: int) -> None:
        self.root = root
        self.most = most
        self.staging = Staging(root)
        self._records = Staging(root / "verified")

    def open(self, name: str, source: Source | None, verify: bool = True) -> Snapshot:
        """Map a snapshot from here, where it stays until it is let go.

        Raises:
            as `obtain`.
        """
        folder, lease = self.obtain(name, source, verify)
        try:
            snapshot = Snapshot.open(folder, verify=False)
        except BaseException:
            let_go(lease)
            raise
        finalize(snapshot, let_go, lease)
        return snapshot

    def obtain(self, name: str, source: Source | None, verify: bool = True) -> tuple[Path, int]:
        """A folder that holds a snapshot whole; fetched where it is not here yet, by one process for all.

        Args:
            source: to fetch from; None where only what is here will do.

        Returns:
            the folder, and a descriptor that keeps it from being evicted until it is closed.

        Raises:
            NoSnapshot: it is not here, and there is no source.
            SnapshotTooNew, SnapshotCorrupt: it is not what its manifest says; nothing of it stays.
            SnapshotError: the store does not give it, the disk refuses, or the cache is too small.
        """
        folder = self.root / name
        for _ in range(3):
            lease = _lease(folder)
            if lease is None:
                if source is None:
                    raise NoSnapshot(f"{self.root} does not hold {name}.", "Wait for its store.")
                with self.staging.locked(".fetch"):
                    if not folder.exists():
                        self._fetch(name, source)
                continue
            try:
                if verify:
                    self.verify_once(folder)
                with contextlib.suppress(OSError):
                    os.utime(folder)
            except (SnapshotCorrupt, NoSnapshot) as error:
                os.close(lease)
                _log.warning("The copy of %s in the cache is fetched again: %s", name, error)
                self.discard(name)
                continue
            except BaseException:
                os.close(lease)
                raise
            return folder, lease
        raise SnapshotError(
            f"{folder} does not stay as it was fetched.", "Look after this disk, and who else removes files there."
        )

    def verify_once(self, folder: Path) -> int:
        """Hash the files of a snapshot that were not hashed on this machine since they last changed.

        Returns:
            how many were hashed.

        Raises:
            SnapshotCorrupt: a file is not what the manifest says; names it.
            NoSnapshot, SnapshotTooNew: as `read_manifest`.
        """
        manifest = read_manifest(folder)
        digest = hash_file(folder / MANIFEST)
        record = self._record_of(folder)
        with self._held(record):
            known = _known(record, digest)
            left = [name for name in manifest.files if known.get(name) != _stat(folder / name)]
            if not left:
                return 0
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = pool.map(lambda name: _checked(folder / name, manifest.files[name]), left)
                hashed = dict(zip(left, found, strict=True))
            self._remember(record, folder, digest, known | hashed)
        return len(left)

    def discard(self, name: str) -> None:
        """Remove one copy. Whoever has it mapped keeps reading it."""
        with self.staging.locked(".fetch"), contextlib.suppress(SnapshotError):
            self.staging.discard(self.root / name)

    def note_served(self, of: str, name: str) -> None:
        """Keep which snapshot of a store is served on this machine; without that, a start needs the store."""
        path = self._note_of(of)
        try:
            if self.served_last(of) != name:
                _write(path, (name.encode(),))
        except OSError as error:
            _log.warning("%s cannot be kept: %s", path, error)

    def served_last(self, of: str) -> str:
        """The id that `note_served` kept, '' for none."""
        try:
            name = self._note_of(of).read_text()
        except (OSError, ValueError):
            return ""
        return name if ID.fullmatch(name) else ""

    def evict(self, need: int) -> list[str]:
        """Make room for so many bytes: first what was served longest ago, never what is open or being fetched.

        Raises:
            SnapshotError: there is no room.
        """
        here = sorted(
            (path for path in self.root.iterdir() if ID.fullmatch(path.name)), key=lambda path: path.stat().st_mtime
        )
        sizes = {path: sum(each.stat().st_size for each in path.iterdir()) for path in here}
        removed: list[str] = []
        if need > self.most:  # whatever is removed
            here = []
        for path in here:
            if sum(sizes.values()) + need <= self.most:
                break
            claim = _claim(path)
            if claim is None:
                continue
            try:
                self.staging.discard(path)
            finally:
                os.close(claim)
            del sizes[path]
            removed.append(path.name)
        if sum(sizes.values()) + need > self.most:
            held = ", ".join(path.name for path in sizes) or "nothing"
            raise SnapshotError(
                f"{self.root} may hold {self.most:,} bytes: {need:,} are to come and {held} is in use.",
                "Raise cache_gib to twice the size of a snapshot at least.",
            )
        return removed

    def _fetch(self, name: str, source: Source) -> None:
        """Steps: the manifest, room, the files hashed as they come, the manifest's file, and the name."""
        text = source.text()
        manifest = Manifest.from_json(text, f"{name}/{MANIFEST}")
        if manifest.snapshot_id != name:
            raise corrupt(Path(name), f"it holds {manifest.snapshot_id}")
        if set(file_tables(manifest.shards)) != set(manifest.files):
            raise corrupt(Path(name, MANIFEST), "its shards and its list of files disagree")
        with self.staging.locked():
            self.staging.sweep()
            self.evict(len(text) + sum(entry.bytes for entry in manifest.files.values()))
        staged = self.staging.new()
        began = time.monotonic()
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                waits = [pool.submit(_take, staged, each, entry, source) for each, entry in manifest.files.items()]
                try:
                    for wait in waits:
                        wait.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            with loud(staged):
                _write(staged / MANIFEST, (text,))
            seal(staged)
            stats = {each: _stat(staged / each) for each in manifest.files}
            with loud(self.root):
                staged.rename(self.root / name)
        except BaseException:
            self.staging.drop(staged)
            raise
        self.staging.release(staged)
        folder = self.root / name
        self._remember(self._record_of(folder), folder, hashlib.sha256(text).hexdigest(), stats)
        _log.info("Fetched %s in %.1f s", name, time.monotonic() - began)

    def _note_of(self, of: str) -> Path:
        return self.root / f"served-{hashlib.sha256(of.encode()).hexdigest()[:8]}"

    def _record_of(self, folder: Path) -> Path:
        where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        return self._records.root / f"{folder.name}-{where}.json"

    @contextlib.contextmanager
    def _held(self, record: Path) -> Iterator[None]:
        # One process hashes, the others wait and read what it found. Without a cache that can be written, each hashes.
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._records.locked(f".{record.stem}.lock"))
            except SnapshotError as error:
                _log.warning("Every start hashes every file: %s", error)
            yield

    def _remember(self, record: Path, folder: Path, digest: str, files: dict[str, Stat]) -> None:
        text = json.dumps({"folder": str(folder.resolve()), "manifest": digest, "files": files})
        try:
            self._records.root.mkdir(parents=True, exist_ok=True)
            _write(record, (text.encode(),))
            for other in self._records.root.glob("*.json"):
                if not Path(json.loads(other.read_bytes())["folder"]).exists():
                    other.unlink(missing_ok=True)
                    other.with_name(f".{other.stem}.lock").unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be kept: %s", record, error)


def _take(staged: Path, name: str, entry: FileEntry, source: Source) -> None:
    """Write one file as it comes, and refuse it when it is not what the manifest says."""
    seen = hashlib.sha256()
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in source.pieces(name):
            size += len(piece)
            if size > entry.bytes:
                raise corrupt(Path(name), f"expected {entry.bytes} bytes, found more")
            seen.update(piece)
            yield piece

    with loud(staged / name):
        _write(staged / name, counted())
    if size != entry.bytes:
        raise corrupt(Path(name), f"expected {entry.bytes} bytes, found {size}")
    if seen.hexdigest() != entry.sha256:
        raise corrupt(Path(name), "its SHA-256 differs from the manifest's")


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Whole and durably: what is remembered as hashed must be there after a power cut."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _checked(path: Path, entry: FileEntry) -> Stat:
    """The stat under which a file was found to be what the manifest says."""
    for _ in range(3):
        before = _stat(path)
        if before[2] != entry.bytes:
            raise corrupt(path, f"expected {entry.bytes} bytes, found {before[2]}")
        age = time.time() - before[4] / 1e9
        if 0 <= age < _TICK_SECONDS:
            time.sleep(_TICK_SECONDS - age)
        if hash_file(path) != entry.sha256:
            raise corrupt(path, "its SHA-256 differs from the manifest's")
        if _stat(path) == before:
            return before
    raise corrupt(path, "it changes while it is read")


def _stat(path: Path) -> Stat:
    try:
        found = path.stat()
    except OSError as error:
        raise corrupt(path, f"it is missing ({error.strerror})") from error
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _known(record: Path, digest: str) -> dict[str, Stat]:
    try:
        held = json.loads(record.read_bytes())
        return dict(held["files"]) if held["manifest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # hashing again is always right


def _lease(folder: Path) -> int | None:
    """A shared lock on a folder that is still the one under its name."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        same = os.path.samestat(os.fstat(handle), folder.stat())
    except OSError:
        same = False
    if not same:  # evicted in between
        os.close(handle)
        return None
    return handle


def _claim(folder: Path) -> int | None:
    """The only lock on a folder, None while somebody serves from it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def let_go(lease: int) -> None:
    """End a lease that `Cache.obtain` gave: the folder was served until now."""
    with contextlib.suppress(OSError):
        os.utime(lease)
    os.close(lease)
