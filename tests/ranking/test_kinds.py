"""Who dismissed a category is offered nothing of it, until they buy or like something of it again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import schema
from engine.activity.columns import AT_DEPTH
from engine.consent import Vocabulary
from engine.ranking.kinds import Dismissed, Kinds
from engine.ranking.lanes import two_tower
from engine.ranking.lanes.discovery import DiscoveryLane
from engine.ranking.lanes.similar import SimilarLane
from engine.ranking.lanes.two_tower import TwoTowerLane
from engine.ranking.lanes.usual import UsualLane
from engine.ranking.merge import merge
from engine.ranking.people import People, Shop, gather
from engine.ranking.settings import RankSettings
from engine.ranking.tables import DISMISSED, shard_tables
from engine.two_tower.encoding import group_sums
from engine.two_tower.histories import Histories
from tests.event_logs import NOON, histories, random_log, random_tower
from tests.ranking_blocks import EVERYTHING, random_shop

PATHS = [["food", "tea"], ["food", "tea", "green"], ["food", "cake"], ["books"], [], None, ["toys", "tea"]]
KINDS = Kinds.of(PATHS, ["books", "food", "toys"])
LANES: dict[str, Any] = {
    "two_tower": TwoTowerLane(keep=7),
    "similar": SimilarLane(keep=8, latest=5),
    "usual": UsualLane(keep=9),
    "discovery": DiscoveryLane(keep=5),
}
VOCABULARY = Vocabulary(sources=("web", "app", "store"))


def past(*events: dict[str, object], users: int | None = None) -> Histories:
    """As `histories`; `depth` says which step of the item's path is dismissed, 0 its leaf."""
    plain = [{"event": "dismiss_category", "weight": 0.0, "group": 1} | each for each in events]
    depths = {(each["user"], each.get("days", 0.0), each["item"]): each.get("depth", 0) for each in plain}
    made = histories([{name: value for name, value in each.items() if name != "depth"} for each in plain], users)
    days = ((NOON - made.ts) / 86_400_000_000).tolist()
    keys = list(zip(made.owner.tolist(), days, made.item.tolist(), strict=True))
    depth = np.array([depths[key] for key in keys], np.int64)
    return replace(made, event=np.where(depth > 0, AT_DEPTH + depth, made.event).astype(np.uint8))


def told(found: Dismissed) -> list[tuple[int, str, int]]:
    return [
        (owner, KINDS.names[category], group)
        for owner, category, group in zip(
            found.owner.tolist(), found.category.tolist(), found.group.tolist(), strict=True
        )
    ]


def test_roots_keep_their_codes_and_every_other_name_follows() -> None:
    assert KINDS.names == ("books", "food", "toys", "cake", "green", "tea")
    starts, items = KINDS.items()
    of = {name: items[starts[code] : starts[code + 1]].tolist() for code, name in enumerate(KINDS.names)}
    assert of == {"books": [3], "food": [0, 1, 2], "toys": [6], "cake": [2], "green": [1], "tea": [0, 1, 6]}
    nothing = Kinds.none(3)
    assert nothing.names == () and nothing.items()[0].tolist() == [0] and len(nothing.of_items(np.arange(3))[0]) == 0


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([{"item": 1}], ["green"]),
        ([{"item": 1, "depth": 2}], ["tea"]),
        ([{"item": 1, "depth": 1}], ["food"]),
        ([{"item": 4}], []),
        ([{"item": 3, "depth": 2}], []),  # a step that the path does not have
        ([{"item": 1, "depth": 2, "days": 2.0}, {"item": 6, "event": "purchase", "weight": 1.0, "days": 1.0}], []),
        ([{"item": 1, "depth": 2, "days": 2.0}, {"item": 6, "event": "like", "group": 3, "days": 1.0}], []),
        ([{"item": 1, "depth": 2, "days": 2.0}, {"item": 6, "event": "view", "days": 1.0}], ["tea"]),
        ([{"item": 1, "depth": 2, "days": 2.0}, {"item": 2, "event": "purchase", "days": 1.0}], ["tea"]),
        ([{"item": 1, "depth": 2, "days": 2.0}, {"item": 6, "event": "purchase", "days": 3.0}], ["tea"]),
        (
            [{"item": 0, "days": 3.0}, {"item": 0, "event": "like", "days": 2.0}, {"item": 0, "days": 1.0}],
            ["tea"],
        ),
    ],
)
def test_a_category_is_dismissed_until_it_is_wanted_again(events: list[dict[str, object]], left: list[str]) -> None:
    found = Dismissed.of(past(*({"user": 1} | each for each in events), users=3), KINDS)
    assert told(found) == [(1, name, 1) for name in left]


