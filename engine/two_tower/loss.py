"""Softmax over items: all of them where the catalogue allows, a corrected sample where it does not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Logits held at once: on a CPU what its caches hold, on a GPU what keeps it busy.
_LOGITS = {True: 2**19, False: 2**25}


class FullSoftmax(torch.autograd.Function):
    """Mean cross-entropy over all items with the gradients taken on the way forward, a few rows at a time.

    The (T, I) matrix of logits is never whole in memory, and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
        """users (T, D), items (I, D), wanted (T,) item rows, smoothing: share of the target spread over all items."""
        count, catalogue = len(users), len(items)
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        total = users.new_zeros(())
        centre = items.mean(0)
        rows_at_once = max(1, min(count, _LOGITS[users.device.type == "cpu"] // max(catalogue, 1)))
        buffer = users.new_empty(rows_at_once, catalogue)
        every = torch.arange(rows_at_once, device=users.device)
        for first in range(0, count, rows_at_once):
            rows, target = users[first : first + rows_at_once], wanted[first : first + rows_at_once]
            logits = torch.mm(rows, items.T, out=buffer[: len(rows)])
            own = logits.gather(1, target[:, None]).sum()
            highest = logits.amax(1, keepdim=True)
            mass = logits.sub_(highest).exp_().sum(1, keepdim=True)
            total += (mass.log() + highest).sum() - (1 - smoothing) * own - smoothing * (rows @ centre).sum()
            chance = logits.div_(mass)
            chance[every[: len(rows)], target] -= 1 - smoothing
            torch.mm(chance, items, out=grad_users[first : first + rows_at_once])
            grad_items.addmm_(chance.T, rows)
        grad_users -= smoothing * centre
        grad_items -= (smoothing / catalogue) * users.sum(0)
        ctx.save_for_backward(grad_users / count, grad_items / count)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale what forward left."""
        users, items = ctx.saved_tensors
        return grads[0] * users, grads[0] * items, None, None


def sampled_softmax(users: Tensor, positive: Tensor, negatives: Tensor, expected: Tensor, clash: Tensor) -> Tensor:
    """Mean cross-entropy against a sample that stands for all items.

    Args:
        users: (T, D). positive: (T, D) vectors of the wanted items. negatives: (S, D) vectors of the sample.
        expected: (S,) how often each was expected in the sample; its log corrects the logit, which makes the sum an
            unbiased estimate of the full one.
        clash: (T, S) where the sample hit the wanted item itself.

    Source: importance sampling, Bengio & Senécal 2008, doi:10.1109/TNN.2007.912312; the same correction for two towers,
    Yi et al. 2019, doi:10.1145/3298689.3346996.
    """
    own = (users * positive).sum(1)
    others = (users @ negatives.T - expected.log()).masked_fill(clash, -math.inf)
    return (torch.logaddexp(others.logsumexp(1), own) - own).mean()
