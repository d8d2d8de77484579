"""The journal: what makes an event durable before it is acknowledged.

A folder a process, held by a lock; segments in it, the last of which grows. Callers that come at once are written together and
wait for one fdatasync (group commit: Gray & Reuter 1992, Transaction Processing, 10.3). Where a sync fails nothing more goes into
that segment, for the kernel may have dropped what it did not write and say so once (Rebello et al. 2020, "Can applications
recover from fsync failures?", USENIX ATC).

    seg-00000007.log    events as they came, raw ids included; not shipped to the log yet
    seg-00000006.kept   shipped: the same without raw ids, so long as today's state may have to be made again
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from engine.errors import JournalUnavailable
from engine.live.events import LiveEvent
from engine.live.segment import framed, read, whole_frames

_log = structlog.get_logger("bodega.journal")
_SEGMENT = re.compile(r"seg-(\d{8})\.(log|kept)")
_ID = re.compile(r"[0-9a-f]{8}")
_WAITING_BYTES = 64 << 20
_HOUR = 3_600_000_000


class _Batch:
    """One caller's events on their way to the disk."""

    __slots__ = ("done", "error", "frame")

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.done = False
        self.error: JournalUnavailable | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the journal."""

    number: int
    path: Path
    shipped: bool


class Journal:
    """Takes events from many threads. Use `open`.

    Args:
        folder: this process's own. lock: descriptor that holds it.
        rotate_bytes: of a segment. most_bytes: of all; beyond it nothing is taken. keep_hours: for which a shipped one is kept.
    """

    def __init__(self, folder: Path, lock: int, rotate_bytes: int, most_bytes: int, keep_hours: float) -> None:
        self.folder, self.name = folder, folder.name
        self._lock_file = lock
        self._rotate, self._most, self._keep = rotate_bytes, most_bytes, int(keep_hours * _HOUR)
        self._turn = threading.Condition()
        self._waiting: list[_Batch] = []
        self._waiting_bytes = 0
        self._writing = False
        self._closed = False
        self._file = -1  # of the segment that grows; -1: none does
        self._size = 0
        self._number = max((each.number for each in self._listed()), default=0)
        self._growing = 0  # number of the segment that grows
        self._others = sum(each.path.stat().st_size for each in self._listed())

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        rotate_bytes: int = 16 << 20,
        most_bytes: int = 2 << 30,
        keep_hours: float = 48.0,
    ) -> Journal:
        """Take over a folder that no process holds, with what the last one left there; or begin a new one.

        Raises:
            JournalUnavailable: the disk refuses.
        """
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in sorted(each for each in root.iterdir() if _ID.fullmatch(each.name) and each.is_dir()):
                if (lock := _held(folder)) is not None:
                    break
            else:
                folder = root / secrets.token_hex(4)
                folder.mkdir(mode=0o700)
                _sync_folder(root)
                lock = _held(folder)
                if lock is None:
                    raise JournalUnavailable(f"{folder} was taken by another process.", "Try again.")
            journal = cls(folder, lock, rotate_bytes, most_bytes, keep_hours)
            journal._mend()
        except OSError as error:
            raise _refused(root, error) from error
        return journal

    def append(self, events: Sequence[LiveEvent]) -> None:
        """Make events durable; returns once they are.

        Raises:
            JournalUnavailable: they are not, and must be sent again.
        """
        if not events:
            return
        batch = _Batch(framed(events))
        with self._turn:
            if self._closed:
                raise JournalUnavailable("The journal is closed.", "Try again: another replica takes it.")
            if self._waiting_bytes + len(batch.frame) > _WAITING_BYTES:
                raise JournalUnavailable("Too many events wait for the disk.", "Try again in a moment.")
            self._waiting.append(batch)
            self._waiting_bytes += len(batch.frame)
            while not batch.done and self._writing:
                self._turn.wait()
            if batch.done:
                if batch.error is not None:
                    raise batch.error
                return
            self._writing = True
            batches, self._waiting, self._waiting_bytes = self._waiting, [], 0
        error: JournalUnavailable | None = JournalUnavailable("The journal failed.", "Send the events again.")
        try:
            self._write(b"".join(each.frame for each in batches))
            error = None
        except JournalUnavailable as refused:
            error = refused
        finally:
            with self._turn:
                for each in batches:
                    each.done, each.error = True, error
                self._writing = False
                self._turn.notify_all()
        if error is not None:
            raise error

    def seal(self) -> None:
        """End the segment that grows, so that it can be shipped."""
        with self._alone():
            self._end()

    def unshipped(self) -> list[Segment]:
        """Segments that grow no more and are not in the log yet, oldest first."""
        return [each for each in self._listed() if not each.shipped and each.number != self._growing]

    def events(self, segment: Segment) -> list[LiveEvent]:
        """What a segment holds.

        Raises:
            JournalUnavailable: it cannot be read.
        """
        try:
            return list(read(segment.path))
        except OSError as error:
            raise _refused(segment.path, error) from error

    def shipped(self, segment: Segment) -> None:
        """A segment is in the log: keep it without raw ids.

        Raises:
            JournalUnavailable: the disk refuses; it will be shipped again, under the same name.
        """
        kept = segment.path.with_suffix(".kept")
        bare = [replace(event, user_id="") for event in self.events(segment)]
        draft = kept.with_name(f".{kept.name}.part")
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write_all(handle, framed(bare) if bare else b"")
                os.fdatasync(handle)
            finally:
                os.close(handle)
            draft.replace(kept)
            _sync_folder(self.folder)
            segment.path.unlink()
            _sync_folder(self.folder)
        except OSError as error:
            raise _refused(kept, error) from error
        self._weigh()

    def replay(self, since: int) -> Iterator[LiveEvent]:
        """What was taken since then, microseconds since the epoch, oldest first.

        Raises:
            JournalUnavailable: a segment cannot be read.
        """
        for segment in self._listed():
            for event in self.events(segment):
                if event.received >= since:
                    yield event

    def forget(self, now_us: int) -> None:
        """Remove what was shipped and is of no more use."""
        for segment in self._listed():
            with contextlib.suppress(OSError):
                if segment.shipped and segment.path.stat().st_mtime * 1e6 < now_us - self._keep:
                    segment.path.unlink()
        self._weigh()

    @property
    def size(self) -> int:
        """Of all segments."""
        return self._others + self._size

    def close(self) -> None:
        """Let go; whoever opens the folder next goes on."""
        with self._alone():
            self._end()
            self._closed = True
        os.close(self._lock_file)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No append is at work for the block."""
        with self._turn:
            while self._writing:
                self._turn.wait()
            self._writing = True
        try:
            yield
        finally:
            with self._turn:
                self._writing = False
                self._turn.notify_all()

    def _write(self, content: bytes) -> None:
        """Append and sync; by one thread at a time."""
        if self.size + len(content) > self._most:
            raise JournalUnavailable(
                f"The journal holds {self.size} bytes of {self._most}.",
                "See what keeps its events from the log (GetStatus), or raise live.most_bytes.",
            )
        try:
            if self._file < 0:
                self._begin()
            _write_all(self._file, content)
            os.fdatasync(self._file)
        except OSError as error:
            self._give_up()
            raise _refused(self.folder, error) from error
        self._size += len(content)
        if self._size >= self._rotate:
            self._end()

    def _begin(self) -> None:
        self._number += 1
        path = self.folder / f"seg-{self._number:08d}.log"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size, self._growing = 0, self._number
        _sync_folder(self.folder)

    def _end(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._others += self._size
        self._file, self._size, self._growing = -1, 0, 0

    def _give_up(self) -> None:
        """Cut off what was not acknowledged, and write no more into this segment."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
        self._end()

    def _mend(self) -> None:
        """Cut torn ends off, and finish what was shipped when a process ended."""
        for draft in self.folder.glob(".*.part"):
            draft.unlink()
        for segment in self._listed():
            double = segment.path.with_suffix(".log")
            if segment.shipped:
                double.unlink(missing_ok=True)
                continue
            _, end = whole_frames(segment.path)
            size = segment.path.stat().st_size
            if end < size:
                _log.warning("segment_torn", segment=segment.path.name, bytes=size - end)
                os.truncate(segment.path, end)
            if not end:
                segment.path.unlink()
        _sync_folder(self.folder)
        self._weigh()

    def _listed(self) -> list[Segment]:
        """Every segment, oldest first; of one that is there twice, the shipped one."""
        found: dict[int, Segment] = {}
        for path in self.folder.iterdir():
            if named := _SEGMENT.fullmatch(path.name):
                number, shipped = int(named[1]), named[2] == "kept"
                if shipped or number not in found:
                    found[number] = Segment(number, path, shipped)
        return [found[number] for number in sorted(found)]

    def _weigh(self) -> None:
        sizes = 0
        for segment in self._listed():
            with contextlib.suppress(OSError):
                sizes += segment.path.stat().st_size if segment.number != self._growing else 0
        self._others = sizes


def _held(folder: Path) -> int | None:
    """A descriptor that holds the folder; None where another process does."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _write_all(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: Path, error: OSError) -> JournalUnavailable:
    return JournalUnavailable(
        f"The journal {path} cannot be used: {error}.",
        "Free its disk or mend its rights; no event of this call counts.",
    )
