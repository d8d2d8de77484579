"""Kill -9 of a worker or of the driver at any moment of ingest: a rerun ends with the same bytes and redoes what was unfinished.

Real processes on a real local Ray. A moment is a number of finished pieces (parts of the log, then buckets of people) and a
little more, so that it lies within the work however long Ray takes to start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from engine.activity.parts import PartStore
from tests.nights import ROOT, command

DAYS, BUCKETS = 48, 12
PIECES = DAYS + BUCKETS
SHOP = ("shop.users=3000", "shop.items=300", f"shop.days={DAYS}", "shop.sessions_per_day=0.5", "shop.seed=5")
PATIENCE = 120.0  # seconds for what takes ten
AT_ONCE = 1
# A run in one process, without Ray: what it comes to does not hang on how the work was spread.
ALONE = f"""
import contextlib, sys
sys.path.insert(0, {str(ROOT)!r})
import jobs.ingest, jobs.night
from tests.jobs.ingest_nights import InProcess
jobs.night.connected = lambda _: contextlib.nullcontext(InProcess())
jobs.ingest.main()
"""
AT_WORK = ("ray::read log", "ray::sort by person")  # titles of workers; Ray's agents are "ray::" too
BOTH = ("driver", "worker")

Stamps = dict[str, tuple[int, int]]  # inode and time of change: they tell whether a file was written again


@dataclass(frozen=True)
class Kill:
    """Whom to kill, and when: so many pieces are finished, and so many seconds have passed since."""

    whom: str  # driver, worker, or workers: all that are at work
    pieces: int
    later: float


@dataclass(frozen=True)
class Deployment:
    """A folder with the keys and the ledger that all share, and a store and a run of its own."""

    out: Path
    shop: Path

    @property
    def stage(self) -> Path:
        return self.out / "runs" / "killed" / "ingest"

    @property
    def store(self) -> PartStore:
        return PartStore(self.out / "activity")

    def copied(self, out: Path) -> Deployment:
        out.mkdir()
        shutil.copytree(self.out / "keys", out / "keys")
        for file in self.out.glob("consent.db*"):
            shutil.copyfile(file, out / file.name)
        return Deployment(out, self.shop)

    def names(self) -> list[str]:
        """Folders that stand in the store under a part's key; drafts begin with a dot."""
        with contextlib.suppress(FileNotFoundError):
            return [path.name for path in (self.out / "activity").iterdir() if "." not in path.name]
        return []

    def buckets(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [path.name for path in (self.stage / "_shards").iterdir() if path.name.startswith("bucket-")]
        return []

    def finished(self) -> int:
        return len(self.names()) + len(self.buckets())

    def begun(self) -> bool:
        """Whether a worker is reading, or has been."""
        return bool(self.names()) or any((self.out / "activity").glob(".*-*"))

    def parts(self) -> Stamps:
        """What the store takes for whole."""
        whole = [name for name in self.names() if self.store.about(name) is not None]
        return {name: stamp(self.store.root / name / "part.json") for name in whole}

    def shards(self) -> Stamps:
        return {name: stamp(self.stage / "_shards" / name) for name in self.buckets()}

    def manifest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.stage / "_stage.json").read_text())
        return content

    def checksums(self) -> dict[str, str]:
        return {path: about["sha256"] for path, about in self.manifest()["files"].items()}


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed: what it came to."""

    deployment: Deployment
    checksums: dict[str, str]

    def agrees_with(self, other: Deployment) -> None:
        """Whatever of the other passes for whole holds the same bytes, be it at the end or in the middle."""
        for name in other.parts():
            assert contents(other.store.root / name) == contents(self.deployment.store.root / name)
        for name in other.buckets():
            for path, about in json.loads((other.stage / "_shards" / name).read_text())["files"].items():
                assert about["sha256"] == self.checksums[path] == sha(other.stage / path)


def stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(part: Path) -> dict[str, str]:
    """Digests of a part's files; part.json alone tells how long it took."""
    return {path.name: sha(path) for path in part.iterdir() if path.name != "part.json"}


# --- processes --------------------------------------------------------------------------------------------------------


