"""Where a log's files lie, on whatever filesystem, and whether they have changed."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from engine.activity.mapping import DataSettings, near_miss
from engine.errors import DataError, SettingsError

UNREADABLE = "unreadable"
LIVE = "live:/"  # begins the names of files below data.live, which may lie under the same dates as the log's
_AT_ONCE = 8 << 20  # bytes; each read is a request to an object store
_RACY_NS = 2_000_000_000  # a file that changed so shortly before it was read may change again within its clock's tick


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file: its path inside the filesystem, its name below data.path, or LIVE and that below data.live, bytes, and when it
    changed, ns since 1970 or 0.
    """

    path: str
    name: str
    bytes: int
    modified: int


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path inside it of a URI or a local path.

    Of an object store, keys and endpoint may be in the environment instead (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).
    One that does not answer is an error of the first call, after about six seconds.

    Raises:
        DataError: the scheme is unknown.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
    try:
        filesystem, inside = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError) as error:
        told = without_secrets(f"{path} cannot be opened: {error}")
        raise DataError(told, "Use a local path, file://, s3:// or gs://.") from None  # its text repeats the URI
    return filesystem, inside


def without_secrets(text: str) -> str:
    """A text in which no URI tells the key that it may hold."""
    return re.sub(r"(?<=://)\S*@", "***@", text)


def log_files(data: DataSettings) -> list[LogFile]:
    """The log's files below `data.path`, by name.

    Names that begin with _ or . are work in progress, by Hive's custom, and left alone.

    Raises:
        DataError: an entry of `data.log` is not there, or none holds a file.
    """
    filesystem, root = locate(data.path)
    found: dict[str, LogFile] = {}
    try:
        for part in data.log:
            for entry in _entries(filesystem, root, part, without_secrets(data.path)):
                name = entry.path.removeprefix(root).strip("/")
                found[name] = LogFile(entry.path, name, entry.size or 0, entry.mtime_ns or 0)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a name that is no text
        told = f"{without_secrets(data.path)} cannot be listed: {error}"
        raise DataError(told, "Check data.path, that its store answers, and who may read it.") from error
    if not found:
        told = f"No Parquet file under {without_secrets(data.path)} in {', '.join(data.log)}."
        raise DataError(told, "Check data.path and data.log.")
    if any(name.startswith(LIVE) for name in found):
        raise DataError(f"data.log names files under '{LIVE}'.", "Give that folder another name.")
    return [found[name] for name in sorted(found)]


def live_files(data: DataSettings) -> list[LogFile]:
    """The files below `data.live`, by name; none where it is empty or not there yet.

    Raises:
        DataError: the folder cannot be listed. SettingsError: there are some, and the log has an order in place of times.
    """
    if not data.live:
        return []
    filesystem, root = locate(data.live)
    shown = without_secrets(data.live)
    try:
        if filesystem.get_file_info(root).type == fs.FileType.NotFound:
            return []
        entries = _entries(filesystem, root, ".", shown)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        told = f"{shown} cannot be listed: {error}"
        raise DataError(told, "Check data.live, that its store answers, and who may read it.") from error
    if entries and data.order:
        raise SettingsError(
            f"data.order gives the log an order in place of times, and the events in {shown} have times.",
            "Set data.live= to leave them out, or map a time in data.columns.",
        )
    found = (
        LogFile(entry.path, LIVE + entry.path.removeprefix(root).strip("/"), entry.size or 0, entry.mtime_ns or 0)
        for entry in entries
    )
    return sorted(found, key=lambda file: file.name)


def _entries(filesystem: fs.FileSystem, root: str, part: str, shown: str) -> list[fs.FileInfo]:
    path = f"{root}/{part}".removesuffix("/.")
    about = filesystem.get_file_info(path)
    if about.type == fs.FileType.NotFound:
        beside = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
        near = near_miss(part, [entry.base_name for entry in beside])
        meant = f"; did you mean '{near}'?" if near else "."
        raise DataError(f"data.log names '{part}', which is not in {shown}{meant}", "Check data.path and data.log.")
    if about.type == fs.FileType.File:
        return [about]
    inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    if isinstance(filesystem, fs.LocalFileSystem):  # passes over links that lead nowhere: reading shall refuse them
        inside += [fs.FileInfo(str(link)) for link in Path(path).rglob("*.parquet") if not link.exists()]
    return [entry for entry in inside if entry.type != fs.FileType.Directory and _counts(entry.path[len(path) :])]


def _counts(inside: str) -> bool:
    return inside.endswith(".parquet") and not any(part[0] in "_." for part in PurePosixPath(inside.strip("/")).parts)


def digest(filesystem: fs.FileSystem, path: str) -> str:
    """SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(_AT_ONCE):
            total.update(chunk)
    return total.hexdigest()


class Digests:
    """SHA-256 of files, remembered by name, size and time of change: an unchanged file is not read again.

    Args:
        memory: a JSON file; missing or broken: nothing is remembered.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory

    def of(self, filesystem: fs.FileSystem, files: Iterable[LogFile], threads: int = 8) -> dict[str, str]:
        """The digest of each file by name; UNREADABLE for what cannot be read, which reading it will explain."""
        files, known = list(files), self._remembered()
        now = time.time_ns()
        stamps = {file.name: f"{file.path} {file.bytes} {file.modified}" for file in files}
        fresh = [file for file in files if known.get(file.name, ("", ""))[0] != stamps[file.name]]
        with ThreadPoolExecutor(threads) as pool:
            made = dict(
                zip(
                    [file.name for file in fresh],
                    pool.map(lambda file: _sha(filesystem, file.path), fresh),
                    strict=True,
                )
            )
        found = {file.name: made.get(file.name) or known[file.name][1] for file in files}
        sure = {
            file.name: (stamps[file.name], found[file.name])
            for file in files
            if found[file.name] != UNREADABLE and 0 < file.modified < now - _RACY_NS
        }
        if any(known.get(name) != entry for name, entry in sure.items()):
            self._remember({**known, **sure})
        return found

    def _remembered(self) -> dict[str, tuple[str, str]]:
        try:
            content = json.loads(self._memory.read_text())
            return {str(name): (str(stamp), str(sha)) for name, (stamp, sha) in content.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _remember(self, known: dict[str, tuple[str, str]]) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memory.with_name(f".{self._memory.name}.{secrets.token_hex(4)}")
        draft.write_text(json.dumps(known))
        draft.replace(self._memory)


def _sha(filesystem: fs.FileSystem, path: str) -> str:
    try:
        return digest(filesystem, path)
    except (pa.ArrowException, OSError):
        return UNREADABLE
