"""What each lane promises, on people and shops at random and on small ones made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.encode_user import log_mass, within_groups
from engine.ranking.lanes.discovery import DiscoveryLane
from engine.ranking.lanes.popular import PopularLane, sold_in
from engine.ranking.lanes.similar import SimilarLane
from engine.ranking.lanes.two_tower import TwoTowerLane
from engine.ranking.lanes.usual import UsualLane, cadence
from engine.ranking.settings import RankSettings
from engine.schema import FALLBACK, NO_ITEM
from tests.event_logs import DAY, NOON, histories, random_log, without
from tests.ranking_blocks import block, random_shop

LANES = {
    "two_tower": TwoTowerLane(keep=7),
    "similar": SimilarLane(keep=8, latest=5),
    "usual": UsualLane(keep=9),
    "discovery": DiscoveryLane(keep=5),
}
PROFILES = (("full", 2**64 - 1), ("first", 0b0011), ("purchases", 0b010101))


def case(seed, events, users=5, items=30):
    rng = np.random.default_rng(seed)
    shop = random_shop(rng, items)
    past = random_log(rng, users, items, events, 6)
    return past, shop


def seen_by(people):
    """Which groups hide a pair."""
    told = {}
    owner = np.repeat(np.arange(people.histories.users), np.diff(people.seen_starts))
    for user, item, basis in zip(owner.tolist(), people.seen_item.tolist(), people.seen_basis.tolist(), strict=True):
        told[user, item] = told.get((user, item), 0) | basis
    return told


def by_pair(found):
    return {
        (owner, item): (score, evidence)
        for owner, item, score, evidence in zip(
            found.owner.tolist(), found.item.tolist(), found.score.tolist(), found.evidence.tolist(), strict=True
        )
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120), st.sampled_from(sorted(LANES)))
def test_no_lane_but_usual_gives_what_was_seen(seed, events, name):
    past, shop = case(seed, events)
    people = block(past, shop, profiles=PROFILES)
    found = LANES[name].find(people, shop)
    if name == "usual":
        bought = set(zip(past.owner.tolist(), past.item.tolist(), strict=True))
        assert set(by_pair(found)) <= bought
    else:
        # Hiding tells of an event: it is up to the groups that the candidate relies on.
        told = seen_by(people)
        for owner, item, basis in zip(found.owner.tolist(), found.item.tolist(), found.basis.tolist(), strict=True):
            assert told.get((owner, item), 0) & basis == 0
    assert np.isfinite(found.score).all() and (found.score >= 0).all()
    for owner in range(past.users):
        for basis in np.unique(found.basis[found.owner == owner]):
            assert (found.basis[found.owner == owner] == basis).sum() <= LANES[name].keep or name == "similar"
    if name == "similar":
        most = LANES[name].keep * len(people.profiles)
        assert np.bincount(found.owner, minlength=1).max(initial=0) <= most


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 150), st.sampled_from(["similar", "usual"]))
def test_events_outside_its_basis_have_no_part_in_a_candidate(seed, events, name):
    past, shop = case(seed, events, users=2, items=12)
    lane = replace(LANES[name], keep=12)  # all: what another candidate scores decides only which are cut off
    found = lane.find(block(past, shop), shop)
    for basis in np.unique(found.basis):
        kept = within_groups(int(basis), past.group)
        again = by_pair(lane.find(block(without(past, ~kept), shop), shop))
        mine = by_pair(found.take(found.basis == basis))
        assert mine.items() <= again.items()


def test_a_dismissal_by_one_source_is_not_undone_by_a_profile_that_may_not_read_it():
    past = histories(
        [*weekly(1, last=9.0), {"user": 0, "item": 1, "days": 2.0, "event": "dismiss", "weight": 0.0, "group": 1}]
    )
    shop = random_shop(np.random.default_rng(0), 3)
    people = block(past, shop, profiles=(("full", 2**64 - 1), ("purchases", 0b010101)))
    assert len(UsualLane().find(people, shop).item) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_usual_names_an_item_once_for_each_person_and_basis(seed, events):
    past, shop = case(seed, events)
    found = LANES["usual"].find(block(past, shop, profiles=PROFILES), shop)
    named = list(zip(found.owner.tolist(), found.item.tolist(), found.basis.tolist(), strict=True))
    assert len(named) == len(set(named))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 100))
def test_a_basis_has_no_group_that_could_be_spared_by_usual(seed, events):
    past, shop = case(seed, events)
    found = LANES["usual"].find(block(past, shop), shop)
    for owner, item, basis in zip(found.owner, found.item, found.basis, strict=True):
        mine = (past.owner == owner) & (past.item == item) & (past.event == 3)
        assert basis == np.bitwise_or.reduce(np.uint64(1) << past.group[mine].astype(np.uint64))


def slow_similar(lane, past, shop, people, user):
    """Scores, bases and evidence of one person, by the lane's own words."""
    entries, reach = [], {}
    for group in set(past.group[past.owner == user].tolist()):
        best = {}
        for row in np.flatnonzero((past.owner == user) & (past.group == group) & (past.weight > 0)):
            strength = past.weight[row] * 0.5 ** ((NOON - past.ts[row]) / DAY / lane.half_life)
            best[int(past.item[row])] = max(best.get(int(past.item[row]), 0.0), float(strength))
        latest = sorted(best, key=lambda item: (-best[item], item))[: int(lane.latest)]
        reach[group] = sum(best[item] * float(shop.likeness[item].sum()) for item in latest)
        entries += [(-best[item], group, item) for item in latest]
    reasons, told = {}, seen_by(people)
    for strength, group, item in sorted(entries):
        for near, like in zip(shop.neighbour[item].tolist(), shop.likeness[item].tolist(), strict=True):
            if near != NO_ITEM and like > 0 and not told.get((user, near), 0) >> group & 1:
                each = reasons.setdefault(near, [])
                if item not in {reason for _, reason, _ in each}:
                    each.append((strength * like, item, group))
    result = {}
    for near, each in reasons.items():
        top = sorted(each)[:3]
        basis = {group for _, _, group in top}
        score = -sum(value for value, _, _ in top)
        result[near] = (score, score / max(1.0, sum(reach[group] for group in basis)) ** 0.5, basis, top[0][1])
    kept = sorted(result, key=lambda near: (-result[near][0], near))[: int(lane.keep)]
    return {near: result[near][1:] for near in kept}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 80))
