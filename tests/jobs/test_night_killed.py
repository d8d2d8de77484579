"""Kill -9 of a worker, an actor, the driver or Ray's head at any moment of a night: the same command ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.killed_nights import STAGES, Deployment, Running, Stamps, started_by, unchanged
from tests.nights import SMALL, Ran, SmallShop, open_small_shop

HEAD_SECONDS = 45.0  # within which a driver without a head must have ended
KILLS = int(os.environ.get("BODEGA_KILLS", "14"))
SEED = int(os.environ.get("BODEGA_SEED", "20260131"))


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """Ray's own files; its socket paths have no room for pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="nk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def night(small_shop: SmallShop, first_night: Ran) -> Deployment:
    """An undisturbed one."""
    (run,) = (small_shop.out / "runs").glob("night-*")
    return Deployment(small_shop.out, small_shop.out / "shop", run.name)


def test_a_worker_that_is_killed_in_rank_is_replaced(night: Deployment, tmp_path: Path, temporary: Path) -> None:
    killed = night.copied(tmp_path / "out", ("ingest", "train", "embed"))
    with Running(killed, temporary, "jobs.rank", *SMALL) as running:
        (worker, *_) = running.wait_for(lambda: running.at_work("ray::rank"), "a worker at rank")
        worker.kill()
        running.ends(0)
    killed.agrees_with(night, ("ingest", "train", "embed", "rank"))
    assert not list(temporary.glob("bodega-*"))


def test_a_driver_that_is_killed_in_train_leaves_nothing_running_and_its_epochs_are_taken_up(
    night: Deployment, tmp_path: Path, temporary: Path
) -> None:
    killed = night.copied(tmp_path / "out", ("ingest",))
    with Running(killed, temporary, "jobs.train", *SMALL) as running:
        checkpoint = killed.run / "train" / "holdout" / "checkpoint.json"
        running.wait_for(lambda: checkpoint.exists() or killed.stamps().get("train/_shards/holdout.json"), "an epoch")
        running.process.kill()
        running.process.wait()
        until = time.monotonic() + 20
        while (started_by(running.process.pid) or list(temporary.glob("bodega-ray-*"))) and time.monotonic() < until:
            time.sleep(0.05)
        assert not started_by(running.process.pid) and not list(temporary.glob("bodega-ray-*"))
        assert "error: The driver has ended without a word" in running.told and "remedy: Run the same" in running.told
    before = killed.stamps()
    with Running(killed, temporary, "jobs.train", *SMALL) as again:
        again.ends(0)
    unchanged(before, killed.stamps())
    killed.agrees_with(night, ("ingest", "train"))


# --- minutes long -----------------------------------------------------------------------------------------------------

LONGER = (*SMALL, "train.epochs=24", "train.events=256", "buckets=6")
_HEADLESS = ("The head of Ray is lost", "The driver has ended without a word")
LAST_WORDS = {"raylet": _HEADLESS, "gcs_server": _HEADLESS, "controller": ("The controller of the fits was lost",)}
VICTIMS = ("worker", "driver", "raylet", "gcs_server", "controller")


@dataclass
class Kill:
    """Whom to kill, so many seconds after a stage began."""

    victim: str
    stage: str
    later: float
    done: str = ""


@pytest.fixture(scope="module", params=[1, 2], ids=["one trainer", "two trainers"])
def longer(
    request: Any, tmp_path_factory: pytest.TempPathFactory, temporary: Path
) -> tuple[Deployment, tuple[str, ...]]:
    """An undisturbed night with more of everything, and its arguments; two trainers are a Ray Train with its actors."""
    out = tmp_path_factory.mktemp("longer") / "out"
    open_small_shop(out)
    arguments = (*LONGER, f"train.workers={request.param}")
    deployment = Deployment(out, out / "shop", "killed")
    with Running(deployment, temporary, "jobs.nightly", *arguments) as running:
        running.ends(0)
    return deployment, arguments


def drawn(undisturbed: Deployment, workers: int) -> list[list[Kill]]:
    """As many kills as are asked for, in rounds of one a stage."""
    rng = random.Random(SEED + workers)
    victims = VICTIMS[: 4 if workers == 1 else 5]
    order = [rng.choice(victims) for _ in range(KILLS)]
    order[: len(victims)] = rng.sample(victims, len(victims))  # each at least once
    rounds = []
    while order:
        rounds.append([])
        for stage in STAGES[: len(order)]:
            victim = order.pop()
            lasts = undisturbed.manifest(stage)["seconds"]
            rounds[-1].append(Kill(victim, "train" if victim == "controller" else stage, rng.random() * lasts))
    for kills in rounds:
        kills.sort(key=lambda kill: STAGES.index(kill.stage))
    return rounds


