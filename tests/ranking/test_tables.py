"""A shard's tables keep the schemas of the snapshot, and lie by person."""

from __future__ import annotations

import numpy as np
import pytest

from engine import schema
from engine.consent import Vocabulary
from engine.kernels.encode_user import within_groups
from engine.ranking.lanes.two_tower import TwoTowerLane
from engine.ranking.lanes.usual import UsualLane
from engine.ranking.merge import merge
from engine.ranking.tables import shard_tables
from engine.two_tower.encoding import group_sums
from tests.event_logs import histories, random_log, random_tower, without
from tests.ranking_blocks import block, random_shop

ITEMS = 20
KINDS = ("candidates", "sums", "seen", "mix", "cadence")
VOCABULARY = Vocabulary(sources=("web", "app", "store"))


def tables_of(past, sensitive=None, root=None, items=ITEMS):
    rng = np.random.default_rng(0)
    shop = random_shop(rng, items)
    people = block(past, shop)
    sums = group_sums(past, shop.vectors, random_tower(rng))
    merged = merge(
        {"two_tower": TwoTowerLane(keep=4).find(people, shop), "usual": UsualLane().find(people, shop)}, 30, 5
    )
    delicate = np.zeros(items, bool) if sensitive is None else sensitive
    roots = np.arange(items, dtype=np.int32) % 4 - 1 if root is None else root
    return shard_tables(people, merged, sums, roots, delicate, VOCABULARY.with_sensitive), people, merged


@pytest.mark.parametrize(("users", "events"), [(0, 0), (1, 1), (3, 0), (7, 150)])
def test_tables_have_the_schemas_of_the_snapshot_and_one_span_a_person(users, events):
    past = random_log(np.random.default_rng(1), users, ITEMS, events, 6)
    tables, _, _ = tables_of(past)
    assert tables["users"].schema == schema.SNAPSHOT_USERS
    assert tables["candidates"].schema == schema.CANDIDATES and tables["seen"].schema == schema.SEEN
    assert tables["mix"].schema == schema.MIX and tables["cadence"].schema == schema.CADENCE
    assert tables["sums"].schema == schema.sums_schema(2, 5)
    assert tables["users"]["user_key"].to_pylist() == past.keys.to_pylist()
    for kind in KINDS:
        starts, counts = (tables["users"][f"{kind}_{edge}"].to_numpy() for edge in ("start", "count"))
        np.testing.assert_array_equal(starts, np.cumsum(counts) - counts)
        assert counts.sum() == tables[kind].num_rows


def test_each_span_holds_the_rows_of_its_person():
    past = random_log(np.random.default_rng(2), 6, ITEMS, 120, 6)
    tables, people, merged = tables_of(past)
    for user in range(6):

        def part(kind, user=user):
            start, count = (tables["users"][f"{kind}_{edge}"][user].as_py() for edge in ("start", "count"))
            return tables[kind].slice(start, count)

        assert part("candidates")["item"].to_pylist() == merged.item[merged.owner == user].tolist()
        seen = slice(people.seen_starts[user], people.seen_starts[user + 1])
        assert part("seen")["item"].to_pylist() == people.seen_item[seen].tolist()
        mine = past.owner == user
        assert set(part("sums")["group"].to_pylist()) == set(past.group[mine & (past.weight > 0)].tolist())
        assert set(part("cadence")["item"].to_pylist()) == set(
            past.item[mine & (past.event == schema.PURCHASE)].tolist()
        )


def test_a_mix_adds_up_to_one_and_items_without_a_category_have_no_part():
    past = random_log(np.random.default_rng(3), 5, ITEMS, 100, 6)
    tables, _, _ = tables_of(past)
    for start, count in zip(
        tables["users"]["mix_start"].to_pylist(), tables["users"]["mix_count"].to_pylist(), strict=True
    ):
        assert sum(tables["mix"]["share"].to_pylist()[start : start + count]) == pytest.approx(1, abs=1e-5)
    none, _, _ = tables_of(past, root=np.full(ITEMS, -1, np.int32))
    assert none["mix"].num_rows == 0


def test_a_row_of_the_mix_relies_on_its_own_group_alone():
    past = random_log(np.random.default_rng(4), 1, ITEMS, 60, 6)
    rows = tables_of(past)[0]["mix"].to_pylist()
    for basis in {row["basis"] for row in rows}:
        part = tables_of(without(past, ~within_groups(basis, past.group)))[0]["mix"].to_pylist()
        mine = {row["category"]: row["share"] for row in rows if row["basis"] == basis}
        alone = {row["category"]: row["share"] for row in part}
        ratio = {category: alone[category] / share for category, share in mine.items()}
        assert max(ratio.values()) == pytest.approx(min(ratio.values()), rel=1e-4)


def test_what_is_sensitive_asks_for_that_grant_besides():
    past = random_log(np.random.default_rng(5), 4, ITEMS, 100, 6)
    plain, _, _ = tables_of(past)
    tables, _, _ = tables_of(past, np.ones(ITEMS, bool))
    before = np.array(plain["candidates"]["basis"].to_pylist(), np.uint64)
    after = np.array(tables["candidates"]["basis"].to_pylist(), np.uint64)
    real = before != schema.NEVER
    assert (after[~real] == schema.NEVER).all()
    np.testing.assert_array_equal(after[real], VOCABULARY.with_sensitive(before[real]))
    assert (after[real] != before[real]).all() and real[:, 0].all()
    asked = np.array(tables["mix"]["basis"].to_pylist(), np.uint64)
    np.testing.assert_array_equal(
        asked, VOCABULARY.with_sensitive(np.array(plain["mix"]["basis"].to_pylist(), np.uint64))
    )


def test_ordinary_items_ask_for_nothing_more():
    past = histories([{"user": 0, "item": 1, "days": float(n)} for n in range(3)])
    delicate = np.zeros(ITEMS, bool)
    delicate[2] = True
    tables, _, _ = tables_of(past, delicate)
    for row in tables["candidates"].to_pylist():
        sensitive = VOCABULARY.mask("sensitive", "web")
        assert bool(row["basis"][0] & sensitive) == (row["item"] == 2)
