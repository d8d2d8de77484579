"""One ingest of our own, in a process of its own.

python -m tests.benchmarks.ingest_ours ray|pool LOG SHOP OUT

`ray` is what a night does: tasks of a local Ray with two CPUs. `pool` calls the same functions from the same stage in a pool
of two plain processes, so that the difference is what Ray itself costs. Seconds are those of `jobs.ingest.ingest`; what comes
before it (imports, Ray's or the pool's start, digests of the files, opening the ledger) is told apart.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

import jobs.night
from engine.activity.merge import ROW, merged
from jobs.cluster import ClusterSettings, connected
from jobs.ingest import ingest
from tests.benchmarks.harness import CORES, Laps
from tests.benchmarks.ingest_log import Log, night_settings


@dataclass(frozen=True, slots=True)
class Pool:
    """What ingest asks of a cluster, of two processes."""

    executor: ProcessPoolExecutor
    cpus: int = CORES

    def share(self, thing: Any) -> Any:
        """Travels with each task."""
        return thing

    def each(self, function: Callable[..., Any], items: Sequence[Any], *shared: Any, label: str, **_: Any) -> list[Any]:
        """As a cluster's."""
        return [done.result() for done in [self.executor.submit(function, item, *shared) for item in items]]


@contextlib.contextmanager
def pooled(_: ClusterSettings) -> Iterator[Pool]:
    """Two processes that have everything imported already."""
    with ProcessPoolExecutor(CORES, get_context("spawn")) as executor:
        list(executor.map(_warm, range(CORES)))
        yield Pool(executor)


def _warm(_: int) -> None:
    """What a process does once in its life: pyarrow looks for pandas at its first array, Numba for its types at a call."""
    pa.array(np.zeros(1))
    none = np.empty(0, np.int64)
    rows = np.empty(0, ROW)
    merged(rows, (np.zeros(2, np.int64), none, none), np.zeros(256, np.int64), 0, rows)
    time.sleep(0.5)  # long enough that each process takes one


def main(arguments: Sequence[str]) -> None:
    """One night's ingest."""
    pa.array(np.zeros(1))
    how, log, shop, out = arguments
    settings = night_settings(Log(Path(log), 0, 0), Path(out), Path(shop))
    settings.cluster = ClusterSettings(cpus=CORES)
    connect = connected if how == "ray" else pooled
    laps = Laps()
    with connect(settings.cluster) as cluster, mock.patch.object(jobs.night, "connected", partial(_already, cluster)):
        laps.lap("start")
        with jobs.night.night(settings) as (this, given):
            laps.lap("open")
            manifest = ingest(this, given)
            laps.lap("ingest")
    facts = manifest.facts
    inner = {step["name"]: round(step["seconds"], 3) for step in facts["steps"]}
    seconds = laps.steps.pop("ingest")
    laps.steps |= inner | {"rest": round(seconds - sum(inner.values()), 3)}
    laps.tell(
        seconds=seconds,
        folder=str(manifest.folder),
        kept=facts["events"],
        counts=facts["counts"],
    )


@contextlib.contextmanager
def _already(cluster: Any, _: ClusterSettings) -> Iterator[Any]:
    yield cluster


if __name__ == "__main__":
    main(sys.argv[1:])