def test_similar_equals_a_plain_loop(seed, events):
    past, shop = case(seed, events, users=3)
    lane = replace(LANES["similar"], keep=1000)  # whatever the rounding, all of them
    people = block(past, shop)
    found = lane.find(people, shop)
    for user in range(past.users):
        expected = slow_similar(lane, past, shop, people, user)
        mine = found.take(found.owner == user)
        assert set(mine.item.tolist()) == set(expected)
        for item, score, basis in zip(mine.item.tolist(), mine.score, mine.basis.tolist(), strict=True):
            value, groups, _ = expected[item]
            assert score == pytest.approx(lane.trust * shop.fresh_rate * value, rel=1e-4)
            assert basis == sum(1 << group for group in groups)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_similar_finds_on_each_profile_what_it_would_without_the_other_events(seed, events):
    past, shop = case(seed, events)
    found = by_pair_and_basis(LANES["similar"].find(block(past, shop, profiles=PROFILES), shop))
    for _, mask in PROFILES:
        alone = without(past, ~within_groups(mask, past.group))
        expected = by_pair_and_basis(LANES["similar"].find(block(alone, shop), shop))
        assert expected.items() <= found.items()


def by_pair_and_basis(found):
    keys = zip(found.owner.tolist(), found.item.tolist(), found.basis.tolist(), strict=True)
    return dict(zip(keys, zip(found.score.tolist(), found.evidence.tolist(), strict=True), strict=True))


def test_similar_names_its_strongest_reason():
    shop = random_shop(np.random.default_rng(0), 5, 2)
    near = np.array([[4, 2], [4, -1], [-1, -1], [-1, -1], [-1, -1]], np.int32)
    likeness = np.array([[0.2, 0.9], [0.8, 0], [0, 0], [0, 0], [0, 0]], np.float32)
    shop = replace(shop, neighbour=near, likeness=likeness)
    past = histories([{"user": 0, "item": 0, "group": 0}, {"user": 0, "item": 1, "group": 3}])
    found = SimilarLane().find(block(past, shop), shop)
    assert dict(zip(found.item.tolist(), found.evidence.tolist(), strict=True)) == {4: 1, 2: 0}
    assert dict(zip(found.item.tolist(), found.basis.tolist(), strict=True)) == {4: 0b1001, 2: 0b0001}


