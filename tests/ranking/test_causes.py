"""What is named as a reason was one: the events are taken out of the log, and people are ranked again by the real lanes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ranking.found import Found
from engine.ranking.lanes.discovery import DiscoveryLane
from engine.ranking.lanes.similar import SimilarLane
from engine.ranking.lanes.two_tower import TwoTowerLane
from engine.ranking.lanes.usual import UsualLane
from engine.ranking.merge import merge
from engine.schema import LANES, NO_ITEM
from engine.two_tower.histories import Histories
from tests.event_logs import histories, random_log
from tests.ranking_blocks import EVERYTHING, block, random_shop

SIMILAR = SimilarLane(keep=40, latest=60, trust=1.0)
ALL = {
    "two_tower": TwoTowerLane(keep=20, trust=0.2),
    "similar": SIMILAR,
    "usual": UsualLane(keep=20),
    "discovery": DiscoveryLane(keep=10, trust=0.2),
}
PROFILES = (*EVERYTHING, ("first", 0b0011), ("purchases", 0b010101))
FIRST = 12
TOWER, DISCOVERY, USUAL, SIMILAR_LANE = (LANES.index(name) for name in ("two_tower", "discovery", "usual", "similar"))


def case(seed, groups=1, users=6, items=40, events=90, neighbours=6):
    rng = np.random.default_rng(seed)
    return random_log(rng, users, items, events, groups), random_shop(rng, items, neighbours)


def left_out(past, pairs):
    """A person for each (user, item): the user, who never had to do with the item."""
    parts = []
    for user, item in pairs:
        rows = np.arange(past.starts[user], past.starts[user + 1])
        parts.append(rows[past.item[rows] != item])
    rows = np.concatenate([*parts, np.empty(0, np.int64)])
    keys = pa.array([number.to_bytes(16, "big") for number in range(len(pairs))], past.keys.type)
    starts = np.cumsum([0, *map(len, parts)])
    return Histories(keys, starts, *(getattr(past, name)[rows] for name in ("item", "ts", "weight", "group", "event")))


def ranked(past, shop, profiles=EVERYTHING, lanes=ALL):
    people = block(past, shop, profiles=profiles)
    return {name: lane.find(people, shop) for name, lane in lanes.items()}


def lists(merged, users):
    return [merged.item[merged.owner == user].tolist() for user in range(users)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 6]), st.integers(1, 90))
def test_a_lane_tells_what_it_would_find_without_the_evidence(seed, groups, events):
    past, shop = case(seed, groups, events=events)
    for name in ("similar", "usual"):
        found = ranked(past, shop, PROFILES, {name: ALL[name]})[name]
        pairs = sorted(set(zip(found.owner.tolist(), found.evidence.tolist(), strict=True)))
        again = ranked(left_out(past, pairs), shop, PROFILES, {name: replace(ALL[name], keep=1000)})[name]
        scores = {}
        for owner, item, score in zip(again.owner.tolist(), again.item.tolist(), again.score.tolist(), strict=True):
            scores.setdefault((*pairs[owner], item), []).append(score)
        for owner, item, evidence, left in zip(
            found.owner.tolist(), found.item.tolist(), found.evidence.tolist(), found.without.tolist(), strict=True
        ):
            there = scores.get((owner, evidence, item), [])
            assert any(left == pytest.approx(score, rel=1e-5) for score in there) or (left == 0 and len(there) < 3)
            if groups == 1:
                assert left == (pytest.approx(there[0], rel=1e-5) if there else 0)


def test_evidence_is_named_where_the_rank_changes_with_it_left_out_and_nowhere_else():
    """The way's own score is that of a real rank without the events; all else in the list stands as it is."""
    named = generic = 0
    for seed in range(8):
        past, shop = case(seed, items=16, events=24, neighbours=10)
        found = ranked(past, shop)
        merged = merge(found, 60, 5, FIRST)
        place = np.arange(len(merged.owner)) - np.searchsorted(merged.owner, merged.owner)
        told, lane = merged.evidence[:, 0], merged.lane[:, 0]
        assert (told[(place >= FIRST) | np.isin(lane, [TOWER, DISCOVERY])] == NO_ITEM).all()
        usual = (place < FIRST) & (lane == USUAL)
        assert (told[usual] == merged.item[usual]).all()  # who never bought it is not due for it
        near = found["similar"]
        keys = zip(near.owner.tolist(), near.item.tolist(), strict=True)
        proof = dict(zip(keys, near.evidence.tolist(), strict=True))
        pairs = sorted({(owner, evidence) for (owner, _), evidence in proof.items()})
        again = ranked(left_out(past, pairs), shop, lanes={"similar": replace(SIMILAR, keep=1000)})["similar"]
        scored = zip(again.owner.tolist(), again.item.tolist(), again.score.tolist(), strict=True)
        left_of = {(*pairs[owner], item): score for owner, item, score in scored}
        others = Found.together([part for name, part in found.items() if name != "similar"])
        for row in np.flatnonzero((place < FIRST) & (lane == SIMILAR_LANE)):
            user, item = int(merged.owner[row]), int(merged.item[row])
            evidence = proof[user, item]
            too = others.score[(others.owner == user) & (others.item == item)]
            left = max(left_of.get((user, evidence, item), 0.0), float(too.max(initial=0.0)))
            rows = np.flatnonzero((merged.owner == user) & (merged.item != evidence))
            rests = [lane[r] == SIMILAR_LANE and proof[user, int(merged.item[r])] == evidence for r in rows]
            standing = [(-float(merged.score[r, 0]), merged.item[r]) for r in rows[~np.array(rests)]]
            before = sum(key < (-float(merged.score[row, 0]), item) for key in standing)
            after = sum(key < (-left, item) for key in standing)
            assert told[row] == (evidence if left == 0 or after > before else NO_ITEM)
            named, generic = named + (told[row] != NO_ITEM), generic + (told[row] == NO_ITEM)
    assert named > 100 and generic > 20


