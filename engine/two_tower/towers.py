"""The two towers: items from id and content, people from decayed sums of what they wanted.

Input and output share the item vectors, and the score is a plain dot product. Three learned decays over time pool the
history; the person is LayerNorm(mix of the pools + MLP(pools)). The pools are linear in the events, which is what lets
consent be a subtraction. The shape follows decayed pooling of item vectors in session models (Ludewig & Jannach 2018,
doi:10.1007/s11257-018-9209-6) with a perceptron in the place of their neighbour search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.encode_user import UserTower
from engine.two_tower.features import Bag
from engine.two_tower.settings import TowerSettings


class _BagSum(torch.autograd.Function):
    """Weighted sums of the content rows of all items. Its gradient is the same kind of sum over the bag turned round, made
    once, where torch would sort the bag again at every step.
    """

    @staticmethod
    def forward(ctx: Any, content: Tensor, there: Sequence[Tensor], back: Sequence[Tensor]) -> Tensor:
        """content (R, D); there, back: rows, starts, weights of the bag and of its reverse. Gives (I, D)."""
        ctx.back = back
        return _sum_rows(content, *there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of each content row: the sum over the items that have it."""
        return _sum_rows(grads[0].contiguous(), *ctx.back), None, None


def _sum_rows(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


class ItemTower(nn.Module):
    """Item vector = id vector + weighted sum of content rows. An item nobody has wanted yet has content alone."""

    trained: Tensor
    there_rows: Tensor
    there_starts: Tensor
    there_weights: Tensor
    back_rows: Tensor
    back_starts: Tensor
    back_weights: Tensor

    def __init__(self, items: int, bag: Bag, trained: np.ndarray, settings: TowerSettings) -> None:
        super().__init__()
        scale = 1 / math.sqrt(settings.width) * 0.2
        self.bag = bag.packed()
        self.ids = nn.Parameter(torch.randn(items, settings.width) * scale)
        self.content = nn.Parameter(torch.randn(self.bag.size, settings.width) * scale)
        self.id_dropout = settings.id_dropout
        self.register_buffer("trained", torch.from_numpy(trained.astype(np.float32))[:, None], persistent=False)
        for way, part in (("there", self.bag), ("back", self.bag.reversed())):
            for name, array in (("rows", part.rows), ("starts", part.starts), ("weights", part.weights)):
                self.register_buffer(f"{way}_{name}", torch.from_numpy(array), persistent=False)

    def forward(self, items: Tensor | None = None) -> Tensor:
        """(n, D) vectors of some items, or of all."""
        if items is None:
            ids: Tensor = self.ids
            known = self.trained
            there = (self.there_rows, self.there_starts, self.there_weights)
            back = (self.back_rows, self.back_starts, self.back_weights)
            content: Tensor = _BagSum.apply(self.content, there, back)  # type: ignore[no-untyped-call]
        else:
            ids, known = F.embedding(items, self.ids), self.trained[items]
            part = self.bag.take(items.cpu().numpy())
            content = _sum_rows(
                self.content, *(torch.from_numpy(a).to(ids.device) for a in (part.rows, part.starts, part.weights))
            )
        if self.training and self.id_dropout:
            known = known * (torch.rand(len(ids), 1, device=ids.device) >= self.id_dropout)
        return ids * known + content


class Dropout(nn.Module):
    """Dropout by one random byte a value, to the nearest 1/256: torch's own takes as long as the products around it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.least = round(256 * share)

    def forward(self, values: Tensor) -> Tensor:
        """The values, in training some of them 0 and the others scaled up."""
        if not self.training or not self.least:
            return values
        draws = torch.randint(-(2**63), 2**63 - 1, (-(-values.numel() // 8),), device=values.device)
        kept = draws.view(torch.uint8)[: values.numel()].view(values.shape) >= self.least
        return values * kept * (256 / (256 - self.least))


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
        self.dropout = Dropout(settings.dropout)
        self.scale = math.sqrt(width)
        self.gap = settings.gap_minutes / 1440

    def pool(self, vectors: Tensor, days: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Pools before each target.

        Args:
            vectors: (B, L, D) item vectors. days: (B, L) float64. weight: (B, L). target: (B, L).

        Returns:
            (T, K, D) for the targets that have any history, and (B, L) which those are.
        """
        batch, at = target.nonzero(as_tuple=True)
        age = (days[batch, at][:, None] - days[batch]).to(torch.float32)  # (T, L)
        usable = (age > self.gap) & (weight[batch] > 0)
        some = usable.any(1)
        batch, at, age, usable = batch[some], at[some], age[some], usable[some]
        # A softmax of log weights is the decayed mean, and cannot underflow however old the events are.
        share = weight.clamp_min(1e-12).log()[batch][:, None] - self.log_rates.exp()[:, None] * age[:, None]
        share = share.masked_fill(~usable[:, None], -torch.inf).softmax(2)  # (T, K, L)
        # Back to windows: one product a window, where a copy of its L vectors for each target would be L times the memory.
        rows = vectors.new_zeros(*target.shape, *share.shape[1:]).index_put((batch, at), share)
        pools = (rows.flatten(1, 2) @ self.dropout(vectors)).unflatten(1, rows.shape[1:3])
        return pools[batch, at], torch.zeros_like(target).index_put((batch, at), torch.ones_like(some[some]))

    def forward(self, pools: Tensor) -> Tensor:
        """(T, K, D) decayed means -> (T, D) vectors."""
        pools = pools * self.scale
        mixed = torch.einsum("tkd,k->td", pools, self.mix)
        hidden = F.silu(self.enter(pools.flatten(1)))
        vector: Tensor = self.norm(mixed + self.leave(self.dropout(hidden)))
        return vector

    def arrays(self) -> UserTower:
        """The parameters as the server uses them."""
        enter, leave, norm = self.enter, self.leave, self.norm
        tensors = (
            self.log_rates.exp(),
            self.mix,
            enter.weight,
            enter.bias,
            leave.weight,
            leave.bias,
            norm.weight,
            norm.bias,
        )
        return UserTower(*(tensor.detach().float().cpu().numpy().copy() for tensor in tensors))
