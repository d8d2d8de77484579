"""Fit the two towers: one plain function that a Ray Train worker calls, and that a test calls without Ray."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import TrainingError
from engine.two_tower import checkpoint
from engine.two_tower.features import Bag
from engine.two_tower.histories import Batch, Histories, Windows
from engine.two_tower.loss import FullSoftmax, sampled_softmax
from engine.two_tower.registry import user_tower
from engine.two_tower.settings import TowerSettings, TrainSettings
from engine.two_tower.towers import ItemTower


@dataclass(frozen=True, slots=True)
class Worker:
    """This process among those that train together; gradients are averaged over them."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


class TwoTower(nn.Module):
    """Both towers, side by side."""

    def __init__(self, items: int, bag: Bag, trained: np.ndarray, settings: TowerSettings) -> None:
        super().__init__()
        self.items = ItemTower(items, bag, trained, settings)
        self.people = user_tower(settings)


def fit(
    histories: Histories,
    bag: Bag,
    tower: TowerSettings,
    train: TrainSettings,
    folder: Path,
    worker: Worker = Worker(),
    tell: Callable[[str], None] = lambda line: None,
) -> TwoTower:
    """Train until the last epoch, picking up from a checkpoint in `folder` if there is one of the same settings.

    Args:
        histories: events that may train.
        bag: item features, one row an item of the catalogue.
        folder: where checkpoints go; shared by all workers.
        tell: gets one line an epoch.

    Returns:
        The model, in evaluation mode, on the worker's device.

    Raises:
        TrainingError: nothing to learn from, or a weight of the log, a gradient or the loss is not finite, or the loss ends an
            epoch far above that of a guess.
    """
    torch.manual_seed(train.seed)
    catalogue = len(bag.starts) - 1
    _check(histories, catalogue, train)
    wants = np.bincount(histories.item, histories.weight >= train.wanted, minlength=catalogue)
    model = TwoTower(catalogue, bag, wants > 0, tower).to(worker.device)
    windows = Windows(histories, train.window, train.wanted, train.fresh_only)
    if not len(windows) or not windows.target.any():
        raise TrainingError(
            "There is no history to train on: no person has two wanted events that may be used.",
            "Check conf/data event weights against train.wanted, and that the ledger holds `train` grants.",
        )
    table = [model.items.ids, model.items.content]
    rest = [p for p in model.parameters() if all(p is not t for t in table)]
    slow = [p for p in rest if p is not getattr(model.people, "log_rates", None)]
    fast = [p for p in rest if p is getattr(model.people, "log_rates", None)]
    optimiser = torch.optim.AdamW(
        [
            {"params": table, "weight_decay": train.decay, "factor": 1.0},
            {"params": slow, "weight_decay": train.decay, "factor": 1.0},
            {"params": fast, "weight_decay": 0.0, "factor": 10.0},  # a few numbers that everything hangs on
        ],
        lr=train.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    steps = windows.steps(train.events, worker.world) * train.epochs
    decides = {
        "tower": asdict(tower),
        "train": asdict(train),
        "world": worker.world,
        "data": _fingerprint(histories.starts, histories.item, histories.ts, histories.weight)
        + _fingerprint(bag.starts, bag.rows, bag.weights),
    }
    state = checkpoint.resume(folder, model, optimiser, decides)
    _check_agreement(state.epoch, folder, worker)
    negatives = _Negatives(wants, train, worker.device) if catalogue > train.full_up_to else None
    worst = 1.5 * math.log(catalogue) + 1
    for epoch in range(state.epoch, train.epochs):
        began, losses = time.monotonic(), []
        # An epoch's randomness depends on its number alone, so that a resumed run repeats an undisturbed one.
        torch.manual_seed(train.seed * 1_000 + epoch * worker.world + worker.rank)
        model.train()
        for batch in windows.batches(train.events, train.seed + epoch, worker.rank, worker.world):
            warm = min(1.0, (state.step + 1) / max(1.0, 0.03 * steps))
            for group in optimiser.param_groups:
                group["lr"] = train.rate * group["factor"] * warm * max(0.01, 1 - state.step / steps)
            losses.append(_step(model, batch, optimiser, train, negatives, worker))
            state.step += 1
        loss = _mean_loss(losses, worker)
        if not loss <= worst:
            raise TrainingError(
                f"Epoch {epoch + 1}: the loss is {loss:.3f}, and {math.log(catalogue):.3f} would be the loss of a guess:"
                " training diverged.",
                "Lower train.rate; nothing was published.",
            )
        state.epoch, state.losses = epoch + 1, [*state.losses, loss]
        if worker.rank == 0:
            checkpoint.save(folder, model, optimiser, state)
            tell(f"epoch {epoch + 1}/{train.epochs}: loss {loss:.3f}, {time.monotonic() - began:.1f} s")
    return model.eval()


def _step(
    model: TwoTower,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    train: TrainSettings,
    negatives: _Negatives | None,
    worker: Worker,
) -> Tensor:
    item, days, weight, target = (
        torch.from_numpy(array).to(worker.device) for array in (batch.item, batch.days, batch.weight, batch.target)
    )
    if negatives is None:
        table = model.items()
        vectors = F.embedding(item, table)
    else:
        needed, place = torch.unique(torch.cat([item.flatten(), negatives.draw()]), return_inverse=True)
        table = model.items(needed)
        item = place[: item.numel()].view_as(item)
        vectors, sample = F.embedding(item, table), place[item.numel() :]
    pools, asked = model.people.pool(vectors, days, weight, target)
    if not len(pools):  # a worker must still take part in the averaging below
        loss: Tensor = 0.0 * table.sum()
    else:
        wanted = item[asked]
        people = model.people(pools)
        if negatives is None:
            loss = FullSoftmax.apply(people, table, wanted, train.smoothing)  # type: ignore[no-untyped-call]
        else:
            clash = wanted[:, None] == sample[None]
            loss = sampled_softmax(people, table[wanted], table[sample], negatives.expected(needed[sample]), clash)
    optimiser.zero_grad(set_to_none=False)
    loss.backward()  # type: ignore[no-untyped-call]
    if worker.world > 1:
        _average(model, worker.world)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"A gradient is not finite (loss {loss.item():.3f}): training diverged.",
            "Look for NaN or infinite values in the log; lower train.rate. Nothing was published.",
        )
    optimiser.step()
    return loss.detach()


