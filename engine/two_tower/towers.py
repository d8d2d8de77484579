"""The two towers: items from id and content, people from decayed sums of what they wanted.

Input and output share the item vectors, and the score is a plain dot product. Three learned decays over time pool the
history; the person is LayerNorm(mix of the pools + MLP(pools)). The pools are linear in the events, which is what lets
consent be a subtraction. The shape follows decayed pooling of item vectors in session models (Ludewig & Jannach 2018,
doi:10.1007/s11257-018-9209-6) with a perceptron in the place of their neighbour search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.encode_user import UserTower
from engine.two_tower.features import Bag


@dataclass(slots=True)
class TowerSettings:
    """Shape of both towers. width: D; half_lives: days, one per decay; gap_minutes: how long before a want the history ends."""

    name: str = "decayed_pooling"
    width: int = 64
    hashed: int = 32_768
    half_lives: list[float] = field(default_factory=lambda: [3.0, 30.0, 300.0])
    dropout: float = 0.3
    id_dropout: float = 0.1
    gap_minutes: float = 60.0


class ItemTower(nn.Module):
    """Item vector = id vector + weighted sum of content rows. An item nobody has wanted yet has content alone."""

    def __init__(self, items: int, bag: Bag, trained: np.ndarray, settings: TowerSettings) -> None:
        super().__init__()
        scale = 1 / math.sqrt(settings.width) * 0.2
        self.ids = nn.Parameter(torch.randn(items, settings.width) * scale)
        self.content = nn.Parameter(torch.randn(bag.size, settings.width) * scale)
        self.id_dropout = settings.id_dropout
        self.bag = bag
        self.register_buffer("trained", torch.from_numpy(trained.astype(np.float32))[:, None], persistent=False)
        for name, array in (("rows", bag.rows), ("starts", bag.starts), ("weights", bag.weights)):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """(n, D) vectors of some items, or of all."""
        if items is None:
            ids, known = self.ids, self.trained
            rows, starts, weights = self.rows, self.starts, self.weights
        else:
            ids, known = self.ids[items], self.trained[items]
            part = self.bag.take(items.cpu().numpy())
            rows, starts, weights = (
                torch.from_numpy(array).to(self.ids.device) for array in (part.rows, part.starts, part.weights)
            )
        if self.training and self.id_dropout:
            known = known * (torch.rand(len(ids), 1, device=ids.device) >= self.id_dropout)
        content = F.embedding_bag(
            rows, self.content, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
        return ids * known + content


class DecayedPooling(nn.Module):
    """The person: learned decays over time, a mix of them, and a small MLP on top."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        width, decays = settings.width, len(settings.half_lives)
        self.log_rates = nn.Parameter(torch.log(math.log(2) / torch.tensor(settings.half_lives)))
        self.mix = nn.Parameter(torch.full((decays,), 1 / decays))
        self.enter = nn.Linear(decays * width, 2 * width)
        self.leave = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.scale = math.sqrt(width)
        self.gap = settings.gap_minutes / 1440

    def pool(self, vectors: Tensor, days: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """Pools before each target.

        Args:
            vectors: (B, L, D) item vectors. days: (B, L) float64. weight: (B, L). target: (B, L).

        Returns:
            (T, K, D) for the targets that have any history, and the mask of those targets, (B, L).
        """
        batch, at = target.nonzero(as_tuple=True)
        age = (days[batch, at][:, None] - days[batch]).to(torch.float32)  # (T, L)
        usable = (age > self.gap) & (weight[batch] > 0)
        some = usable.any(1)
        batch, at, age, usable = batch[some], at[some], age[some], usable[some]
        self.kept = (batch, at)
        # A softmax of log weights is the decayed mean, and cannot underflow however old the events are.
        share = torch.log(weight[batch].clamp_min(1e-12))[:, None] - self.log_rates.exp()[None, :, None] * age[:, None]
        share = share.masked_fill(~usable[:, None], -torch.inf).softmax(2)  # (T, K, L)
        return torch.bmm(share, self.dropout(vectors)[batch])

    def forward(self, pools: Tensor) -> Tensor:
        """(T, K, D) decayed means -> (T, D) vectors."""
        pools = pools * self.scale
        mixed = torch.einsum("tkd,k->td", pools, self.mix)
        hidden = F.silu(self.enter(pools.flatten(1)))
        vector: Tensor = self.norm(mixed + self.leave(self.dropout(hidden)))
        return vector

    def arrays(self) -> UserTower:
        """The parameters as the server uses them."""
        plain = lambda tensor: tensor.detach().float().cpu().numpy().copy()  # noqa: E731
        return UserTower(
            plain(self.log_rates.exp()),
            plain(self.mix),
            plain(self.enter.weight),
            plain(self.enter.bias),
            plain(self.leave.weight),
            plain(self.leave.bias),
            plain(self.norm.weight),
            plain(self.norm.bias),
        )