def test_each_group_that_says_so_says_it_for_itself_and_a_want_of_any_ends_it_for_all() -> None:
    said = [{"user": 0, "item": 0, "group": group, "days": 5.0 - group} for group in (1, 3, 3 + schema.DELICATE)]
    said[2]["days"] = 1.5
    assert told(Dismissed.of(past(*said), KINDS)) == [(0, "tea", group) for group in (1, 3, 3 + schema.DELICATE)]
    wanted = {"user": 0, "item": 6, "event": "purchase", "weight": 1.0, "group": 4, "days": 1.0}
    assert told(Dismissed.of(past(*said, wanted), KINDS)) == []
    assert told(Dismissed.of(past(*said, wanted | {"user": 1}), KINDS)) != []


def block(log: Histories, shop: Shop, kinds: Kinds) -> tuple[People, Any]:
    tower = random_tower(np.random.default_rng(0), shop.vectors.shape[1])
    sums = group_sums(log, shop.vectors, tower)
    profiles = (*EVERYTHING, ("first", 0b0011), ("purchases", 0b010101))
    return gather(log, sums, tower, profiles, shop.size, NOON, RankSettings(), kinds=kinds), sums


def random_case(
    seed: int, events: int, dismissals: int, items: int = 30
) -> tuple[Histories, Shop, Kinds, list[set[int]]]:
    """A log at random in which people dismiss categories, and what is thereby refused to each by a plain walk."""
    rng = np.random.default_rng(seed)
    shop = random_shop(rng, items)
    names = [f"k{number}" for number in range(6)]
    paths = [
        ["root", *rng.choice(names, rng.integers(0, 3), replace=False).tolist()][rng.integers(0, 2) :]
        for _ in range(items)
    ]
    kinds = Kinds.of(paths, sorted({path[0] for path in paths if path}))
    log = random_log(rng, 5, items, events + dismissals, 6)
    event = log.event.copy()
    rows = rng.permutation(len(event))[:dismissals]
    event[rows] = np.where(rng.random(dismissals) < 0.5, schema.EVENTS.index("dismiss_category"), AT_DEPTH + 1)
    weight = log.weight.copy()
    weight[rows] = 0.0
    log = replace(log, event=event, weight=weight)
    refused: list[set[int]] = []
    for user in range(log.users):
        gone: set[str] = set()
        for row in range(log.starts[user], log.starts[user + 1]):
            path = paths[log.item[row]]
            if event[row] == schema.EVENTS.index("dismiss_category"):
                gone |= {*path[-1:]}
            elif event[row] > AT_DEPTH:
                gone |= {*path[:1]}
            elif event[row] in (schema.PURCHASE, schema.EVENTS.index("like")):
                gone -= {*path}
        refused.append({item for item, path in enumerate(paths) if gone & {*path}})
    return log, shop, kinds, refused


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 12))
def test_no_lane_proposes_what_a_plain_walk_refuses_and_the_tower_finds_just_the_rest(
    seed: int, events: int, dismissals: int
) -> None:
    log, shop, kinds, refused = random_case(seed, events, dismissals)
    people, _ = block(log, shop, kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_tower, "_HIDDEN_AT_ONCE", 1)  # a stretch for each person who dismissed something
        found = {name: lane.find(people, shop) for name, lane in LANES.items()}
        everything = TwoTowerLane(keep=shop.size).find(people, shop)
    for lane in found.values():
        assert not [
            (owner, item)
            for owner, item in zip(lane.owner.tolist(), lane.item.tolist(), strict=True)
            if item in refused[owner]
        ]
    again = TwoTowerLane(keep=shop.size).find(people, shop)
    for name in ("owner", "item", "score", "basis"):
        np.testing.assert_array_equal(getattr(everything, name), getattr(again, name))
    open_ = TwoTowerLane(keep=shop.size).find(block(log, shop, Kinds.none(shop.size))[0], shop)
    kept = {(o, i, b) for o, i, b in zip(open_.owner.tolist(), open_.item.tolist(), open_.basis.tolist(), strict=True)}
    mine = {(o, i, b) for o, i, b in zip(again.owner.tolist(), again.item.tolist(), again.basis.tolist(), strict=True)}
    assert mine == {(owner, item, basis) for owner, item, basis in kept if item not in refused[owner]}
    pairs = np.array([(owner, item) for owner in range(log.users) for item in range(shop.size)])
    assert people.dismissed.refuses(pairs[:, 0], pairs[:, 1]).tolist() == [i in refused[o] for o, i in pairs.tolist()]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 12))