class Running:
    """`python -m jobs.ingest` in a session of its own; nothing of that session outlives the `with` block."""

    def __init__(self, deployment: Deployment, temporary: Path, *program: str) -> None:
        self.deployment = deployment
        arguments = [f"out={deployment.out}", f"data.path={deployment.shop}", "run=killed", f"buckets={BUCKETS}"]
        arguments += ["cluster.cpus=2", "cluster.object_store_mb=100"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.errors = deployment.out / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "jobs.ingest")), *arguments],
                stdout=subprocess.DEVNULL, stderr=errors, cwd="/", start_new_session=True,
                env=environment | {"TMPDIR": str(temporary)},
            )  # fmt: skip
        self.seen: set[psutil.Process] = set()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def descendants(self) -> set[psutil.Process]:
        """Everything that was started, be its parent gone or not."""
        with contextlib.suppress(psutil.Error):
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if process.pid != self.process.pid and os.getsid(process.pid) == self.process.pid:
                    self.seen.add(process)
        return self.seen

    def at_work(self) -> list[psutil.Process]:
        """Workers that are at a task."""
        found = []
        for process in self.descendants():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(AT_WORK):
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill the driver, then what it had started, each by its id."""
        for _ in range(2):  # Ray may be starting another while the first are found
            started = self.descendants()
            if self.process.poll() is None:
                self.process.kill()
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait(PATIENCE)
            psutil.wait_procs(list(started), timeout=10)

    def wait_for(self, there: Callable[[], Any], what: str) -> Any:
        until = time.monotonic() + PATIENCE
        while not (found := there()):
            assert self.process.poll() is None, f"it ended before {what}:\n{self.errors.read_text()}"
            assert time.monotonic() < until, f"not within {PATIENCE:g} s: {what}\n{self.errors.read_text()}"
            time.sleep(0.002)
        return found

    def wait_for_moment(self, kill: Kill) -> None:
        self.wait_for(
            lambda: self.deployment.finished() >= kill.pieces and (kill.pieces or self.deployment.begun()), str(kill)
        )
        time.sleep(kill.later)

    def ends_well(self) -> None:
        code = self.process.wait(PATIENCE)
        told = self.errors.read_text()
        assert code == 0, told
        assert "Traceback" not in told


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """Ray's own files: a driver that is killed leaves them. Its socket paths have no room for pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="bk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Undisturbed:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    shop = out / "shop"
    for arguments in (("jobs.simulate", *SHOP), ("jobs.import_consent", f"file={shop / 'grants.parquet'}")):
        made = command(*arguments, f"out={out}")
        assert made.code == 0, made.err
    deployment = Deployment(out, shop)
    with Running(deployment, temporary, "-c", ALONE) as running:
        running.ends_well()
    assert (len(deployment.parts()), len(deployment.shards())) == (DAYS, BUCKETS)
    return Undisturbed(deployment, deployment.checksums())


# --- the promise ------------------------------------------------------------------------------------------------------


def killed_and_run_again(undisturbed: Undisturbed, out: Path, temporary: Path, kills: list[Kill]) -> None:
    """Kill in the order of the moments, begin again after each death of the driver, and hold the outcome to the promise."""
    deployment = undisturbed.deployment.copied(out)
    before: tuple[Stamps, Stamps] = ({}, {})  # finished when the last driver died
    lost, seen = 0, dict[str, tuple[int, int]]()  # workers lost since, and parts that were finished by then
    left = sorted(kills, key=lambda kill: kill.pieces)
    while True:
        with Running(deployment, temporary) as running:
            while left:
                kill = left.pop(0)
                running.wait_for_moment(kill)
                if kill.whom == "driver":
                    running.end()
                    break
                seen |= deployment.parts()
                workers = running.wait_for(running.at_work, f"{kill}: a worker at work")
                for worker in workers[: 1 if kill.whom == "worker" else None]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.kill()
                        lost += 1
            else:
                running.ends_well()
        unchanged(before[0], deployment.parts(), 0)
        unchanged(before[1], deployment.shards(), 0)
        unchanged(seen, deployment.parts(), lost * (AT_ONCE - 1))
        undisturbed.agrees_with(deployment)
        if running.process.returncode == 0:
            break
        assert not (deployment.stage / "_stage.json").exists(), "killed within the work"
        before, lost, seen = (deployment.parts(), deployment.shards()), 0, {}
    assert deployment.checksums() == undisturbed.checksums
    facts = deployment.manifest()["facts"]
    assert facts["partitions"] == {"read": DAYS - len(before[0]), "reused": len(before[0])}
    assert facts["steps"][1]["reused"] == len(before[1])
    assert set(deployment.parts()) == set(undisturbed.deployment.parts())


def unchanged(before: Stamps, after: Stamps, but: int) -> None:
    """What was finished is as it was, but for so many at most."""
    again = [name for name, about in before.items() if after.get(name) != about]
    assert len(again) <= but, f"{len(again)} of {len(before)} were done again: {again}"


def moments(number: int) -> list[list[Kill]]:
    """So many pairs of moments, spread over the work: of each, one for the driver and one for a worker or all."""
    rng = random.Random(20260131)
    drawn = {}
    for whom, last in zip(
        BOTH, (PIECES, PIECES - 3), strict=True
    ):  # of the last pieces no worker might be left to kill
        width = last / number
        drawn[whom] = [int(width * (place + rng.random())) for place in range(number)]
        rng.shuffle(drawn[whom])
    later = lambda: rng.random() * 0.03  # noqa: E731 - about what a piece takes
    return [
        [Kill("driver", driver, later()), Kill(rng.choice(["worker", "workers"]), worker, later())]
        for driver, worker in zip(drawn["driver"], drawn["worker"], strict=True)
    ]


def test_a_driver_and_then_a_worker_are_killed_and_the_outcome_is_the_same(
    undisturbed: Undisturbed, tmp_path: Path, temporary: Path
) -> None:
    killed_and_run_again(
        undisturbed, tmp_path / "out", temporary, [Kill("driver", DAYS // 3, 0.01), Kill("worker", DAYS // 2, 0.01)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills", moments(10), ids=lambda kills: "-".join(f"{each.whom}{each.pieces}" for each in kills)
)
def test_whoever_is_killed_at_ten_random_moments_the_outcome_is_the_same(
    undisturbed: Undisturbed, tmp_path: Path, temporary: Path, kills: list[Kill]
) -> None:
    killed_and_run_again(undisturbed, tmp_path / "out", temporary, kills)