def _check(histories: Histories, catalogue: int, train: TrainSettings) -> None:
    strange = ~np.isfinite(histories.weight) | (histories.weight < 0)
    if strange.any():
        raise TrainingError(
            f"{int(strange.sum())} events have a weight that is negative, infinite or not a number.",
            "Look at conf/data event weights and at the log's `value` column.",
        )
    if train.window < 2 or train.events < train.window:
        raise TrainingError(
            f"A window of {train.window} events does not fit batches of {train.events}.",
            "Set train.window to 2 or more, and train.events to at least as many.",
        )
    if not 0 < train.rate < math.inf:
        raise TrainingError(f"A rate of {train.rate} is none.", "Set train.rate to a small number above 0.")
    if len(histories.item) and histories.item.max() >= catalogue:
        raise TrainingError(
            f"The log names item row {histories.item.max()} of a catalogue of {catalogue}.", "Run ingest again."
        )


def _check_agreement(epoch: int, folder: Path, worker: Worker) -> None:
    """Workers that begin at different epochs would wait for each other for ever."""
    if worker.world == 1:
        return
    from torch import distributed

    ends = torch.tensor([epoch, -epoch], device=worker.device)
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    if int(ends.sum()):
        raise TrainingError(
            f"Workers found different checkpoints in {folder}.", "Put `out` on a disk that all nodes share."
        )


def _fingerprint(*arrays: np.ndarray) -> str:
    """Not against an adversary: only to tell one night's data from another's."""
    return "".join(f"{len(array):x}.{zlib.crc32(array.tobytes()):08x}" for array in arrays)


def _mean_loss(losses: list[Tensor], worker: Worker) -> float:
    """Over all workers, so that all go on or all stop."""
    loss = torch.stack(losses).mean()
    if worker.world > 1:
        from torch import distributed

        distributed.all_reduce(loss)
    return float(loss) / worker.world


def _average(model: nn.Module, world: int) -> None:
    from torch import distributed

    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= world


class _Negatives:
    """Half by popularity, half uniform: the one finds the hard ones, the other leaves no item untouched."""

    def __init__(self, wants: np.ndarray, train: TrainSettings, device: str) -> None:
        trained = torch.from_numpy((wants > 0).astype(np.float64))
        chance = 0.5 * torch.from_numpy(wants / wants.sum()) + 0.5 * trained / trained.sum()
        self.chance = chance.to(torch.float32).to(device)
        self.count = train.negatives

    def draw(self) -> Tensor:
        """(count,) item rows."""
        return torch.multinomial(self.chance, self.count, replacement=True)

    def expected(self, items: Tensor) -> Tensor:
        """How often each item is expected in a draw."""
        count: Tensor = self.chance[items] * self.count
        return count
