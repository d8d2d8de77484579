"""The softmax losses: the full one equals torch's, the sampled one stands for it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.two_tower import loss
from engine.two_tower.loss import FullSoftmax, sampled_softmax


def case(rows, items, width, seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    users = (torch.randn(rows, width, generator=rng) * scale).requires_grad_()
    table = (torch.randn(items, width, generator=rng) * scale).requires_grad_()
    return users, table, torch.randint(0, items, (rows,), generator=rng)


@pytest.mark.parametrize("logits_at_once", [1, 700, 2**19], ids=["a row at a time", "several chunks", "one chunk"])
@pytest.mark.parametrize(("rows", "items", "width"), [(1, 1, 1), (1, 5, 3), (37, 123, 7), (130, 2, 4)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_full_softmax_equals_torch_in_value_and_gradients(
    rows, items, width, smoothing, logits_at_once, monkeypatch
):
    monkeypatch.setattr(loss, "_LOGITS", {True: logits_at_once, False: logits_at_once})
    users, table, wanted = case(rows, items, width)
    found = FullSoftmax.apply(users, table, wanted, smoothing)
    (3 * found).backward()
    ours = (users.grad, table.grad)
    users.grad = table.grad = None
    expected = F.cross_entropy(users @ table.T, wanted, label_smoothing=smoothing)
    (3 * expected).backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[0], users.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], table.grad, rtol=1e-4, atol=1e-6)


def test_large_logits_do_not_overflow():
    users, table, wanted = case(9, 20, 6, scale=40.0)
    found = FullSoftmax.apply(users, table, wanted, 0.0)
    found.backward()
    torch.testing.assert_close(found, F.cross_entropy(users @ table.T, wanted), rtol=1e-5, atol=1e-4)
    assert torch.isfinite(users.grad).all() and torch.isfinite(table.grad).all()


def draw(chance, count, seed):
    return torch.multinomial(chance, count, replacement=True, generator=torch.Generator().manual_seed(seed))


def sampled(users, table, wanted, chance, count, seed):
    sample = draw(chance, count, seed)
    return sampled_softmax(users, table[wanted], table[sample], chance[sample] * count, wanted[:, None] == sample[None])


def test_the_corrected_sample_estimates_the_sum_over_all_items_without_bias():
    users, table, wanted = case(3, 40, 4, seed=1)
    chance = torch.from_numpy(np.random.default_rng(2).dirichlet(np.ones(40))).float() * 0.5 + 0.5 / 40
    with torch.no_grad():
        logits = users @ table.T
        others = logits.exp().sum(1) - logits.gather(1, wanted[:, None]).squeeze(1).exp()
        guesses = []
        for seed in range(3000):
            sample = draw(chance, 16, seed)
            weighed = (logits[:, sample] - (chance[sample] * 16).log()).exp()
            guesses.append((weighed * (wanted[:, None] != sample[None])).sum(1))
        every = torch.stack(guesses)
    error = every.std(0) / len(guesses) ** 0.5
    assert ((every.mean(0) - others).abs() < 4 * error).all()


def test_the_sampled_loss_converges_to_the_full_one():
    users, table, wanted = case(50, 300, 8, seed=3, scale=0.7)
    chance = torch.full((300,), 1 / 300)
    full = F.cross_entropy(users @ table.T, wanted)
    off = [abs(float((sampled(users, table, wanted, chance, count, 0) - full).detach())) for count in (30, 200_000)]
    assert off[1] < 0.01 and off[1] < off[0]


def test_a_sample_that_is_all_clashes_costs_nothing():
    users, table, wanted = case(1, 3, 2)
    clash = torch.ones(1, 4, dtype=torch.bool)
    value = sampled_softmax(users, table[wanted], table[wanted].expand(4, -1), torch.ones(4), clash)
    assert value.item() == 0
