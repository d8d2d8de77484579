"""After training: item vectors in parts, and sums by person and group of events."""

import numpy as np
import pytest
import torch

from engine.two_tower import encoding
from engine.two_tower.encoding import group_sums, item_vectors
from engine.two_tower.features import describe
from engine.two_tower.settings import TowerSettings
from engine.two_tower.towers import ItemTower
from tests.event_logs import DAY, catalogue, histories, random_log, random_tower


@pytest.mark.parametrize("count", [0, 1, 7])
def test_vectors_are_the_same_in_parts_and_at_once(count, monkeypatch):
    titles = ["red mug", "red cup", "blue mug", "blue cup", None, "red mug", "odd"][:count]
    tower = ItemTower(count, describe(catalogue(titles), 64), np.ones(count, bool), TowerSettings(width=4)).eval()
    whole = item_vectors(tower)
    monkeypatch.setattr(encoding, "_ITEMS_AT_ONCE", 3)
    assert whole.shape == (count, 4) and whole.dtype == np.float32
    np.testing.assert_allclose(item_vectors(tower), whole, rtol=1e-6)


def test_sums_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    past, tower = random_log(rng, 6, 11, 90, 5), random_tower(rng)
    vectors = rng.standard_normal((11, 5)).astype(np.float32)
    found = group_sums(past, vectors, tower)
    pairs = sorted(set(zip(past.owner.tolist(), past.group.tolist(), strict=True)))
    assert list(zip(found.owner.tolist(), found.group.tolist(), strict=True)) == pairs
    for row, (owner, group) in enumerate(pairs):
        mine = (past.owner == owner) & (past.group == group)
        last = past.ts[mine].max()
        assert found.last[row] == last
        faded = past.weight[mine] * np.exp(-tower.rates[:, None] * ((last - past.ts[mine]) / DAY))
        np.testing.assert_allclose(found.weights[row], faded.sum(1), rtol=1e-5)
        np.testing.assert_allclose(found.sums[row], faded @ vectors[past.item[mine]], rtol=1e-4, atol=1e-5)


def test_people_who_only_saw_impressions_have_no_sums():
    past = histories([{"user": 1, "item": 0, "weight": 0.0, "event": "impression"}, {"user": 2, "item": 1}], users=4)
    found = group_sums(past, np.ones((2, 5), np.float32), random_tower(np.random.default_rng(0)))
    assert found.owner.tolist() == [2]


def test_an_empty_shard_has_no_sums():
    found = group_sums(histories([], users=0), np.ones((2, 5), np.float32), random_tower(np.random.default_rng(0)))
    assert found.sums.shape == (0, 2, 5) and found.weights.shape == (0, 2) and len(found.last) == 0


def test_vectors_of_a_file_that_cannot_be_written_are_read_without_a_warning(recwarn):
    vectors = np.ones((2, 5), np.float32)
    vectors.setflags(write=False)
    group_sums(histories([{"user": 0, "item": 1}]), vectors, random_tower(np.random.default_rng(0)))
    assert not recwarn.list


def test_sums_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(1)
    past, tower = random_log(rng, 30, 50, 3000, 4), random_tower(rng)
    vectors = rng.standard_normal((50, 5)).astype(np.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(group_sums(past, vectors, tower).sums.tobytes())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
