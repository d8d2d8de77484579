"""How a benchmark measures: each contender in a fresh process on the same two cores, one after another, memory sampled."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

CORES = 2
_EVERY = 0.05  # seconds between two looks at the memory
_GIB = 2**30
# Read before a library starts its threads.
_THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. told: what the process said of itself, `seconds` among it. gib: the peak of the resident memory.

    by_role: what each kind of process held when all together held the most. An Arrow file or a shared store that several
    processes map counts once for each: the figure never flatters.
    """

    told: dict[str, Any]
    gib: float
    by_role: dict[str, float]

    @property
    def seconds(self) -> float:
        """As the process measured it: imports and start-up apart."""
        return float(self.told["seconds"])


@dataclass(slots=True)
class Laps:
    """Seconds by step, in the process that is measured."""

    last: float = field(default_factory=time.perf_counter)
    steps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        """What ran since the lap before was this."""
        now = time.perf_counter()
        self.steps[name] = round(now - self.last, 3)
        self.last = now

    def tell(self, **more: Any) -> None:
        """The last line of stdout, for `measured`; `seconds` are those of all steps, where they are not told otherwise."""
        told = {"seconds": round(sum(self.steps.values()), 3), "steps": self.steps, **more}
        sys.stdout.write(json.dumps(told) + "\n")


def measured(module: str, *arguments: str | Path, role: Callable[[psutil.Process], str] | None = None) -> Measured:
    """Run `python -m module arguments` by itself.

    Raises:
        RuntimeError: it failed; with what it wrote to stderr.
    """
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict.fromkeys(_THREADS, str(CORES)),
        cwd=Path(__file__).resolve().parents[2],
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # what samples the memory may run beside
    )
    with _sampled(process.pid, role or (lambda _: "process")) as peak:
        out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, arguments))} ended with {process.returncode}:\n{err}")
    return Measured(json.loads(out.splitlines()[-1]), round(sum(peak.values()), 3), dict(peak))


def best(runs: Sequence[Measured]) -> Measured:
    """The fastest: other load on the machine only ever adds."""
    return min(runs, key=lambda run: run.seconds)


@contextlib.contextmanager
def _sampled(pid: int, role: Callable[[psutil.Process], str]) -> Iterator[dict[str, float]]:
    peak: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY):
            held = _held(pid, role)
            if sum(held.values()) > sum(peak.values()):
                peak.clear()
                peak.update(held)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _held(pid: int, role: Callable[[psutil.Process], str]) -> dict[str, float]:
    held: dict[str, float] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for each in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = role(each)
                held[name] = held.get(name, 0.0) + each.memory_info().rss / _GIB
    return {name: round(gib, 3) for name, gib in held.items()}
