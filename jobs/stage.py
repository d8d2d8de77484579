"""What a stage of a run has finished, so that a rerun skips what is whole and a crash leaves nothing half-read.

RUN/<stage>/_begun.json         what the stage was started with
RUN/<stage>/_asked.json         which shards it is made of, as far as it is known
RUN/<stage>/_shards/<name>.json a shard that is done: size and SHA-256 of each of its files
RUN/<stage>/_stage.json         written last: the stage is whole
RUN/.lock                       who works on the run; see jobs/lock.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from engine.errors import DataError
from jobs.lock import run_lock

FORMAT = 1
_BEGUN, _ASKED, _SHARDS, _WHOLE = "_begun.json", "_asked.json", "_shards", "_stage.json"
__all__ = [
    "Stage",
    "StageFile",
    "StageManifest",
    "fingerprint",
    "finished",
    "plain",
    "read_json",
    "run_lock",
    "stage",
    "write_json",
]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")


@dataclass(frozen=True)
class StageFile:
    """Size and SHA-256 of a file that a stage left."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class StageManifest:
    """A stage that is whole."""

    name: str
    folder: Path
    inputs: dict[str, str]
    config: str  # fingerprint of the stage's config
    files: dict[str, StageFile]  # by path inside the folder
    shards: dict[str, dict[str, Any]]  # facts of each shard
    facts: dict[str, Any]
    seconds: float

    @property
    def fingerprint(self) -> str:
        """Names the output: equal exactly when inputs, config and every byte are. An input of the next stage."""
        return fingerprint(self.name, self.inputs, self.config, self.files)