def test_the_mix_tells_what_was_dismissed_beside_shares_that_still_add_up(
    seed: int, events: int, dismissals: int
) -> None:
    log, shop, kinds, _ = random_case(seed, events, dismissals)
    people, sums = block(log, shop, kinds)
    merged = merge({name: lane.find(people, shop) for name, lane in LANES.items()}, 30, 5)
    root = np.array(
        [
            kinds.codes[first] if last > first else -1
            for first, last in zip(kinds.starts, kinds.starts[1:], strict=False)
        ],
        np.int32,
    )
    delicate = np.zeros(shop.size, bool)
    tables = shard_tables(people, merged, sums, root, delicate, VOCABULARY.with_sensitive)
    assert tables["mix"].schema == schema.MIX
    gone = []
    for user, start, count in zip(
        range(log.users),
        tables["users"]["mix_start"].to_pylist(),
        tables["users"]["mix_count"].to_pylist(),
        strict=True,
    ):
        rows = tables["mix"].slice(start, count).to_pylist()
        shares = [each["share"] for each in rows if each["share"] > 0]
        assert sum(shares) == pytest.approx(1, abs=1e-5) or not shares
        gone += [(user, each["category"], each["basis"]) for each in rows if each["share"] <= 0]
        assert {each["share"] for each in rows if each["share"] <= 0} <= {float(DISMISSED)}
    assert gone == [
        (owner, category, 1 << group)
        for owner, category, group in zip(
            people.dismissed.owner.tolist(),
            people.dismissed.category.tolist(),
            people.dismissed.group.tolist(),
            strict=True,
        )
    ]


def test_a_sensitive_dismissal_asks_for_that_grant_besides() -> None:
    log = past({"user": 0, "item": 3, "group": 1 + schema.DELICATE}, {"user": 0, "item": 0, "days": 1.0})
    shop = random_shop(np.random.default_rng(3), len(PATHS))
    people, sums = block(log, shop, KINDS)
    root = np.array([1, 1, 1, 0, -1, -1, 2], np.int32)
    merged = merge({"usual": LANES["usual"].find(people, shop)}, 30, 5)
    tables = shard_tables(people, merged, sums, root, np.zeros(len(PATHS), bool), VOCABULARY.with_sensitive)
    plain = VOCABULARY.with_sensitive(np.array([2], np.uint64))[0]
    rows = [(KINDS.names[each["category"]], each["basis"]) for each in tables["mix"].to_pylist()]
    assert rows == [("books", int(plain)), ("tea", 2)] and int(plain) != 2


def test_the_order_of_paths_does_not_decide_on_codes_of_a_catalogue_without_any() -> None:
    assert Kinds.of([None, [], [None]], []).names == ()
    empty = Dismissed.of(past({"user": 0, "item": 1}), Kinds.none(3))
    assert len(empty.owner) == 0 and not empty.refuses(np.array([0, 0]), np.array([1, 2])).any()
    assert pa.array(list(KINDS.names)).cast(schema.CATEGORIES.field("name").type)[0].as_py() == "books"