@pytest.mark.parametrize("groups", [1, 6])
def test_ranked_again_without_the_evidence_another_stands_above_or_it_is_gone(groups):
    """With nothing held still: the whole list is made anew, whatever else the events had a part in."""
    told, changed = 0, 0
    for seed in range(12):
        past, shop = case(seed, groups)
        merged = merge(ranked(past, shop, PROFILES), 60, 5, 20)
        rows = np.flatnonzero((merged.evidence[:, 0] != NO_ITEM) & (merged.lane[:, 0] == SIMILAR_LANE))
        pairs = [(int(merged.owner[row]), int(merged.evidence[row, 0])) for row in rows]
        again = lists(merge(ranked(left_out(past, pairs), shop, PROFILES), 60, 5, 20), len(pairs))
        before = lists(merged, past.users)
        for (user, _), row, after in zip(pairs, rows, again, strict=True):
            item, told = int(merged.item[row]), told + 1
            if item in after:
                below = before[user][before[user].index(item) + 1 :]
                changed += bool({*after[: after.index(item)]} & {*below})
            else:
                changed += 1
    assert told > 500 and changed == told  # no law, for all moves: in the demo's shop it is so for 1,047 of 1,048


def test_what_would_stand_where_it_stands_in_any_case_has_no_reason_of_its_own():
    """Two things were bought, and all else is like the first: of what goes with both, the second is no reason."""
    past = histories([{"user": 0, "item": item, "days": 1.0} for item in (0, 1)])
    shop = random_shop(np.random.default_rng(0), 6)
    near, like = np.full((6, 3), NO_ITEM, np.int32), np.zeros((6, 3), np.float32)
    near[0], like[0] = (2, 3, 4), (0.9, 0.2, 0.1)
    near[1, :2], like[1, :2] = (2, 3), (0.95, 0.05)
    found = SIMILAR.find(block(past, shop), replace(shop, neighbour=near, likeness=like))
    merged = merge({"similar": found}, 10, 1)
    assert found.evidence.tolist() == [1, 0, 0]
    assert merged.item.tolist() == [2, 3, 4]
    # 2 leads by far either way; 3 with 0.05 left falls behind nothing that does not rest on 0 as well; 4 would be gone.
    assert merged.evidence[:, 0].tolist() == [NO_ITEM, NO_ITEM, 0]


def test_beyond_the_first_no_evidence_is_kept():
    past, shop = case(3)
    found = ranked(past, shop)
    merged = merge(found, 60, 5, FIRST)
    place = np.arange(len(merged.owner)) - np.searchsorted(merged.owner, merged.owner)
    assert (merged.evidence[place >= FIRST] == NO_ITEM).all() and (merged.evidence[place < FIRST] != NO_ITEM).any()
    assert (merge(found, 60, 5, 0).evidence == NO_ITEM).all()