def fingerprint(*parts: Any) -> str:
    """SHA-256, as hex, over a canonical JSON text of the parts. Mappings, sets: their order does not count.

    Raises:
        TypeError: a part holds something that has no JSON form.
    """
    text = json.dumps([plain(part) for part in parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def finished(run: Path, name: str) -> StageManifest:
    """The manifest of a stage that another one builds on.

    Raises:
        DataError: the stage is not finished, or a file of it is missing or has another size.
    """
    remedy = f"Run `python -m jobs.{name}` with the same settings first."
    manifest = _read_whole(run / name, name)
    if manifest is None:
        raise DataError(f"The stage '{name}' of the run {run} is not finished.", remedy)
    broken = _broken(manifest.folder, manifest.files)
    if broken:
        raise DataError(f"The stage '{name}' of the run {run} has lost or changed its file {broken}.", remedy)
    return manifest


@dataclass
class Stage:
    """One stage at work; made by `stage`. Plain data, so that a task on another node may call `shard_done`."""

    folder: Path
    name: str
    inputs: dict[str, str]
    config: str
    whole: bool  # nothing is left to do
    began: float = field(default_factory=time.time)
    _asked: set[str] = field(default_factory=set)

    def shards_left(self, names: Iterable[str]) -> list[str]:
        """The shards without a valid marker, in order; none where the stage is whole."""
        names = list(names)
        if self.whole:
            return []
        if not self._asked.issuperset(names):
            self._asked |= set(names)
            write_json(self.folder / _ASKED, {"shards": sorted(self._asked)})
        return [name for name in names if _read_shard(self.folder, name) is None]

    def shard_done(self, name: str, files: Sequence[str | Path], facts: Mapping[str, Any] | None = None) -> None:
        """Make the files of a shard durable and mark it done, with facts about it.

        Args:
            name: of the shard: letters, digits and . _ = - only.
            files: what it consists of, inside the stage's folder.
            facts: what can be said in JSON about it, such as the number of rows.

        Raises:
            DataError: the stage was begun anew in the meantime, with other inputs or another config.
        """
        # A task may outlive its driver for a moment; what it made must not pass for a part of the next one's work.
        if read_json(self.folder / _BEGUN) != _begun(self.inputs, self.config):
            raise DataError(
                f"The stage '{self.name}' was begun anew while its shard '{name}' was made.",
                "Run the same command again.",
            )
        listed: dict[str, Any] = {}
        for file in files:
            path = self.folder / file
            listed[path.relative_to(self.folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sealed(path)}
        for parent in {(self.folder / file).parent for file in files}:
            _sync_folder(parent)
        marker = {"files": listed, "facts": plain(dict(facts or {}))}
        write_json(_marker(self.folder, name), marker)

    def shard_facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the shards that are done, by name."""
        return {name: marker["facts"] for name, marker in _read_shards(self.folder).items()}

    def finish(self, facts: Mapping[str, Any] | None = None) -> StageManifest:
        """Declare the stage whole; the last thing that is written. Does nothing where it was whole before.

        Raises:
            DataError: a shard that `shards_left` was asked about is not done.
        """
        if self.whole:
            return finished(self.folder.parent, self.name)
        shards = _read_shards(self.folder)
        missing = sorted(self._asked - set(shards))
        if missing:
            raise DataError(
                f"The stage '{self.name}' has {len(missing)} shards that are not done, the first '{missing[0]}'.",
                f"Run `python -m jobs.{self.name}` again: finished shards are kept.",
            )
        _sweep(self.folder)
        content = {
            "format": FORMAT,
            "stage": self.name,
            "inputs": self.inputs,
            "config": self.config,
            "files": {path: about for marker in shards.values() for path, about in marker["files"].items()},
            "shards": {name: marker["facts"] for name, marker in shards.items()},
            "facts": plain(dict(facts or {})),
            "seconds": round(time.time() - self.began, 3),
        }
        write_json(self.folder / _WHOLE, content)
        self.whole = True
        return finished(self.folder.parent, self.name)


@contextlib.contextmanager
def stage(run: Path, name: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> Iterator[Stage]:
    """Open a stage of a run; what was left by other inputs or another config is removed first.

    Args:
        run: folder of the run.
        name: of the stage; also the name of its folder and of its recipe.
        inputs: what it reads, each with a fingerprint (of files, or of the stage before: `finished(...).fingerprint`).
        config: the settings that its output depends on, and no others.

    Yields:
        The stage; where its `whole` is true the body has nothing to do.
    """
    folder = run / name
    begun = _begun(inputs, fingerprint(config))
    if read_json(folder / _BEGUN) != begun:
        _empty(folder)
        (folder / _SHARDS).mkdir(parents=True, exist_ok=True)
        write_json(folder / _BEGUN, begun)
        _sync_folder(run)
    manifest = _read_whole(folder, name)
    whole = manifest is not None and not _broken(folder, manifest.files)
    if not whole:
        (folder / _WHOLE).unlink(missing_ok=True)
        _sweep(folder)
    yield Stage(folder, name, dict(inputs), fingerprint(config), whole)


def _begun(inputs: Mapping[str, str], config: str) -> dict[str, Any]:
    return {"format": FORMAT, "inputs": dict(sorted(inputs.items())), "config": config}


def plain(part: Any) -> Any:
    """A JSON-able twin of a value; dataclasses, paths, enums, times, bytes, sets and NumPy scalars are understood."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {each.name: plain(getattr(part, each.name)) for each in dataclasses.fields(part)}
    if isinstance(part, Mapping):
        return {str(plain(key)): plain(value) for key, value in part.items()}
    if isinstance(part, (set, frozenset)):
        return sorted((plain(each) for each in part), key=lambda each: json.dumps(each, sort_keys=True))
    if isinstance(part, (list, tuple)):
        return [plain(each) for each in part]
    special: Sequence[tuple[type, Callable[[Any], Any]]] = (
        (enum.Enum, lambda each: plain(each.value)),
        (PurePath, str),
        (datetime.date, lambda each: each.isoformat()),
        (bytes, lambda each: each.hex()),
    )
    for kind, convert in special:
        if isinstance(part, kind):
            return convert(part)
    if hasattr(part, "item") and getattr(part, "shape", None) == ():
        return part.item()
    if part is None or isinstance(part, (str, int, float, bool)):
        return part
    raise TypeError(f"{type(part).__name__} has no JSON form: pass plain values, or a fingerprint of it.")


def _marker(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(f"A shard's name is made of letters, digits and . _ = - only, not {name!r}.")
    return folder / _SHARDS / f"{name}.json"


def _read_shard(folder: Path, name: str) -> dict[str, Any] | None:
    marker = read_json(_marker(folder, name))
    if marker is None or _broken(folder, {path: StageFile(**about) for path, about in marker["files"].items()}):
        return None
    return marker


def _read_shards(folder: Path) -> dict[str, dict[str, Any]]:
    names = sorted(path.name.removesuffix(".json") for path in (folder / _SHARDS).glob("*.json"))
    found = ((name, _read_shard(folder, name)) for name in names)
    return {name: marker for name, marker in found if marker is not None}


def _read_whole(folder: Path, name: str) -> StageManifest | None:
    content = read_json(folder / _WHOLE)
    if content is None or content.get("format") != FORMAT:
        return None
    files = {path: StageFile(**about) for path, about in content["files"].items()}
    keys = ("inputs", "config", "shards", "facts", "seconds")
    return StageManifest(name=name, folder=folder, files=files, **{key: content[key] for key in keys})


def _broken(folder: Path, files: Mapping[str, StageFile]) -> str:
    """The first file that is missing or has another size than recorded, or ''."""
    for path, about in files.items():
        try:
            size = (folder / path).stat().st_size
        except OSError:
            return path
        if size != about.bytes:
            return path
    return ""


def _empty(folder: Path) -> None:
    # What vouches for the rest goes first: a crash in between leaves files that nobody believes in.
    for name in (_WHOLE, _BEGUN):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        _sync_folder(folder)
        shutil.rmtree(folder)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left: files are written under a hidden name, and renamed."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _sealed(path: Path) -> str:
    """Push a file to the disk and return its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None  # absent, or from a write that a crash cut off
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, durably, whole or not at all."""
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    with waiting.open("w") as file:
        json.dump(content, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    waiting.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
