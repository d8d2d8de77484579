"""Users without torch: the encoding, and the consent algebra that it rests on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import KernelError
from engine.kernels.encode_user import (
    SAMPLE,
    Encoder,
    Scale,
    UserTower,
    encode,
    expected_wants,
    faded,
    log_mass,
    nearest_decay,
    pool,
    step_of,
    within_groups,
)
from engine.kernels.encode_user.scale import Similar
from engine.schema import EVENTS, PURCHASE
from engine.two_tower.encoding import group_sums
from tests.event_logs import DAY, NOON, histories, random_log, random_tower, without

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


# --- the compiled path


def needs(group):
    """Each group asks for its own bit."""
    return np.uint64(1) << group.astype(np.uint64)


def edges(stored, users):
    found = np.searchsorted(stored.owner, np.arange(users + 1))
    return found[:-1], found[1:]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 60),
    st.one_of(st.integers(0, 63), st.just(2**64 - 1), st.just(2**63 - 1)),
    st.sampled_from([1.0, 300.0, 30_000.0]),
    st.sampled_from([(1, (3.0,)), (5, (3.0, 30.0)), (64, (3.0, 30.0, 300.0)), (123, (1.0, 2.0, 4.0, 8.0))]),
)
def test_one_person_compiled_is_the_reference_and_a_night_rebuilt(seed, events, mask, days, shape):
    width, half_lives = shape
    rng = np.random.default_rng(seed)
    past, tower = random_log(rng, 4, 20, events, 6, days), random_tower(rng, width, half_lives)
    table = rng.standard_normal((20, width)).astype(np.float32)
    encoder = Encoder(tower)
    stored = group_sums(past, table, tower)
    rebuilt = group_sums(without(past, ~within_groups(mask, past.group)), table, tower)
    sums = [each.sums.reshape(len(each.sums), len(half_lives) * width) for each in (stored, rebuilt)]
    night = encoder.many(
        sums[1], rebuilt.weights, rebuilt.last, needs(rebuilt.group), *edges(rebuilt, past.users), 2**64 - 1
    )
    expected = encode(*pool(rebuilt.sums, rebuilt.weights, rebuilt.last, rebuilt.owner, past.users, tower.rates), tower)
    for user, (first, end) in enumerate(zip(*edges(stored, past.users), strict=True)):
        parts = sums[0][first:end], stored.weights[first:end], stored.last[first:end], needs(stored.group[first:end])
        mine = encoder.one(*parts, mask)
        assert mine.dtype == np.float32 and mine.tobytes() == night[user].tobytes()
        np.testing.assert_allclose(mine, expected[user], rtol=2e-4, atol=2e-4)


def test_one_person_with_nothing_allowed_or_nothing_at_all_is_the_zero_vector():
    encoder = Encoder(random_tower(np.random.default_rng(0)))
    sums, weights = np.ones((1, 10), np.float32), np.ones((1, 2), np.float32)
    last, group = np.zeros(1, np.int64), needs(np.array([3], np.uint8))
    assert (encoder.one(sums, weights, last, group, 1 << 3) != 0).any()
    assert (encoder.one(sums, weights, last, group, ~(1 << 3) & 2**64 - 1) == 0).all()
    assert (encoder.one(sums[:0], weights[:0], last[:0], group[:0], 2**64 - 1) == 0).all()
    assert encoder.many(sums, weights, last, group, last[:0], last[:0], 1).shape == (0, 5)


def test_a_group_that_asks_for_several_grants_counts_with_all_of_them_alone():
    encoder = Encoder(random_tower(np.random.default_rng(0)))
    parts = np.ones((1, 10), np.float32), np.ones((1, 2), np.float32), np.zeros(1, np.int64)
    for asked in (0b101, 1 << 63 | 1):
        several = np.array([asked], np.uint64)
        assert (encoder.one(*parts, several, asked | 0b10) != 0).any()
        for granted in (0b1, 0b10, 0b100, asked & ~1, 0):
            assert (encoder.one(*parts, several, granted) == 0).all()


def test_extreme_sums_compiled_stay_finite():
    encoder = Encoder(random_tower(np.random.default_rng(0)))
    last, group = np.array([0, 10**18], np.int64), needs(np.array([0, 1], np.uint8))
    for sums, weights in ((1e30, 1e30), (-1e3, 1.0), (1e-38, 1e-38)):
        found = encoder.one(np.full((2, 10), sums, np.float32), np.full((2, 2), weights, np.float32), last, group, 0b11)
        assert np.isfinite(found).all()


def test_a_tower_whose_parameters_disagree_does_not_fit():
    tower = random_tower(np.random.default_rng(0), 5, (3.0, 30.0))
    assert tower.fits(2, 5) and not tower.fits(3, 5) and not tower.fits(2, 4)
    arrays = tower.arrays()
    for name in arrays:
        assert not UserTower.of(arrays | {name: arrays[name][:-1]}).fits(2, 5)


# --- what a score says of wants


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 63))
def test_the_mass_of_some_groups_is_that_of_their_events(seed, events, mask):
    rng = np.random.default_rng(seed)
    past, tower = random_log(rng, 1, 20, events, 6), random_tower(rng)
    k, stored = 1, group_sums(past, vectors(20), tower)
    inside = within_groups(mask, stored.group)
    events_inside = within_groups(mask, past.group) & (past.weight > 0)
    summed = faded(stored.weights[inside, k], stored.last[inside], NOON + DAY, tower.rates[k]).sum()
    each = faded(past.weight[events_inside], past.ts[events_inside], NOON + DAY, tower.rates[k]).sum()
    np.testing.assert_allclose(summed, each, rtol=1e-5)


def test_the_decay_of_mass_is_the_nearest_by_ratio():
    rates = (np.log(2) / np.array([3.0, 30.0, 300.0])).astype(np.float32)
    assert [nearest_decay(rates, days) for days in (0.1, 9.0, 10.0, 90.0, 100.0, 1e6)] == [0, 0, 1, 1, 2, 2]
    assert nearest_decay(np.zeros(1, np.float32), 120.0) == 0


@pytest.mark.parametrize("count", [1, SAMPLE, SAMPLE + 1, 3 * SAMPLE])
def test_chances_over_a_catalogue_add_up_to_one(count):
    rng = np.random.default_rng(count)
    users, items = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal((count, 3)).astype(np.float32)
    whole = log_mass(users, np.ascontiguousarray(items[:: step_of(count)]), count)
    wants = expected_wants(users @ items.T, whole, np.array([1.0, 4.0]), 0.5)
    assert len(items[:: step_of(count)]) <= SAMPLE
    np.testing.assert_allclose(wants.sum(1), [0.5, 1.0], rtol=0.05 if step_of(count) > 1 else 1e-5)


def test_the_scale_of_a_night_survives_its_arrays():
    scale = Scale(NOON + 12_345_670_000, 1.25, 2, {"two_tower": (120, 0.25)})
    again = Scale.of(scale.arrays())
    assert abs(again.moment - scale.moment) <= 10_000
    assert (again.fresh_rate, again.decay, again.lanes) == (1.25, 2, {"two_tower": (120, 0.25)})
    for name in scale.arrays():
        assert Scale.of({each: array for each, array in scale.arrays().items() if each != name}) is None


def test_what_the_night_weighs_events_by_survives_its_arrays_and_older_snapshots_weigh_none():
    weights = tuple(float(np.float32(weight)) for weight in np.linspace(0, 1, len(EVENTS)))
    plain = Scale(NOON, 1.25, 2, {"two_tower": (120, 0.25)})
    scale = replace(
        plain,
        event_weights=weights,
        gift_weight=0.5,
        hides={PURCHASE: 0.0, 4: 7.5},
        similar=Similar(60, 0.0625, 90.0, 60),
    )
    assert Scale.of(scale.arrays()) == scale
    assert scale.arrays()["event_weights"].shape == (len(EVENTS),)
    older = {name: array for name, array in scale.arrays().items() if name in plain.arrays()}
    assert Scale.of(older) == plain == Scale.of(plain.arrays())
    assert (plain.event_weights, plain.hides, plain.similar) == ((0.0,) * len(EVENTS), {}, None)


@pytest.mark.parametrize("known", [0, 3, len(EVENTS) + 2])
def test_a_snapshot_may_know_fewer_events_or_more(known):
    told = Scale(NOON, 1.0, 0, {"two_tower": (1, 1.0)}).arrays()
    told |= {"event_weights": np.ones(known, np.float32), "hides_days": np.zeros(known, np.float32)}
    found = Scale.of(told)
    assert found.event_weights == (1.0,) * min(known, len(EVENTS)) + (0.0,) * max(0, len(EVENTS) - known)
    assert found.hides == dict.fromkeys(range(min(known, len(EVENTS))), 0.0)
    strange = told | {"gift_weight": np.zeros((2, 2), np.float32), "lane.similar": np.zeros(3, np.float32)}
    assert Scale.of(strange) == found