def test_similar_is_the_same_in_blocks_of_people_and_at_once(monkeypatch):
    past, shop = case(3, 400, users=23)
    people = block(past, shop)
    whole = LANES["similar"].find(people, shop)
    monkeypatch.setattr("engine.ranking.lanes.similar._PEOPLE_AT_ONCE", 5)
    parts = LANES["similar"].find(people, shop)
    for name in ("owner", "item", "score", "basis", "evidence"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


# --- usual


def usual(events, **settings_):
    shop = replace(random_shop(np.random.default_rng(0), 6), hazard=np.full(6, 0.2))
    people = block(histories(events), shop, RankSettings(**settings_))
    return by_pair(UsualLane().find(people, shop))


def weekly(item, last, count=6, gap=28.0):
    return [{"user": 0, "item": item, "days": last + n * gap} for n in range(count)]


def test_the_usual_waits_while_it_is_not_due():
    found = usual(weekly(1, last=1.0) + weekly(2, last=27.0), horizon_days=7.0)
    just_bought, due = found[0, 1][0], found[0, 2][0]
    assert just_bought < 0.4 * due


def test_what_was_bought_twice_has_no_cadence_yet():
    often, twice = (usual(weekly(1, last=1.0, count=count), horizon_days=1.0)[0, 1][0] for count in (6, 2))
    assert twice > often


def test_the_usual_leaves_out_what_was_dismissed_since_and_not_what_was_bought_again():
    dismissed = [
        {"user": 0, "item": item, "days": 5.0, "event": "dismiss", "weight": 0.0, "group": 1} for item in (1, 2, 4)
    ]
    found = usual(weekly(1, last=9.0) + weekly(2, last=2.0) + weekly(3, last=2.0) + dismissed)
    assert {item for _, item in found} == {2, 3}


def test_only_purchases_make_a_usual():
    views = [{"user": 0, "item": 1, "days": float(n), "event": "view", "group": 1} for n in range(9)]
    gift = [{"user": 0, "item": 2, "days": 3.0, "weight": 0.0}]
    assert usual(views + gift) == {}


def test_several_purchases_on_one_day_are_one_visit():
    habit = cadence(
        histories([{"user": 0, "item": 1, "days": ago} for ago in (0.0, 0.1, 10.0, 10.2, 20.0)]), NOON, 60.0
    )
    assert habit.purchases.tolist() == [3] and habit.gap_days.tolist() == pytest.approx([10.0], abs=0.2)
    assert habit.last.tolist() == [NOON]


def test_a_single_purchase_has_no_gap():
    habit = cadence(histories([{"user": 0, "item": 1, "days": 3.0}]), NOON, 60.0)
    assert habit.gap_days.tolist() == [0.0] and habit.purchases.tolist() == [1]


# --- two_tower and discovery


def test_chances_are_those_of_a_softmax_over_the_whole_catalogue():
    past, shop = case(5, 60)
    people = block(past, shop)
    found = TwoTowerLane(keep=1000, trust=1.0).find(people, shop)
    (profile,) = people.profiles
    logits = (profile.vectors @ shop.vectors.T).astype(np.float64)
    chance = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    row = np.searchsorted(profile.rows, found.owner)
    expected = shop.fresh_rate * np.sqrt(profile.mass[row]) * chance[row, found.item]
    np.testing.assert_allclose(found.score, expected, rtol=1e-4)
    assert len(found.owner) == 5 * 30 - len(seen_by(people))
    assert (found.basis == profile.basis[row]).all()


def test_every_profile_gives_a_list_of_its_own_basis():
    past, shop = case(6, 100)
    found = TwoTowerLane(keep=3).find(block(past, shop, profiles=PROFILES), shop)
    for owner in range(past.users):
        bases, counts = np.unique(found.basis[found.owner == owner], return_counts=True)
        assert len(bases) == 3 and (counts == 3).all()
        assert any(int(basis) & ~0b0011 == 0 for basis in bases)


def test_a_sample_that_misses_the_heavy_items_makes_no_chance_above_one():
    rng = np.random.default_rng(7)
    items = rng.standard_normal((9001, 4)).astype(np.float32) * 0.1
    items[1] *= 200  # not among every third item
    shop = replace(random_shop(rng, 3, width=4), vectors=items, tail=np.ones(9001, bool))
    past = random_log(rng, 4, 9001, 20)
    for lane in (TwoTowerLane(trust=1.0), DiscoveryLane(trust=1.0)):
        people = block(past, shop)
        found = lane.find(people, shop)
        most = shop.fresh_rate * np.sqrt(people.profiles[0].mass)
        total = np.bincount(found.owner, found.score, past.users)
        assert (total[people.profiles[0].rows] <= most * (1 + 1e-5)).all()


def test_the_mass_of_huge_scores_does_not_overflow():
    users, items = np.full((2, 3), 1e4, np.float32), np.full((5, 3), 1e4, np.float32)
    np.testing.assert_allclose(log_mass(users, items, 5), 3e8 + np.log(5), rtol=1e-6)


def test_discovery_keeps_to_the_tail():
    past, shop = case(8, 60)
    found = DiscoveryLane().find(block(past, shop), shop)
    assert len(found.item) and shop.tail[found.item].all()
    without_tail = replace(shop, tail=np.zeros(shop.size, bool))
    assert len(DiscoveryLane().find(block(past, without_tail), without_tail).item) == 0


def test_items_without_a_vector_do_no_harm():
    past, shop = case(9, 60)
    shop = replace(shop, vectors=np.zeros_like(shop.vectors))
    found = TwoTowerLane(keep=4).find(block(past, shop), shop)
    assert np.isfinite(found.score).all() and (np.bincount(found.owner) == 4).all()


# --- edges that all lanes share


@pytest.mark.parametrize("name", sorted(LANES))
@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"user": 1, "item": 0, "weight": 0.0, "event": "impression"}],
        [{"user": 1, "item": 0, "weight": 0.0, "event": "dismiss"}],
    ],
    ids=["no events", "impressions alone", "a dismissal alone"],
)
def test_people_without_a_want_get_nothing_and_break_nothing(name, events):
    shop = random_shop(np.random.default_rng(0), 4)
    assert len(LANES[name].find(block(histories(events, users=3), shop), shop).owner) == 0


