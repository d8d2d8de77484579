"""The manifest: what a snapshot is, where it came from, and each file's checksum. Written last, read first."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from engine.errors import SnapshotCorrupt, SnapshotError, SnapshotTooNew
from engine.schema import FORMAT_VERSION

_T = TypeVar("_T")
_OUTSIDE_THE_ID = ("snapshot_id", "created_at")  # the same run must give the same id whenever it is written


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a snapshot."""

    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a snapshot came from."""

    run: str
    config_hash: str = ""
    model: str = ""
    training_root: str = ""  # what the model's weights were last trained on from nothing
    key_id: str = ""  # of the rotating user key
    ledger_sequence: int = 0
    audit_head: str = ""  # last hash of the audit log's chain at that sequence
    epsilon_spent: float = 0.0
    protocol: str = ""  # fingerprint of how the metrics were measured: others are not comparable
    forced: str = ""  # why it was published past a gate


@dataclass(frozen=True, kw_only=True)
class About:
    """What the night knows of a snapshot before its files are written.

    Args:
        as_of: the moment up to which the log was read; with a time zone.
        vocabulary: the consent vocabulary, as its own JSON.
        profiles: fallback profiles, each {"name": str, "groups": int}; the first is the whole.
        decays: half-lives or horizons of the decayed sums; how many there are sets the width of the sums.
        width: of the item vectors.
        neighbours: stored for each item.
        shards: user shards, numbered from 0.
        metrics: finite figures by name.

    Raises:
        SnapshotError: `as_of` has no zone, a size is out of range, a metric is not finite, or something is no JSON.
    """

    as_of: datetime
    lineage: Lineage
    vocabulary: Mapping[str, Any]
    profiles: tuple[Mapping[str, Any], ...]
    decays: tuple[float, ...]
    width: int
    neighbours: int
    shards: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = [
            (self.as_of.tzinfo is None, f"as_of is {self.as_of} without a time zone", "Give it in UTC."),
            (not self.decays, "decays is empty", "Name at least one decay."),
        ]
        for name, least, most in (("width", 1, 65_536), ("neighbours", 1, 65_536), ("shards", 0, 99_999)):
            size = getattr(self, name)
            fits = type(size) is int and least <= size <= most
            faults.append((not fits, f"{name} is {size}", f"Use {least:,} to {most:,}."))
        faults += [
            (not math.isfinite(value), f"metric '{name}' is {value}", "Leave out a metric that could not be measured.")
            for name, value in self.metrics.items()
        ]
        for wrong, what, remedy in faults:
            if wrong:
                raise SnapshotError(f"The snapshot's manifest is not valid: {what}.", remedy)


@dataclass(frozen=True, kw_only=True)
class Manifest(About):
    """A whole snapshot, as `manifest.json` tells it."""

    format_version: int
    snapshot_id: str  # YYYYMMDD-xxxxxxxxxxxx
    created_at: datetime
    files: Mapping[str, FileEntry]
    counts: Mapping[str, int]  # users, items

    @classmethod
    def of(cls, about: About, files: Mapping[str, FileEntry], counts: Mapping[str, int]) -> Manifest:
        """The manifest of files that are written, made now.

        Raises:
            SnapshotError: the vocabulary or a profile cannot be written as JSON.
        """
        record = _plain(about) | {
            "format_version": FORMAT_VERSION,
            "files": {name: asdict(entry) for name, entry in files.items()},
            "counts": dict(counts),
            "created_at": datetime.now(UTC).isoformat(),
        }
        try:
            record["snapshot_id"] = _id(record)
        except (TypeError, ValueError) as error:
            raise SnapshotError(
                f"The snapshot's manifest is not JSON: {error}.", "Pass the vocabulary and profiles as plain values."
            ) from error
        return cls.from_json(json.dumps(record))  # what was written and what is read back are equal

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(_plain(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        """Read a manifest back.

        Raises:
            SnapshotTooNew: a later version of Bodega wrote it.
            SnapshotCorrupt: it is not a manifest, or its content does not give its id.
        """
        remedy = "Publish the snapshot again from its run."
        try:
            record = json.loads(text)
            version = int(record["format_version"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise SnapshotCorrupt(f"{where} is not a manifest: {error!r}.", remedy) from error
        if version > FORMAT_VERSION:
            raise SnapshotTooNew(
                f"{where} has format {version}; this reader knows up to {FORMAT_VERSION}.",
                "Upgrade Bodega here, or publish from the older version.",
            )
        try:
            if record["snapshot_id"] != (found := _id(record)):
                raise SnapshotCorrupt(f"{where} says it is {record['snapshot_id']}, its content gives {found}.", remedy)
            return _made(
                cls,
                record
                | {
                    "as_of": datetime.fromisoformat(record["as_of"]),
                    "created_at": _with_zone(record["created_at"]),
                    "lineage": _made(Lineage, record["lineage"]),
                    "profiles": tuple(record["profiles"]),
                    "decays": tuple(record["decays"]),
                    "files": {name: _made(FileEntry, entry) for name, entry in record["files"].items()},
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise SnapshotCorrupt(f"{where} lacks or mistypes a field: {error!r}.", remedy) from error


def _with_zone(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


def _made(kind: type[_T], record: Mapping[str, Any]) -> _T:
    """From the fields that this version knows: a later one of the same format may have more, with defaults."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in record.items() if name in known})


def _plain(about: About) -> dict[str, Any]:
    record = asdict(about)
    for name in ("as_of", "created_at"):
        if name in record:
            record[name] = record[name].astimezone(UTC).isoformat()
    return record


def _id(record: Mapping[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name not in _OUTSIDE_THE_ID}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    day = datetime.fromisoformat(record["as_of"]).astimezone(UTC)
    return f"{day:%Y%m%d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
