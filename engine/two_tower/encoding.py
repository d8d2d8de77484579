"""After training: item vectors, and each person's decayed sums by group of events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from engine.kernels.encode_user import UserTower
from engine.kernels.encode_user.reference import MICROSECONDS_A_DAY
from engine.two_tower.histories import Histories
from engine.two_tower.towers import ItemTower

_ITEMS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class GroupSums:
    """G groups of events, by person and then by group: owner (G,), group (G,), last (G,), weights (G, K), sums (G, K, D)."""

    owner: NDArray[np.int64]
    group: NDArray[np.uint8]
    last: NDArray[np.int64]
    weights: NDArray[np.float32]
    sums: NDArray[np.float32]


def device_here() -> str:
    """ "cuda" where this process can see a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def item_vectors(tower: ItemTower) -> NDArray[np.float32]:
    """(I, D) vectors of the whole catalogue, a part at a time."""
    count = len(tower.ids)
    parts = [
        tower(torch.arange(first, min(first + _ITEMS_AT_ONCE, count), device=tower.ids.device)).cpu()
        for first in range(0, count, _ITEMS_AT_ONCE)
    ]
    return torch.cat(parts).numpy() if parts else np.empty((0, tower.ids.shape[1]), np.float32)


def group_sums(histories: Histories, vectors: NDArray[np.float32], tower: UserTower, device: str = "cpu") -> GroupSums:
    """Sum the vectors of what each person wanted, by source and kind of event, older events fading.

    Args:
        histories: events that may rank.
        vectors: (I, D) item vectors.
        tower: for its K rates of decay.
        device: where the sums are taken.
    """
    counts = histories.weight > 0
    owner, group = histories.owner[counts], histories.group[counts]
    item, ts, weight = histories.item[counts], histories.ts[counts], histories.weight[counts]
    order = np.lexsort((ts, group, owner))
    owner, group, item, ts, weight = owner[order], group[order], item[order], ts[order], weight[order]
    fresh = np.ones(len(owner), bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (group[1:] != group[:-1])
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(starts, len(owner)))
    last = ts[starts + sizes - 1] if len(starts) else ts
    days = (np.repeat(last, sizes) - ts) / MICROSECONDS_A_DAY
    decays, width = len(tower.rates), vectors.shape[1]
    weights = np.zeros((len(starts), decays), np.float32)
    sums = np.zeros((len(starts), decays, width), np.float32)
    if len(starts):
        table = torch.from_numpy(np.require(vectors, requirements="W")).to(device)
        rows = torch.from_numpy(item.astype(np.int64)).to(device)
        offsets = torch.from_numpy(starts).to(device)
        for k, rate in enumerate(tower.rates):
            faded = (weight * np.exp(-float(rate) * days)).astype(np.float32)
            weights[:, k] = np.add.reduceat(faded, starts)
            sums[:, k] = F.embedding_bag(
                rows, table, offsets, mode="sum", per_sample_weights=torch.from_numpy(faded).to(device)
            ).cpu()
    return GroupSums(owner[starts], group[starts], last, weights, sums)
