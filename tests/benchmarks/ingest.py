"""How long ingest takes beside those who do the same work, and how much memory; they must agree on every row.

python -m tests.benchmarks.ingest --events 20000000 --json

ratio_to_*       seconds of a whole ingest, from an empty store, over a peer's; each the best of its rounds. Ours is timed in
                 a pool of two plain processes, so that Ray's own overhead is apart: `ray_overhead_s`, and `ray_start_s`
peak_gib         the most that its processes held together under Ray, Ray's own among them
increment_share  a night after one more day of 91, over a night that reads all 91, both in the pool
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.harness import CORES, Measured, best, measured
from tests.benchmarks.ingest_log import Log, LogSettings, add_the_last_day, all_but_the_last_day, open_log
from tests.benchmarks.ingest_result import Result, result_of

TARGETS = {
    "ratio_to_polars": 1.5,
    "peak_gib": 6.0,
    "peak_ratio_double": 1.3,
    "increment_share": 0.15,
}
FLOORS = ("floor", "floor_polars")
PEERS = ("polars", "duckdb", "pandas")
_SLOW = ("pandas",)  # once is enough to tell by how much
_OURS, _PEERS = "tests.benchmarks.ingest_ours", "tests.benchmarks.ingest_peers"


class Disagreement(Exception):
    """Two that were to do the same work did not: the figures mean nothing."""


@dataclass(slots=True)
class Bench:
    """A log, a folder to work in, and the result that all must come to: the first one found."""

    log: Log
    work: Path
    agreed: Result | None = None

    def ours(self, how: str, shop: Path, out: str, same_as_all: bool = True) -> Measured:
        """An ingest of our own into `out`, which it leaves."""
        run = measured(_OURS, how, self.log.folder, shop, self.work / out, role=_role)
        if same_as_all:
            self.check(f"ours ({how})", Path(run.told["folder"]))
        return run

    def peer(self, name: str) -> Measured:
        """A peer's run; what it wrote is checked and removed."""
        out = self.work / name
        run = measured(_PEERS, name, self.log.folder, out)
        if name not in FLOORS:
            self.check(name, out)
        shutil.rmtree(out)
        return run

    def check(self, name: str, folder: Path) -> None:
        """Compare with what was found before.

        Raises:
            Disagreement: it is something else.
        """
        found = result_of(folder)
        self.agreed = self.agreed or found
        if unlike := found.unlike(self.agreed):
            raise Disagreement(f"{name} differs from those before it: {unlike}.")

    def whole(self, how: str) -> Measured:
        """All of the log, from an empty store."""
        run = self.ours(how, self.log.folder, "whole")
        shutil.rmtree(self.work / "whole")
        return run

    def fill(self) -> None:
        """A night on all days but the last, whose store each `increment` begins with."""
        self.ours("ray", all_but_the_last_day(self.log, self.work / "shop"), "before", same_as_all=False)
        add_the_last_day(self.log, self.work / "shop")

    def increment(self) -> Measured:
        """A night on which the last day is new, and the store holds the days before."""
        shutil.copytree(self.work / "before", self.work / "night", symlinks=True)
        run = self.ours("pool", self.work / "shop", "night")
        shutil.rmtree(self.work / "night")
        return run


def compare(log: Log, work: Path, peers: Sequence[str], rounds: int) -> dict[str, Any]:
    """Run everybody in turns and say how they did.

    Raises:
        Disagreement: not all came to the same rows.
    """
    bench = Bench(log, work)
    load = [os.getloadavg()[0]]
    bench.fill()
    runs: dict[str, list[Measured]] = {}
    for number in range(rounds):
        for name in (*FLOORS, *peers):
            if number == 0 or name not in _SLOW:
                runs.setdefault(name, []).append(bench.peer(name))
        for how in ("ray", "pool"):
            runs.setdefault(how, []).append(bench.whole(how))
        runs.setdefault("increment", []).append(bench.increment())
    found = {name: best(each) for name, each in runs.items()}
    ray, ours, more = found["ray"], found["pool"], found["increment"]
    return {
        "rows": log.rows,
        "users": log.users,
        "kept": ours.told["kept"],
        "cores": CORES,
        "rounds": rounds,
        "load": [round(each, 1) for each in (*load, os.getloadavg()[0])],  # where others run too, ratios wander
        **{f"ratio_to_{name}": _ratio(ours.seconds, found[name].seconds) for name in peers},
        "peak_gib": max(run.gib for run in runs["ray"]),
        "peak_by_role": max(runs["ray"], key=lambda run: run.gib).by_role,
        "increment_share": _ratio(more.seconds, ours.seconds),
        "ray_overhead_s": round(ray.seconds - ours.seconds, 3),
        "ray_start_s": ray.told["steps"]["start"],
        "open_s": ours.told["steps"]["open"],
        "seconds": {name: run.seconds for name, run in found.items()},
        "all_seconds": {name: [run.seconds for run in each] for name, each in runs.items()},
        "steps": {name: run.told["steps"] for name, run in found.items()},
        "gib": {name: max(run.gib for run in each) for name, each in runs.items()},
        "counts": ours.told["counts"],
        "same_result": True,
    }


def double(log: Log, work: Path, peak: float) -> dict[str, Any]:
    """The memory of a whole ingest of a log of twice the events, over `peak`."""
    run = measured(_OURS, "ray", log.folder, log.folder, work / "double", role=_role)
    shutil.rmtree(work / "double")
    return {"rows_double": log.rows, "peak_gib_double": run.gib, "peak_ratio_double": _ratio(run.gib, peak)}


def told(found: dict[str, Any]) -> Table:
    """For people."""
    table = Table(title=f"ingest of {found['rows']:,} rows, {found['kept']:,} kept, on {found['cores']} cores")
    table.add_column("")
    for name in ("s", "GiB", "ours takes"):
        table.add_column(name, justify="right")
    table.add_column("steps")
    for name, seconds in sorted(found["seconds"].items(), key=lambda pair: pair[1]):
        steps = ", ".join(f"{step} {value:.2f}" for step, value in found["steps"][name].items())
        ratio = f"{found['seconds']['pool'] / seconds:.2f} x"
        table.add_row(name, f"{seconds:.2f}", f"{found['gib'][name]:.2f}", ratio, steps)
    table.add_section()
    for name, target in TARGETS.items():
        if name in found:
            table.add_row(name, f"{found[name]:.3f}", "", f"<= {target}", "" if found[name] <= target else "missed")
    return table


def _ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3)


def _role(process: psutil.Process) -> str:
    """Whose memory it is: the driver's, that of those who work, or Ray's own."""
    line = " ".join(process.cmdline())
    if "ray::" in line or "multiprocessing" in line:
        return "workers"
    return "driver" if _OURS in line else "ray"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exits with 1 where the results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000, help="rows of the log, within 5 %%")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bodega-benchmarks")
    parser.add_argument("--peers", default=",".join(PEERS), help="which of them; pandas takes its time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--double", action="store_true", help="weigh a log of twice the events, too")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args(arguments)
    peers = [name for name in asked.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    console = Console(stderr=True)
    with console.status("making the log"):
        log = open_log(LogSettings(asked.events), asked.folder)
    with tempfile.TemporaryDirectory(dir=asked.folder) as work, console.status("measuring"):
        try:
            found = compare(log, Path(work), peers, asked.rounds)
        except Disagreement as error:
            console.print(str(error))
            return 1
        if asked.double:
            twice = open_log(LogSettings(2 * asked.events), asked.folder)
            found |= double(twice, Path(work), found["peak_gib"])
    console.print(told(found))
    if asked.json:
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
