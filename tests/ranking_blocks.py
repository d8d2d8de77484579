"""A block of people and a shop at random, for the tests of ranking."""

from __future__ import annotations

import numpy as np

from engine.ranking.people import People, Shop, gather
from engine.ranking.settings import RankSettings
from engine.schema import NO_ITEM
from engine.two_tower.encoding import group_sums
from engine.two_tower.histories import Histories
from tests.event_logs import NOON, random_tower

EVERYTHING = (("full", 2**64 - 1),)


def block(
    past: Histories,
    shop: Shop,
    settings: RankSettings | None = None,
    profiles: tuple[tuple[str, int], ...] = EVERYTHING,
    seed: int = 0,
) -> People:
    """The people of a log as lanes see them, with a user tower of random weights."""
    tower = random_tower(np.random.default_rng(seed), shop.vectors.shape[1])
    sums = group_sums(past, shop.vectors, tower)
    return gather(past, sums, tower, profiles, shop.size, NOON, settings or RankSettings())


def random_shop(rng: np.random.Generator, items: int, neighbours: int = 6, width: int = 5) -> Shop:
    """Vectors, neighbours and habits at random; some items have fewer neighbours than others, and one has none."""
    near = np.full((items, neighbours), NO_ITEM, np.int32)
    likeness = np.zeros((items, neighbours), np.float32)
    for item in range(items):
        others = np.setdiff1d(np.arange(items), [item])
        count = min(int(rng.integers(0, neighbours + 1)), len(others))
        near[item, :count] = rng.choice(others, count, replace=False)
        likeness[item, :count] = np.sort(rng.random(count).astype(np.float32))[::-1]
    return Shop(
        rng.standard_normal((items, width)).astype(np.float32),
        near,
        likeness,
        rng.random(items) * 0.3,
        rng.dirichlet(np.ones(items)) if items else np.empty(0),
        rng.random(items) < 0.5,
        0.8,
    )
