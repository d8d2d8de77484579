"""What a loss of power would leave: kill -9 cannot show that an fsync is missing, as the kernel's pages outlive a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class Durability:
    """Notes every fsync and every rename of this process, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._synced: list[tuple[int, dict[str, int]]] = []  # the inode, and what names it held where it is a folder
        self._moves: list[tuple[Path, int]] = []  # the new name, and how many were synced before
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

        def fsync(handle: int) -> None:
            real["fsync"](handle)
            path = Path(f"/proc/self/fd/{handle}").readlink()
            held = {each.name: each.stat().st_ino for each in path.iterdir()} if path.is_dir() else {}
            self._synced.append((os.fstat(handle).st_ino, held))

        def moving(name: str) -> Any:
            def move(source: Any, target: Any, **options: Any) -> None:
                real[name](source, target, **options)
                self._moves.append((Path(target), len(self._synced)))

            return move

        monkeypatch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, moving(name))

    def when_named(self, path: Path) -> int:
        """The moment at which a file got its name; it may be on disk from then on."""
        return next(moment for target, moment in reversed(self._moves) if target == path)

    def survives(self, path: Path, root: Path, moment: int | None = None) -> bool:
        """Whether a file is found from `root` with its bytes if power goes at a moment; by default now."""
        synced = self._synced[:moment]
        inode = root.stat().st_ino
        for part in path.relative_to(root).parts:
            held = next((held for found, held in reversed(synced) if found == inode), {})
            if part not in held:
                return False
            inode = held[part]
        return any(found == inode for found, _ in synced)
