"""Nightly step 2 of 6: fit the two towers, once on what lies before the hold-out and once on everything.

Run it alone, after ingest:  python -m jobs.train data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.errors import TrainingError
from engine.two_tower import checkpoint
from engine.two_tower.features import Bag, describe
from engine.two_tower.histories import Histories
from engine.two_tower.settings import TowerSettings, TrainSettings
from engine.two_tower.training import Worker, fit
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import HOLDOUT, PARTS, Night, night, table
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import StageManifest, finished, stage


def train(this: Night, cluster: Cluster) -> StageManifest:
    """Both fits through Ray Train: gloo between CPU workers, nccl between GPUs."""
    before = finished(this.folder, "ingest")
    settings = this.settings
    config = {"towers": asdict(settings.towers), "train": asdict(settings.train)}
    with stage(this.folder, "train", this.after("ingest"), config) as work:
        if work.whole:
            return finished(this.folder, "train")
        for part in work.shards_left(PARTS):
            limit = before.facts["cut"] if part == HOLDOUT else None
            say(f"train: fit '{part}' on {settings.train.workers} worker(s), {'GPU' if cluster.gpus else 'CPU'}")
            _fit_on_ray(this, cluster, part, limit, work.folder / part)
            work.shard_done(part, [f"{part}/model.safetensors"])
        return work.finish()


def _fit_on_ray(this: Night, cluster: Cluster, part: str, limit: int | None, folder: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = this.settings
    gpu = cluster.gpus >= settings.train.workers
    threads = max(1, cluster.cpus // settings.train.workers)
    folder.mkdir(parents=True, exist_ok=True)
    fault = folder / "fault.json"
    fault.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "ingest": str(this.folder / "ingest"),
            "buckets": finished(this.folder, "ingest").facts["buckets"],
            "before": limit,
            "folder": str(folder),
            "towers": asdict(settings.towers),
            "train": asdict(settings.train),
            "threads": threads,
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.train.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": threads, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=f"{this.folder.name}-{part}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=2),  # a lost worker resumes from the last epoch
        ),
    )
    with _followed(folder / "epochs.txt"):
        trainer.fit()
    if fault.exists():
        raise TrainingError(**json.loads(fault.read_text()))


def _worker(config: dict[str, Any]) -> None:
    """What each worker runs: plain `fit`, with its place among the others."""
    import ray.train
    import ray.train.torch
    import torch

    context = ray.train.get_context()
    torch.set_num_threads(config["threads"])
    worker = Worker(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    folder = Path(config["folder"])
    histories, bag = training_input(
        Path(config["ingest"]), config["buckets"], config["before"], config["towers"]["hashed"]
    )
    try:
        model = fit(
            histories,
            bag,
            TowerSettings(**config["towers"]),
            TrainSettings(**config["train"]),
            folder,
            worker,
            _tell(folder),
        )
    except TrainingError as error:
        # A fault of the data or the settings would only repeat itself: report it instead of failing into a retry.
        if worker.rank == 0:
            (folder / "fault.json").write_text(json.dumps({"message": error.message, "remedy": error.remedy}))
        return
    if worker.rank == 0:
        checkpoint.save_weights(folder / "model.safetensors", model)


def _tell(folder: Path) -> Callable[[str], None]:
    """A worker's lines go through a file of the run: its own output ends in Ray's logs."""

    def tell(line: str) -> None:
        with (folder / "epochs.txt").open("a") as file:
            file.write(line + "\n")

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
    with night(settings) as (this, cluster):
        train(this, cluster)


if __name__ == "__main__":
    main()
