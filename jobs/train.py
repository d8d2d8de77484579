"""Nightly step 2 of 6: fit the two towers, once on what lies before the hold-out and once on everything.

Run it alone, after ingest:  python -m jobs.train data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.errors import BodegaError, TrainingError
from engine.two_tower import checkpoint
from engine.two_tower.encoding import device_here
from engine.two_tower.features import Bag, describe
from engine.two_tower.histories import Histories
from engine.two_tower.settings import TowerSettings, TrainSettings
from engine.two_tower.training import Worker, fit
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import FULL, HOLDOUT, PARTS, Night, night, table
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import Stage, StageManifest, finished, stage

_RETRIES = 3
_FAULT, _LINES, _RAY = "fault.json", "epochs.txt", "ray"


@dataclass(frozen=True)
class _Asked:
    """What a fit needs to know. before: by part, where its history ends, in microseconds; None: nowhere."""

    work: Stage
    ingest: Path
    buckets: list[str]
    before: dict[str, int | None]
    towers: TowerSettings
    train: TrainSettings
    threads: int


def train(this: Night, cluster: Cluster) -> StageManifest:
    """Both fits, one after the other, each a shard: a task on one worker, through Ray Train on several."""
    facts, settings = finished(this.folder, "ingest").facts, this.settings
    workers = settings.train.workers
    config = {"towers": asdict(settings.towers), "train": asdict(settings.train)}
    with stage(this.folder, "train", this.after("ingest"), config) as work:
        if work.whole:
            return finished(this.folder, "train")
        left = work.shards_left(PARTS)
        if left:
            gpu = cluster.gpus >= workers
            # All that there is, not what the parts left to do would share: the number of threads decides on bytes.
            threads = max(1, cluster.cpus // workers)
            before = {HOLDOUT: facts["cut"], FULL: None}
            buckets = facts["buckets"]
            asked = _Asked(work, this.folder / "ingest", buckets, before, settings.towers, settings.train, threads)
            say(f"train: fit {' and '.join(map(repr, left))} on {workers} worker(s), {'GPU' if gpu else 'CPU'}")
            with _followed(work.folder / _LINES):
                if workers > 1:
                    _fit_on_ray_train(asked, gpu)
                else:
                    cluster.each(_fit_alone, left, asked, label="fit", cpus=threads, gpus=1.0 if gpu else 0.0)
        _tidy(work.folder)
        return work.finish()


def _fit_alone(part: str, asked: _Asked) -> None:
    if asked.work.shards_left([part]):  # else done by a worker that was lost right after
        _fit(part, asked, Worker(device=device_here()))


def _fit(part: str, asked: _Asked, worker: Worker) -> None:
    import torch

    torch.set_num_threads(asked.threads)
    folder = asked.work.folder / part
    folder.mkdir(exist_ok=True)
    limit = asked.before[part]
    histories, bag = training_input(asked.ingest, asked.buckets, limit, asked.towers.hashed)
    model = fit(histories, bag, asked.towers, asked.train, folder, worker, _tell(asked.work.folder, part))
    if worker.rank == 0:
        checkpoint.save_weights(folder / "model.safetensors", model)
        done = checkpoint.read(folder)
        asked.work.shard_done(part, [f"{part}/model.safetensors"], {"losses": done.losses if done else []})
        checkpoint.remove(folder)


def _fit_on_ray_train(asked: _Asked, gpu: bool) -> None:
    """What is left, in one group of workers: gloo between CPUs, nccl between GPUs."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = asked.work.folder
    (folder / _FAULT).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"asked": asked},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=asked.train.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": asked.threads, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name="fits",
            storage_path=str(folder / _RAY),
            failure_config=FailureConfig(max_failures=_RETRIES),  # a lost worker resumes from the last epoch
        ),
    )
    remedy = (
        "Look for the killer in the system's log (often a lack of memory), then run the same command again: the fits go on"
        " at their last epochs."
    )
    try:
        _beside(trainer.fit)
    except ray.exceptions.RayActorError as error:
        # Not a worker, but the actor that looks after them. Another one beside what it left would wait for its places for ever.
        raise BodegaError("The controller of the fits was lost.", remedy) from error
    except WorkerGroupError as error:
        if not all(isinstance(each, ray.exceptions.RayActorError) for each in error.worker_failures.values()):
            raise
        raise BodegaError(f"The fits lost their workers {_RETRIES + 1} times.", remedy) from error
    if (folder / _FAULT).exists():
        raise TrainingError(**json.loads((folder / _FAULT).read_text()))


def _beside(call: Callable[[], Any]) -> None:
    """Call from another thread: Ray Train would put a SIGINT handler of its own, for good, into the main one."""
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by whom it is waited for
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a daemon: with a dead head it may never come back
    done.result()


def _worker(config: dict[str, Any]) -> None:
    """What each worker runs, with its place among the others."""
    import ray.train
    import ray.train.torch

    asked: _Asked = config["asked"]
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    try:
        for part in asked.work.shards_left(PARTS):
            _fit(part, asked, worker)
    except TrainingError as error:
        # A fault of the data or the settings would only repeat itself: report it instead of failing into a retry.
        if worker.rank == 0:
            fault = {"message": error.message, "remedy": error.remedy}
            (asked.work.folder / _FAULT).write_text(json.dumps(fault))


def _tidy(folder: Path) -> None:
    """Leave the models alone: a checkpoint is of use until its fit is whole."""
    for part in PARTS:
        checkpoint.remove(folder / part)
    shutil.rmtree(folder / _RAY, ignore_errors=True)
    (folder / _LINES).unlink(missing_ok=True)


def _tell(folder: Path, part: str) -> Callable[[str], None]:
    """A worker's lines go through a file of the run: its own output ends in Ray's logs."""

    def tell(line: str) -> None:
        with (folder / _LINES).open("a") as file:
            file.write(f"'{part}', {line}\n")

    return tell


@contextlib.contextmanager
def _followed(path: Path) -> Iterator[None]:
    """Say each line that is added to a file while the body runs."""
    done = threading.Event()
    path.touch()

    def follow() -> None:
        with path.open() as file:
            file.seek(0, 2)
            while True:
                last = done.wait(0.5)
                for line in file.read().splitlines():
                    say(f"train: {line}")
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def training_input(ingest: Path, buckets: list[str], before: int | None, hashed: int) -> tuple[Histories, Bag]:
    """The histories that may train, of all buckets, and the item features."""
    activity = pa.concat_tables([table(ingest / f"activity-{name}.arrow") for name in buckets])
    return Histories.of(activity, "trainable", before), describe(table(ingest / "catalogue.arrow"), hashed)


@recipe("train")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings, begins=False) as (this, cluster):
        train(this, cluster)


if __name__ == "__main__":
    main()
