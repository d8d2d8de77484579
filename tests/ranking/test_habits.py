"""Habits are counts over people and windows, against a plain loop; shards add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.encode_user import ONLOOKER
from engine.ranking.habits import CURVE, WINDOWS, Habits, masses, tally
from tests.event_logs import DAY, NOON, histories, random_log, without

ITEMS = 9


def slow_tally(past, items, moment, wanted, half_life, horizon, rate):
    again, mass, fresh, roots = np.zeros(items), np.zeros(items), 0.0, 0.0
    step = int(horizon * DAY)
    for window in range(1, WINDOWS + 1):
        begin, share = moment - window * step, 0.5 ** (window - 1)
        for user in range(past.users):
            rows = np.flatnonzero((past.owner == user) & (past.weight >= wanted))
            days = {(int(past.item[row]), int(past.ts[row]) // DAY) for row in rows if past.ts[row] <= begin}
            got = {int(past.item[row]) for row in rows if begin < past.ts[row] <= begin + step}
            had = {}
            for item, day in days:
                had[item] = had.get(item, 0.0) + 0.5 ** (max(0.0, begin / DAY - day) / half_life)
            for item, weight in had.items():
                mass[item] += share * weight**CURVE
                again[item] += share * (item in got)
            liked = [row for row in np.flatnonzero((past.owner == user) & (past.weight > 0)) if past.ts[row] <= begin]
            if liked:
                fresh += share * len(got - set(had))
                faded = sum(past.weight[row] * np.exp(-rate * (begin - past.ts[row]) / DAY) for row in liked)
                roots += share * max(faded, ONLOOKER) ** 0.5
    return Habits(again, mass, fresh, roots)


def same(one, other):
    np.testing.assert_allclose(one.again, other.again)
    np.testing.assert_allclose(one.mass, other.mass)
    assert one.fresh == pytest.approx(other.fresh) and one.roots == pytest.approx(other.roots)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 80), st.sampled_from([5.0, 30.0, 400.0]))
def test_tallies_equal_a_plain_loop(seed, events, days):
    past = random_log(np.random.default_rng(seed), 5, ITEMS, events, 2, days)
    for rate in (0.0, 0.02, 2.0):
        same(tally(past, ITEMS, NOON, 1.0, 60.0, 7.0, rate), slow_tally(past, ITEMS, NOON, 1.0, 60.0, 7.0, rate))


def test_shards_of_people_add_up_to_the_whole():
    past = random_log(np.random.default_rng(1), 11, ITEMS, 300, 2, 60.0)
    parts = [tally(without(past, past.owner % 3 != part), ITEMS, NOON, 1.0, 60.0, 7.0) for part in range(3)]
    same(parts[0] + parts[1] + parts[2], tally(past, ITEMS, NOON, 1.0, 60.0, 7.0))


def test_several_wants_on_one_day_count_once_and_later_ones_not_at_all():
    past = histories(
        [{"user": 0, "item": 2, "days": ago} for ago in (10.0, 10.1, 10.2, 3.0)] + [{"user": 1, "item": 0, "days": 9.0}]
    )
    pairs, mass = masses(past, NOON - 5 * DAY, 1.0, 5.0, ITEMS)
    assert pairs.tolist() == [2, ITEMS]
    np.testing.assert_allclose(mass, [0.5 ** (5.5 / 5), 0.5 ** (4.5 / 5)])


@pytest.mark.parametrize("items", [0, 1, ITEMS])
def test_an_empty_log_gives_finite_rates_above_zero(items):
    habits = tally(histories([], users=0), items, NOON, 1.0, 60.0, 7.0)
    hazard = habits.hazard(np.full(items, -1))
    assert hazard.shape == (items,) and (hazard > 0).all() and np.isfinite(hazard).all()
    assert 0 < habits.fresh_rate < np.inf


def test_a_log_shorter_than_the_horizon_still_hopes_for_new_wants():
    past = histories([{"user": 0, "item": item, "days": float(item)} for item in range(4)])
    assert tally(past, ITEMS, NOON, 1.0, 60.0, 7.0).fresh_rate > 0


def test_an_item_with_few_counts_is_taken_for_one_of_its_kind():
    again, mass = np.array([900.0, 0.0, 10.0, 0.0]), np.array([1000.0, 0.0, 1000.0, 0.0])
    hazard = Habits(again, mass, 0, 0).hazard(np.array([0, 0, 1, 1]))
    assert hazard[1] > 0.8 and hazard[3] < 0.05
    assert Habits(again, mass, 0, 0).hazard(np.array([-1, -1, -1, -1]))[1] == pytest.approx(0.455, abs=0.01)
