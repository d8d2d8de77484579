"""Nights as processes that can be killed, their Ray with them, and what they leave, compared file by file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

PATIENCE = 150.0  # seconds for what takes thirty
STAGES = ("ingest", "train", "embed", "rank", "evaluate", "publish")
AT_REST = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")

Stamps = dict[str, tuple[int, int]]  # inode and time of change: they tell whether a file was written again


@dataclass(frozen=True)
class Deployment:
    """A folder with keys, a ledger, a store and one run."""

    out: Path
    shop: Path
    name: str  # of the run

    @property
    def run(self) -> Path:
        return self.out / "runs" / self.name

    def copied(self, out: Path, stages: tuple[str, ...] = ()) -> Deployment:
        """The same keys and grants in another place, with some stages of the run, and nothing published."""
        out.mkdir()
        shutil.copytree(self.out / "keys", out / "keys")
        for file in self.out.glob("consent.db*"):
            shutil.copyfile(file, out / file.name)
        if stages:
            shutil.copytree(self.out / "activity", out / "activity")
        for stage in stages:
            shutil.copytree(self.run / stage, out / "runs" / self.name / stage)
        return Deployment(out, self.shop, self.name)

    def begun(self, stage: str) -> bool:
        return (self.run / stage / "_begun.json").exists()

    def whole(self, stage: str) -> bool:
        return (self.run / stage / "_stage.json").exists()

    def stamps(self) -> Stamps:
        """Of the markers of all finished shards and stages."""
        found = {}
        for path in [*self.run.glob("*/_shards/*.json"), *self.run.glob("*/_stage.json")]:
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                found[path.relative_to(self.run).as_posix()] = (about.st_ino, about.st_mtime_ns)
        return found

    def manifest(self, stage: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run / stage / "_stage.json").read_text())
        return content

    def served(self) -> str:
        return str(json.loads((self.out / "snapshots" / "current.json").read_text())["current"])

    def agrees_with(self, other: Deployment, stages: tuple[str, ...] = STAGES) -> None:
        """Every file of every stage is there, no other is, and all hold the same bytes."""
        for stage in stages:
            mine, its = self.manifest(stage), other.manifest(stage)
            assert mine["files"] == its["files"], stage
            for path, about in mine["files"].items():
                assert hashlib.sha256((self.run / stage / path).read_bytes()).hexdigest() == about["sha256"], path
            assert files_below(self.run / stage) == files_below(other.run / stage), stage
        if "publish" in stages:
            assert self.served() == other.served()
            folders = {path.name for path in (self.out / "snapshots").iterdir() if path.is_dir()}
            assert folders == {self.served()}, "what killed publishers left is swept"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def started_by(pid: int) -> set[psutil.Process]:
    """Everything of the session that a process leads, be its parent gone or not."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if process.pid != pid and os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


class Running:
    """A recipe in a session of its own; nothing of that session outlives the `with` block."""

    def __init__(self, deployment: Deployment, temporary: Path, module: str, *arguments: str) -> None:
        self.errors = deployment.out / "stderr.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, f"out={deployment.out}", f"data.path={deployment.shop}",
                 f"run={deployment.name}", *arguments],
                stdout=subprocess.DEVNULL, stderr=errors, cwd="/", start_new_session=True,
                env=environment | {"TMPDIR": str(temporary)},
            )  # fmt: skip

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        for _ in range(3):  # Ray may be starting another while the first are found
            started = started_by(self.process.pid)
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(PATIENCE)
            psutil.wait_procs(list(started), timeout=10)

    @property
    def told(self) -> str:
        return self.errors.read_text()

    def at_work(self, title: str = "ray::") -> list[psutil.Process]:
        """Workers and actors whose title begins so, and that are not at rest."""
        return [each for each, told in self.titles() if told.startswith(title) and not told.startswith(AT_REST)]

    def head(self, name: str) -> list[psutil.Process]:
        return [each for each, told in self.titles() if f"/{name} " in told.split(" --")[0] + " "]

    def titles(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in started_by(self.process.pid):
            with contextlib.suppress(psutil.Error):
                found.append((process, " ".join(process.cmdline())))
        return found

    def wait_for(self, there: Callable[[], Any], what: str) -> Any:
        until = time.monotonic() + PATIENCE
        while not (found := there()):
            assert self.process.poll() is None, f"it ended before {what}:\n{self.told}"
            assert time.monotonic() < until, f"not within {PATIENCE:g} s: {what}\n{self.told}"
            time.sleep(0.002)
        return found

    def ends(self, code: int) -> str:
        """What it told until it ended, which it must with this code."""
        assert self.process.wait(PATIENCE) == code, self.told
        assert "Traceback" not in self.told, self.told
        return self.told


def unchanged(before: Stamps, after: Stamps) -> None:
    """What was finished is as it was."""
    again = [name for name, about in before.items() if after.get(name) != about]
    assert not again, f"{len(again)} of {len(before)} were done again: {again}"
