"""A Ray of one's own: its folder and token, and the sweep of what killed owners left of theirs.

/tmp/bodega-ray-xxxxxxxx/   locked by its owner while that lives; removed when it ends, or by the next start
    owner.json              who that is
    token                   what its Ray asks for
    1/                      files of its first Ray
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from jobs.lock import Holder

_PREFIX, _OWNER, _LOGS = "bodega-ray-", "owner.json", "bodega-logs-"
_MARK = "BODEGA_RAY"  # in the environment of all that our Ray starts: the folder it belongs to
_LONGEST_FOLDER = 40  # Ray's socket paths add about 65 characters and may not pass 107
_SECONDS_TO_DIE = 10.0
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task that asked for no GPU sees none
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too it means: listen on loopback alone
    "RAY_AUTH_MODE": "token",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # `each` raises the first error; those of its siblings would be noise
}
_home: Path | None = (
    None  # this process's; the token outlives a connection, as Ray's threads may read it while they stop
)
_lock = -1
_started = 0


def new_folder() -> Path:
    """A folder for the files of one more Ray of this process."""
    global _started
    _started += 1
    folder = home() / str(_started)
    folder.mkdir()
    return folder


def mark() -> dict[str, str]:
    """What the environment of a Ray of ours holds, so that a later start knows whose it was."""
    return {_MARK: str(home())}


def guard() -> None:
    """Have the next local Ray keep to loopback and ask for our token, even if Ray was imported before."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    os.environ.update(_LOCAL)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(home() / "token")
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def keep_logs(folder: Path) -> Path | None:
    """Move the logs of a Ray that has ended to where no sweep finds them."""
    for logs in folder.glob("session_2*/logs"):
        kept = Path(tempfile.mkdtemp(prefix=_LOGS))
        return Path(shutil.move(logs, kept))
    return None


def end_ours() -> None:
    """Kill whatever is left of this process's Rays, at once, and remove their files."""
    if _home is not None:
        _end_processes(_home)
        for folder in _home.glob("[0-9]*"):
            shutil.rmtree(folder, ignore_errors=True)


def home() -> Path:
    """The folder of this process's Rays; made, and locked, at the first call."""
    global _home, _lock
    while _home is None:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # a sweep took it for a dead one's: another, then
            _lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (made / _OWNER).write_text(json.dumps(asdict(Holder.this_process())))
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            handle = os.open(made / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            _home = made
    return _home


def sweep() -> list[str]:
    """End what Rays of killed owners left running, and remove their folders. No other Ray is ever touched: a process counts
    only if it was started with the folder's name in its environment, or bears Ray's title and writes its log there, and the
    folder's lock is free, so its owner is dead.

    Returns:
        names of the folders removed.
    """
    bases = {Path(_base()), Path(tempfile.gettempdir())}
    homes = {path for base in bases for path in base.glob(f"{_PREFIX}*")} | {each for each, _ in _marked()}
    return [each.name for each in sorted(homes - {_home}) if _end(each)]


def end(left: Path) -> None:
    """End what belongs to a folder whose owner is dying, and remove it."""
    until = time.monotonic() + _SECONDS_TO_DIE
    while left.exists() and not _end(left) and time.monotonic() < until:
        time.sleep(0.05)


def _end(left: Path) -> bool:
    if not left.name.startswith(_PREFIX):
        return False  # whatever an environment says, this is none of ours
    with _locked(left) as free:
        if not free or not ((left / _OWNER).exists() or not any(left.iterdir())) or not _end_processes(left):
            return False
        shutil.rmtree(left, ignore_errors=True)
        return True


def _base() -> str:
    base = tempfile.gettempdir()
    return base if len(base) <= _LONGEST_FOLDER else "/tmp"


@contextlib.contextmanager
def _locked(left: Path) -> Iterator[bool]:
    """Whether nobody else holds a folder; while the body runs, we do."""
    try:
        handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False  # gone, or another user's
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def _marked() -> Iterator[tuple[Path, int]]:
    """Processes of this user that some Ray of ours started: its folder and their id."""
    for entry in Path("/proc").glob("[0-9]*"):
        owner = _mark_of(int(entry.name))
        if owner is not None:
            yield owner, int(entry.name)


def _mark_of(pid: int) -> Path | None:
    process = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for setting in (process / "environ").read_bytes().split(b"\0"):
            if setting.startswith(f"{_MARK}=".encode()):
                return Path(os.fsdecode(setting.partition(b"=")[2]))
        # Ray's agents write their title over their environment; they are known by the log that they hold open for writing.
        if (process / "cmdline").read_bytes().startswith(b"ray::"):
            return next((found for handle in (process / "fd").iterdir() if (found := _written_below(handle))), None)
    return None


def _written_below(handle: Path) -> Path | None:
    """The folder of a Ray of ours in which a process holds a file open for writing."""
    with contextlib.suppress(OSError, IndexError):
        path = Path(handle.readlink())
        for folder in path.parents:
            if folder.name.startswith(_PREFIX):
                flags = (handle.parents[1] / "fdinfo" / handle.name).read_text().split("flags:")[1].split()[0]
                return folder if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY else None
    return None


def _end_processes(left: Path) -> bool:
    """Kill what belongs to a folder, also what is started meanwhile; false where some of it will not die."""
    if not hasattr(os, "pidfd_open"):
        return True  # no Linux: nothing can be told apart safely, and nothing is killed
    until = time.monotonic() + _SECONDS_TO_DIE
    while found := [pid for its, pid in _marked() if its == left]:
        dying = []
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                dying.append(os.pidfd_open(pid))
                # Looked at again, now that the handle names one process: an id may have passed to another meanwhile.
                if _mark_of(pid) == left:
                    signal.pidfd_send_signal(dying[-1], signal.SIGKILL)
        for handle in dying:
            select.select([handle], [], [], max(0.0, until - time.monotonic()))
            os.close(handle)
        if time.monotonic() > until:
            return False
    return True
