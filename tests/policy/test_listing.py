"""A whole list: the person's first, anybody's behind, every rule over both at once."""

from __future__ import annotations

import numpy as np
import pytest

from engine.policy import Slate, load_policies, make_list
from engine.schema import LANES
from engine.snapshot import Snapshot
from tests.policy.moments import candidates_of, moment_of
from tests.snapshot_builder import build_snapshot

POPULAR = LANES.index("popular")
CHAINS = load_policies(
    {"home": {"limit": 20, "level": "full", "rules": [{"name": "category_cap", "share": 0.5}, {"name": "consent"}]}}
)


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory):
    """100 items: the first half books, the second half wine."""
    folder = tmp_path_factory.mktemp("kinds") / "snapshot"
    root = [0] * 50 + [1] * 50
    build_snapshot(folder, users={}, items=100, categories=("books", "wine"), item_columns={"root_category": root})
    with Snapshot.open(folder) as snapshot:
        yield snapshot


def popular(items):
    return Slate.of_anyone(np.array(items, np.int32), np.linspace(9, 1, len(items), dtype=np.float32), POPULAR)


def test_a_person_without_any_candidate_gets_what_anybody_gets(two_kinds):
    outcome = make_list(CHAINS["home"], candidates_of(), popular([3, 60, 4]), moment_of(two_kinds, limit=3))
    assert outcome.slate.item.tolist() == [3, 60, 4]


def test_the_persons_come_first_and_no_item_comes_twice(two_kinds):
    own = candidates_of((70, [("similar", 1, 0.02)]), (7, [("similar", 1, 0.01)]))
    outcome = make_list(CHAINS["home"], own, popular([7, 8, 71, 9]), moment_of(two_kinds, limit=5))
    assert outcome.slate.item.tolist() == [70, 7, 8, 71, 9]
    assert (np.diff(outcome.slate.score) < 0).all()


def test_a_cap_does_not_give_way_while_popular_items_of_other_kinds_stand_ready(two_kinds):
    own = candidates_of(*((item, [("two_tower", 1, 1.0 - item / 100)]) for item in range(15)))
    outcome = make_list(CHAINS["home"], own, popular(range(50, 90)), moment_of(two_kinds, limit=20))
    books = (outcome.slate.item < 50).sum()
    assert len(outcome.slate) == 20 and books == 10


def test_what_is_not_granted_is_counted_and_its_item_may_still_come_as_popular(two_kinds):
    own = candidates_of((5, [("similar", 2, 0.5)]), (6, [("similar", 1, 0.4)]))
    outcome = make_list(CHAINS["home"], own, popular([5, 60]), moment_of(two_kinds, granted=1, limit=3))
    assert outcome.slate.item.tolist() == [6, 60, 5]
    assert outcome.slate.lane.tolist()[2] == POPULAR
    assert ("consent", 1) in [(effect.rule, effect.count) for effect in outcome.effects]
