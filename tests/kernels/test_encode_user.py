"""Users without torch: the encoding, and the consent algebra that it rests on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import KernelError
from engine.kernels.encode_user import UserTower, encode, pool, within_groups
from engine.two_tower.encoding import group_sums
from tests.event_logs import histories, random_log, random_tower, without

WIDTH = 5


def vectors(items, seed=0):
    return np.random.default_rng(seed).standard_normal((items, WIDTH)).astype(np.float32)


def encoded(past, table, tower, mask):
    """Everybody's vector from the stored sums of the groups that a mask allows."""
    stored = group_sums(past, table, tower)
    inside = within_groups(mask, stored.group)
    parts = stored.sums[inside], stored.weights[inside], stored.last[inside], stored.owner[inside]
    return encode(*pool(*parts, past.users, tower.rates), tower)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 63), st.sampled_from([1.0, 300.0, 30_000.0]))
def test_withdrawing_sources_is_a_night_rebuilt_without_them(seed, events, mask, days):
    rng = np.random.default_rng(seed)
    past, table, tower = random_log(rng, 4, 20, events, 6, days), vectors(20), random_tower(rng)
    rebuilt = without(past, ~within_groups(mask, past.group))
    np.testing.assert_allclose(
        encoded(past, table, tower, mask), encoded(rebuilt, table, tower, 2**64 - 1), rtol=1e-4, atol=1e-4
    )


def test_a_group_of_a_lifetime_ago_is_as_good_as_new_once_the_newer_ones_are_withdrawn():
    old = [{"user": 0, "item": n, "days": 25_000.0 + n, "group": 0} for n in range(3)]
    new = [{"user": 0, "item": 9, "days": 0.0, "group": 2}]
    table, tower = vectors(10), random_tower(np.random.default_rng(0))
    alone = encoded(histories(old), table, tower, 1)
    assert np.isfinite(alone).all() and (alone != 0).any()
    np.testing.assert_allclose(encoded(histories(old + new), table, tower, 1), alone, rtol=1e-6)


def test_todays_events_are_an_addition():
    rng = np.random.default_rng(4)
    past, table, tower = random_log(rng, 3, 20, 40, 4), vectors(20), random_tower(rng)
    late = past.ts > np.median(past.ts)
    before, after = group_sums(without(past, late), table, tower), group_sums(without(past, ~late), table, tower)
    order = np.argsort(np.concatenate([before.owner, after.owner]), kind="stable")
    both = [
        np.concatenate([getattr(before, name), getattr(after, name)])[order]
        for name in ("sums", "weights", "last", "owner")
    ]
    np.testing.assert_allclose(
        encode(*pool(*both, 3, tower.rates), tower), encoded(past, table, tower, 2**64 - 1), rtol=1e-4, atol=1e-4
    )


def test_a_person_with_nothing_allowed_is_the_zero_vector():
    past = histories([{"user": 1, "item": 0, "group": 3}], users=3)
    tower = random_tower(np.random.default_rng(0))
    found = encoded(past, vectors(1), tower, 1 << 3)
    assert (found[[0, 2]] == 0).all() and (found[1] != 0).any()
    assert (encoded(past, vectors(1), tower, 0) == 0).all()


def test_nobody_at_all_is_no_error():
    tower = random_tower(np.random.default_rng(0))
    none = np.empty(0, np.int64)
    sums, weights = pool(np.empty((0, 2, WIDTH), np.float32), np.empty((0, 2), np.float32), none, none, 0, tower.rates)
    assert encode(sums, weights, tower).shape == (0, WIDTH)


def test_extreme_sums_neither_overflow_nor_warn():
    tower = random_tower(np.random.default_rng(0))
    sums = np.array([[[1e30] * WIDTH] * 2, [[-1e3] * WIDTH] * 2, [[1e-38] * WIDTH] * 2], np.float32)
    weights = np.array([[1e30, 1e30], [1, 1], [1e-38, 1e-38]], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = encode(sums, weights, tower)
    assert np.isfinite(found).all() and found.dtype == np.float32


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 63), max_size=8))
def test_a_group_is_within_a_mask_by_its_bit(mask, groups):
    found = within_groups(mask, np.array(groups, np.uint8))
    assert found.tolist() == [bool(mask >> group & 1) for group in groups]


def test_a_tower_survives_its_arrays_and_a_missing_one_is_named():
    tower = random_tower(np.random.default_rng(0))
    again = UserTower.of(tower.arrays())
    for name, array in tower.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), array)
    arrays = tower.arrays()
    del arrays["gain"], arrays["mix"]
    with pytest.raises(KernelError, match="mix, gain"):
        UserTower.of(arrays)
