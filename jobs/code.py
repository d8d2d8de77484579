"""What works by night, as inputs of its stages: our own code, the libraries that decide on bytes, and a team's plugins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from jobs.stage import fingerprint

_OURS = "bodega"
_LIBRARIES = ("numpy", "numba", "polars", "pyarrow", "torch")


def our_code() -> str:
    """Names the code that works: what an older one left is not taken for this one's."""
    root = Path(__file__).resolve().parents[1]
    return _digest(root, [path for room in ("engine", "jobs") for path in (root / room).rglob("*.py")])


def libraries() -> str:
    """Versions of the libraries whose arithmetic and file formats decide on bytes."""
    return ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)


def plugins(settings: Settings) -> str:
    """Version and digest of each lane, tower and rule of a team that these settings name; '' where all are ours.

    A digest covers the whole top package of a plugin, as it may share files with others there.
    """
    return "; ".join(sorted(_about(point) for point in _named(settings)))


def _named(settings: Settings) -> Iterator[EntryPoint]:
    rules = {
        rule.get("name", "")
        for surface in settings.policy.values()
        if isinstance(surface, dict)
        for rule in surface.get("rules") or ()
        if isinstance(rule, dict)
    }
    wanted: dict[str, Any] = {"lanes": set(settings.rank.lanes), "towers": {settings.towers.name}, "rules": rules}
    for group, names in wanted.items():
        for point in entry_points(group=f"{_OURS}.{group}"):
            if point.name in names and (point.dist is None or point.dist.name != _OURS):
                yield point


def _about(point: EntryPoint) -> str:
    made_by = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
    return f"{point.name} of {made_by}, {_package(point.module)}"


def _package(module: str) -> str:
    """Digest of the outermost package that a module lies in, namespaces apart."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = find_spec(".".join(parts[:depth]))
        if spec is None:
            return "not found"  # the stage that loads it says so
        if spec.origin is not None:
            origin = Path(spec.origin)
            if not spec.submodule_search_locations:
                return _digest(origin.parent, [origin])
            return _digest(
                origin.parent, [path for path in origin.parent.rglob("*") if "__pycache__" not in path.parts]
            )
    return "a namespace alone"


def _digest(root: Path, files: list[Path]) -> str:
    return fingerprint(
        {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(files)
            if path.is_file()
        }
    )[:16]