def strike(running: Running, kill: Kill) -> None:
    """Kill whom it names; a worker is waited for, for a while, as it may just be starting."""
    until = time.monotonic() + 20
    while True:
        if kill.victim == "driver":
            running.process.kill()
            kill.done = f"process {running.process.pid}"
            return
        if kill.victim in ("raylet", "gcs_server"):
            found = running.head(kill.victim)
        else:
            found = running.at_work("ray::TrainController" if kill.victim == "controller" else "ray::")
        if kill.victim == "worker":
            found = [each for each in found if "TrainController" not in " ".join(each.cmdline())]
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(found[0].cmdline()) if kill.victim in ("worker", "controller") else kill.victim
                found[0].kill()
                kill.done = f"process {found[0].pid}, {title[:40]}"
                return
        if running.process.poll() is not None or time.monotonic() > until:
            return
        time.sleep(0.002)


def at_work(deployment: Deployment, first: str) -> list[str]:
    """The stages that are begun and not whole, from one on."""
    later = STAGES[STAGES.index(first) :]
    return [stage for stage in later if deployment.begun(stage) and not deployment.whole(stage)]


def killed_night(
    undisturbed: Deployment, arguments: tuple[str, ...], out: Path, temporary: Path, kills: list[Kill]
) -> list[str]:
    """Run until it is whole; a line for each kill."""
    deployment = undisturbed.copied(out)
    left, lines = list(kills), []
    before: Stamps = {}
    for _ in range(len(kills) + 1):
        with Running(deployment, temporary, "jobs.nightly", *arguments) as running:
            last: Kill | None = None
            while left and (last is None or last.victim == "worker"):
                kill = last = left.pop(0)
                running.wait_for(
                    lambda stage=kill.stage: at_work(deployment, stage) or running.process.poll() is not None, f"{kill}"
                )
                time.sleep(kill.later)
                now, struck = at_work(deployment, STAGES[0]), time.monotonic()
                strike(running, kill)
                moment = f"{kill.stage:9}+{kill.later:5.2f} s {'/'.join(now):9}"
                lines.append(f"{moment} {kill.victim:10} {kill.done or 'nobody there'}")
            if last is not None and last.done and last.victim == "driver":
                running.process.wait()
            elif last is not None and last.done and last.victim in LAST_WORDS:
                code = running.process.wait(HEAD_SECONDS)
                lines[-1] += f", driver ended after {time.monotonic() - struck:.1f} s"
                told = any(f"error: {words}" in running.told for words in LAST_WORDS[last.victim])
                assert code == 0 or (code == 1 and told and "run the same command again" in running.told.lower()), (
                    running.told
                )
                assert "Traceback" not in running.told, running.told
            else:
                running.ends(0)
        now_there = deployment.stamps()
        unchanged(before, now_there)
        lines[-1:] = [f"{line}; {len(now_there)} markers, {len(before)} from before" for line in lines[-1:]]
        before = now_there
        if running.process.returncode == 0 and not left:
            break
    deployment.agrees_with(undisturbed)
    lines.append(
        f"whole: {sum(len(deployment.manifest(stage)['files']) for stage in STAGES)} files, {deployment.served()}"
    )
    return lines


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_whoever_is_killed_at_random_moments_of_all_stages_the_outcome_is_the_same(
    longer: tuple[Deployment, tuple[str, ...]], tmp_path: Path, temporary: Path
) -> None:
    undisturbed, arguments = longer
    workers = int(arguments[-1].partition("=")[2])
    struck = 0
    for number, kills in enumerate(drawn(undisturbed, workers)):
        lines = killed_night(undisturbed, arguments, tmp_path / str(number), temporary, kills)
        table = ["", f"round {number}, {workers} trainer(s), seed {SEED}", *lines]
        print("\n".join(table), flush=True)  # noqa: T201 - the table is for whoever runs it
        struck += sum(bool(kill.done) for kill in kills)
    assert struck >= KILLS * 2 // 3, "too many moments found nobody to kill"


@pytest.mark.slow
def test_a_fit_that_is_killed_goes_on_at_its_last_epoch(
    longer: tuple[Deployment, tuple[str, ...]], tmp_path: Path, temporary: Path
) -> None:
    undisturbed, arguments = longer
    killed = undisturbed.copied(tmp_path / "out", ("ingest",))
    state = killed.run / "train" / "full" / "checkpoint.json"
    epoch = 0
    with Running(killed, temporary, "jobs.train", *arguments) as running:

        def far() -> bool:
            nonlocal epoch
            with contextlib.suppress(OSError, ValueError):
                epoch = json.loads(state.read_text())["epoch"]
            return epoch >= 6

        running.wait_for(far, "six epochs")
    before = killed.stamps()
    with Running(killed, temporary, "jobs.train", *arguments) as again:
        told = again.ends(0)
    unchanged(before, killed.stamps())
    assert "'holdout', epoch" not in told and f"'full', epoch {epoch}/" not in told and "'full', epoch 24/24" in told
    killed.agrees_with(undisturbed, ("ingest", "train"))
