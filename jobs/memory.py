"""How much memory a step took at most, as the kernel saw it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Memory:
    """peak: bytes; known when the step has ended."""

    peak: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Memory]:
    """Measure this process while the body runs; where the kernel cannot reset its mark, since it was started."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")
    memory = Memory()
    try:
        yield memory
    finally:
        memory.peak = _high_water()


def _high_water() -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
