"""The towers: pools against plain sums, gradients against torch's own, and the server's NumPy against both."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.errors import SettingsError
from engine.kernels.encode_user import encode, pool
from engine.two_tower.encoding import group_sums
from engine.two_tower.features import describe
from engine.two_tower.registry import user_tower
from engine.two_tower.settings import TowerSettings
from engine.two_tower.towers import DecayedPooling, Dropout, ItemTower
from tests.event_logs import DAY, catalogue, random_log

SETTINGS = TowerSettings(width=6, dropout=0.0, id_dropout=0.0, half_lives=[3.0, 40.0])


def random_people(settings=SETTINGS, seed=0):
    torch.manual_seed(seed)
    tower = DecayedPooling(settings)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return tower.eval()


def window(rng, batch, length, width):
    days = np.sort(rng.random((batch, length)) * 100, 1)
    weight = rng.choice([0.0, 0.25, 1.0], (batch, length)).astype(np.float32)
    target = rng.random((batch, length)) < 0.5
    return (
        torch.from_numpy(rng.standard_normal((batch, length, width)).astype(np.float32)),
        torch.from_numpy(days),
        torch.from_numpy(weight),
        torch.from_numpy(target),
    )


def plain_pool(tower, vectors, days, weight, target):
    """One target at a time, in float64."""
    rates = tower.log_rates.detach().double().exp().numpy()
    found = []
    for row, at in zip(*np.nonzero(target.numpy()), strict=True):
        age = (days[row, at] - days[row]).numpy()
        usable = (age > tower.gap) & (weight[row] > 0).numpy()
        if not usable.any():
            continue
        share = weight[row].double().numpy()[usable] * np.exp(-rates[:, None] * (age[usable] - age[usable].min()))
        found.append((share / share.sum(1, keepdims=True)) @ vectors[row].double().numpy()[usable])
    return np.array(found).reshape(-1, len(rates), vectors.shape[2])


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 5), (7, 33)])
def test_pools_are_the_decayed_means_of_what_lies_before(batch, length):
    tower = random_people()
    inputs = window(np.random.default_rng(length), batch, length, 6)
    pools, asked = tower.pool(*inputs)
    np.testing.assert_allclose(pools.detach().numpy(), plain_pool(tower, *inputs), rtol=2e-5, atol=2e-6)
    assert int(asked.sum()) == len(pools) and not (asked & ~inputs[3]).any()


def test_events_within_the_gap_and_later_ones_tell_nothing():
    tower = random_people()
    vectors = torch.eye(4, 6)[None]
    days = torch.tensor([[0.0, 1.0, 1.0 + tower.gap / 2, 5.0]], dtype=torch.float64)
    pools, _ = tower.pool(vectors, days, torch.ones(1, 4), torch.tensor([[False, False, True, False]]))
    torch.testing.assert_close(pools, vectors[:, :1].expand(1, 2, 6))


def test_a_target_without_history_is_not_asked_for_and_gives_no_nan_gradient():
    tower = random_people()
    vectors = torch.randn(2, 3, 6, requires_grad=True)
    days = torch.tensor([[0.0, 0.0, 9.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    pools, asked = tower.pool(vectors, days, weight, torch.ones(2, 3, dtype=torch.bool))
    assert asked.tolist() == [[False, False, True], [False, False, False]]
    tower(pools).sum().backward()
    assert torch.isfinite(vectors.grad).all() and torch.isfinite(tower.log_rates.grad).all()


def test_a_batch_without_any_target_is_empty():
    tower = random_people()
    inputs = window(np.random.default_rng(0), 2, 4, 6)
    pools, asked = tower.pool(*inputs[:3], torch.zeros(2, 4, dtype=torch.bool))
    assert pools.shape == (0, 2, 6) and not asked.any()


def test_very_old_events_do_not_underflow():
    tower = random_people()
    days = torch.tensor([[0.0, 30_000.0, 60_000.0]], dtype=torch.float64)
    vectors = torch.eye(3, 6)[None]
    pools, _ = tower.pool(vectors, days, torch.ones(1, 3), torch.tensor([[False, True, False]]))
    torch.testing.assert_close(pools, vectors[:, :1].expand(1, 2, 6))


@pytest.mark.parametrize("seed", range(3))
def test_the_server_encodes_as_the_tower_that_was_trained(seed):
    rng = np.random.default_rng(seed)
    past = random_log(rng, 1, 9, 12)
    vectors = rng.standard_normal((9, 6)).astype(np.float32)
    tower = random_people(seed=seed)
    arrays = tower.arrays()
    found = group_sums(past, vectors, arrays)
    served = encode(*pool(found.sums, found.weights, found.last, found.owner, 1, arrays.rates), arrays)
    # The tower sees one more event, long after the last, as the target of everything before.
    days = np.append(past.ts, past.ts[-1] + DAY)[None] / DAY
    weight = np.append(past.weight, np.float32(1))[None]
    target = np.zeros(days.shape, bool)
    target[0, -1] = True
    history = np.concatenate([vectors[past.item], np.zeros((1, 6), np.float32)])[None]
    with torch.no_grad():
        trained = tower(tower.pool(*(torch.from_numpy(part) for part in (history, days, weight, target)))[0])
    np.testing.assert_allclose(served, trained.numpy(), rtol=1e-4, atol=2e-5)


def items_of(count=7, trained=None, **settings):
    titles = ["red mug", "red cup", "blue mug", "blue cup", None, "red mug", "odd"][:count]
    bag = describe(catalogue(titles), 64)
    torch.manual_seed(0)
    known = np.ones(count, bool) if trained is None else trained
    return ItemTower(count, bag, known, TowerSettings(width=5, **settings)).eval()


def test_some_items_and_all_items_have_the_same_vectors():
    tower = items_of()
    some = torch.tensor([6, 0, 0, 4])
    torch.testing.assert_close(tower(some), tower()[some])


def test_the_gradient_of_all_items_is_that_of_torch():
    tower = items_of()
    ways = []
    for vectors in (tower(), tower(torch.arange(7))):
        tower.zero_grad()
        (vectors**2).sum().backward()
        ways.append([tower.ids.grad.clone(), tower.content.grad.clone()])
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_item_that_nobody_wanted_has_content_alone():
    trained = np.array([True] * 5 + [False, False])
    vectors = items_of(trained=trained)()
    assert not torch.equal(vectors[0], vectors[5])  # same words, but item 0 has a vector of its own besides
    with torch.no_grad():
        tower = items_of(trained=trained)
        content = tower() - tower.ids * tower.trained
    torch.testing.assert_close(vectors[5], content[0])
    assert (vectors[6] == 0).all()


def test_in_training_ids_are_dropped_and_content_is_not():
    tower = items_of(id_dropout=1.0).train()
    content = tower()
    torch.testing.assert_close(content[0], content[5])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_dropout_drops_its_share_keeps_the_mean_and_does_nothing_when_serving(share):
    torch.manual_seed(1)
    values = torch.ones(399, 101)
    dropped = Dropout(share)
    kept = dropped(values)
    assert abs(float((kept == 0).float().mean()) - share) < 0.01
    assert abs(float(kept.mean()) - 1) < 0.02
    assert torch.equal(dropped.eval()(values), values)


def test_a_tower_is_found_by_name_and_a_near_miss_is_named():
    assert isinstance(user_tower(TowerSettings()), DecayedPooling)
    with pytest.raises(SettingsError, match="did you mean 'decayed_pooling'"):
        user_tower(TowerSettings(name="decayed_poling"))


def test_the_person_is_the_norm_of_the_mix_and_the_perceptron():
    tower = random_people()
    pools = torch.randn(4, 2, 6)
    scaled = pools * 6**0.5
    hidden = F.silu(tower.enter(scaled.flatten(1)))
    expected = tower.norm(tower.mix[0] * scaled[:, 0] + tower.mix[1] * scaled[:, 1] + tower.leave(hidden))
    torch.testing.assert_close(tower(pools), expected)
