"""Who works on a run: one process at a time, named, and a dead one is no obstacle.

RUN/.lock   {"host", "pid", "started", "boot", "since"} of the last holder; "ended" once it let go by itself

The kernel's lock is what decides. Where a file system may keep locks from other machines (some network mounts), the record
decides as far as it can be checked, and what cannot be is said.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import RunLocked

_LOCK = ".lock"
_BOOT, _MOUNTS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/mountinfo")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# Kinds of mount whose locks reach every machine, each with the option that would keep them at home.
_SHARED = {
    "nfs": "local_lock=",
    "nfs4": "local_lock=",
    "lustre": "localflock",
    "ceph": "",
    "gpfs": "",
    "gfs2": "localflocks",
}
_UNSURE = ("fuse", "cifs", "smb", "9p", "virtiofs", "afs", "vbox", *_SHARED)
_held: dict[Path, int] = {}  # locks of this process, with how many nested users each has


@dataclass(frozen=True)
class Holder:
    """A process that works, or worked, on a run. started: clock ticks after boot, which tell it from a later one of its pid."""

    host: str
    pid: int
    started: int
    boot: str
    since: str
    ended: bool = False

    @classmethod
    def this_process(cls) -> Holder:
        """We, from now on."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or 0, _boot(), now)

    @property
    def lives(self) -> bool | None:
        """Whether it is still at it; None where that cannot be told from this machine."""
        if self.ended:
            return False
        if (self.host, self.boot) != (socket.gethostname(), _boot()):
            return None  # another machine, or another container of this one
        return _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder_of(run: Path) -> Holder | None:
    """Who holds a run, or held it last; None where nobody ever did, or the record is from a write that was cut off."""
    try:
        record: Any = json.loads((run / _LOCK).read_text())
        return Holder(**record)
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run for this process while the body runs; the kernel lets go of it when the process dies.

    Nested uses within one process share the lock, so that a recipe may call another.

    Raises:
        RunLocked: another process holds it; names the process and since when.
    """
    path = (run / _LOCK).resolve()
    if _held.get(path):
        _held[path] += 1
        try:
            yield
        finally:
            _held[path] -= 1
        return
    with _taken(run, path) as file:
        mine = Holder.this_process()
        _write(file, mine)
        _held[path] = 1
        try:
            yield
        finally:
            del _held[path]
            with contextlib.suppress(OSError, ValueError):  # the run may have been removed, or its disk be full
                _write(file, Holder(**(asdict(mine) | {"ended": True})))


@contextlib.contextmanager
def _taken(run: Path, path: Path) -> Iterator[Any]:
    """The file of a lock, held, and still the one under its name: a sweep may have removed the run in between."""
    while True:
        run.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue
        with file:
            _take(run, file.fileno())
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                yield file
                return


def _take(run: Path, handle: int) -> None:
    sure = reaches_all(run)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = holder_of(run) or "another process, which has not written its name yet"
        raise RunLocked(
            f"The run {run} is being worked on by {who}.", "Wait until it has ended, or choose another run."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        sure = False  # there are no locks here: the record is all there is
    last = holder_of(run)
    if sure or last is None or last.lives is False:
        return
    if last.lives:
        raise RunLocked(
            f"The run {run} is being worked on by {last}.", "Wait until it has ended, or choose another run."
        )
    raise RunLocked(
        f"The run {run} was taken by {last} and not given back; from this machine nobody can tell whether it lives, as"
        " the file system may not show its lock here.",
        f"See on {last.host}. If it has ended, remove {run / _LOCK} and run the same command again.",
    )


def reaches_all(path: Path, mounts: str | None = None) -> bool:
    """Whether a lock on this file system is seen by everybody who can write there.

    Args:
        mounts: in the form of /proc/self/mountinfo; by default that file.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:
            return True  # no Linux: a local disk is the rule
    place, kind, options = "", "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        mounted = left.split()[4].replace("\\040", " ")
        if path.resolve().is_relative_to(mounted) and len(mounted) >= len(place):
            words = right.split()
            place, kind, options = mounted, words[0], words[-1]
    if kind in _SHARED:
        at_home = _SHARED[kind]
        return not at_home or at_home not in options or "local_lock=none" in options
    return not kind.startswith(_UNSURE)


def _write(file: Any, holder: Holder) -> None:
    file.truncate(0)
    file.write(json.dumps(asdict(holder)))
    file.flush()


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks after boot; None where there is none, or only its remains."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])
