"""People as lanes see them: what is hidden, and the profiles that they are encoded on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import SettingsError
from engine.kernels.encode_user import within_groups
from engine.ranking.settings import RankSettings
from tests.event_logs import histories, random_log, without
from tests.ranking_blocks import block, random_shop


def shop(items=12, seed=0):
    return random_shop(np.random.default_rng(seed), items)


def hidden(people, user):
    part = slice(people.seen_starts[user], people.seen_starts[user + 1])
    told = {}
    for item, basis in zip(people.seen_item[part].tolist(), people.seen_basis[part].tolist(), strict=True):
        assert basis.bit_count() == 1  # a row relies on one group alone, so that a withdrawal takes that row alone
        told[item] = told.get(item, 0) | basis
    return told


def test_only_the_named_events_hide_and_the_basis_says_which_groups_told():
    past = histories(
        [
            {"user": 0, "item": 1, "event": "purchase", "group": 0},
            {"user": 0, "item": 1, "event": "like", "group": 3},
            {"user": 0, "item": 2, "event": "view", "group": 1},
            {"user": 2, "item": 3, "event": "dismiss", "group": 5, "weight": 0.0},
        ],
        users=3,
    )
    people = block(past, shop())
    assert [hidden(people, user) for user in range(3)] == [{1: 0b1001}, {}, {3: 1 << 5}]


def test_an_event_hides_for_its_days_and_zero_is_for_ever():
    past = histories(
        [
            {"user": 0, "item": 1, "event": "purchase", "days": 9999.0},
            {"user": 0, "item": 2, "event": "view", "days": 6.9},
            {"user": 0, "item": 3, "event": "view", "days": 7.1},
        ]
    )
    people = block(past, shop(), RankSettings(seen={"purchase": 0.0, "view": 7.0}))
    assert set(hidden(people, 0)) == {1, 2}


def test_an_event_that_does_not_exist_is_refused_with_the_near_miss():
    with pytest.raises(SettingsError, match="no event 'purchas'; did you mean 'purchase'"):
        block(histories([{"user": 0, "item": 1}]), shop(), RankSettings(seen={"purchas": 0.0}))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(1, 5))
def test_unseen_is_what_a_set_says(seed, events, users):
    rng = np.random.default_rng(seed)
    people = block(random_log(rng, users, 12, events, 3), shop())
    owner, item = rng.integers(0, users, 40), rng.integers(0, 12, 40).astype(np.int32)
    group = rng.integers(0, 3, 40)
    for rows in (slice(0, 40), slice(7, 8), slice(0, 0), owner == owner[0]):
        found = people.unseen(owner[rows], item[rows], 12, group[rows])
        assert found.tolist() == [
            not hidden(people, int(o)).get(int(i), 0) >> int(g) & 1
            for o, i, g in zip(owner[rows], item[rows], group[rows], strict=True)
        ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.lists(st.integers(1, 63), max_size=3))
def test_a_stored_profile_is_a_night_on_its_groups_alone(seed, events, masks):
    rng = np.random.default_rng(seed)
    past = random_log(rng, 4, 12, events, 6)
    profiles = (("full", 2**64 - 1), *((f"p{number}", mask) for number, mask in enumerate(masks)))
    people = block(past, shop(), profiles=profiles)
    stored = set()
    for (name, mask), profile in zip(profiles, people.profiles, strict=True):
        assert profile.name == name
        alone = block(without(past, ~within_groups(mask, past.group)), shop()).profiles[0]
        for place, user in enumerate(profile.rows.tolist()):
            other = alone.rows.tolist().index(user)
            mine = within_groups(mask, past.group) & (past.owner == user)
            relied = np.bitwise_or.reduce(np.uint64(1) << past.group[mine].astype(np.uint64))
            assert profile.basis[place] == alone.basis[other] == relied
            np.testing.assert_allclose(profile.vectors[place], alone.vectors[other], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(profile.mass[place], alone.mass[other])
            stored.add((user, int(relied)))
        assert (profile.mass > 0).all()
    assert len(stored) == sum(len(profile.rows) for profile in people.profiles)  # identical ones are stored once


def test_people_who_only_saw_impressions_are_on_no_profile():
    past = histories([{"user": 0, "item": 1, "weight": 0.0, "event": "impression"}, {"user": 1, "item": 2}])
    (profile,) = block(past, shop()).profiles
    assert profile.rows.tolist() == [1]


def test_an_empty_shard_is_no_error():
    people = block(histories([], users=0), shop())
    assert people.histories.users == 0 and len(people.profiles[0].rows) == 0 and people.seen_starts.tolist() == [0]