@pytest.mark.parametrize("name", sorted(LANES))
def test_an_empty_shard_and_a_shop_of_one_item_are_no_error(name):
    shop = replace(random_shop(np.random.default_rng(0), 1), tail=np.ones(1, bool))
    assert len(LANES[name].find(block(histories([], users=0), shop), shop).owner) == 0
    viewed = histories([{"user": 0, "item": 0, "event": "view", "group": 1}])
    found = LANES[name].find(block(viewed, shop), shop)
    assert found.item.tolist() == ([0] if name in ("two_tower", "discovery") else [])


# --- popular


def test_popular_lists_leave_out_what_fewer_than_least_people_wanted():
    share = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    people = np.array([1, 5, 2, 2, 0])
    root = np.array([0, 0, 1, 1, -1], np.int32)
    lists = PopularLane(keep=2, least_people=2).lists(share, people, root, 2, {"": np.ones(5, bool)})
    rows = list(zip(lists["category"].to_pylist(), lists["item"].to_pylist(), strict=True))
    assert rows == [(-1, 1), (-1, 2), (0, 1), (1, 2), (1, 3)]
    np.testing.assert_allclose(lists["score"].to_numpy(), share[lists["item"].to_numpy()], rtol=1e-6)
    assert lists.schema == FALLBACK


def test_a_region_has_its_own_list_of_what_is_sold_there_and_elsewhere_it_is_not_shown():
    share, people, root = np.full(4, 0.25), np.full(4, 9), np.zeros(4, np.int32)
    sold = sold_in([None, ["de"], ["DE-BY"], ["FR"]])
    assert {region: np.flatnonzero(items).tolist() for region, items in sold.items()} == {
        "": [0],
        "DE": [0, 1],
        "DE-BY": [0, 1, 2],
        "FR": [0, 3],
    }
    lists = PopularLane().lists(share, people, root, 1, sold)
    rows = set(zip(*(lists[name].to_pylist() for name in ("region", "category", "item")), strict=True))
    assert rows >= {("DE-BY", -1, 2), ("FR", -1, 3), ("", 0, 0)}
    assert not {each for each in rows if each[0] and each[1] >= 0} and ("", -1, 1) not in rows


def test_popular_ties_go_to_the_lower_row_and_an_empty_shop_has_no_list():
    everywhere = {"": np.ones(3, bool)}
    lists = PopularLane().lists(np.full(3, 1 / 3), np.full(3, 9), np.full(3, -1, np.int32), 0, everywhere)
    assert lists["item"].to_pylist() == [0, 1, 2]
    empty = PopularLane().lists(np.zeros(3), np.zeros(3, np.int64), np.zeros(3, np.int32), 1, everywhere)
    assert not len(empty)
