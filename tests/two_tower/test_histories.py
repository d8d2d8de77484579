"""Histories keep what a purpose allows; windows make every target once, with its past behind it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import schema
from engine.two_tower.histories import Histories, Windows
from tests.event_logs import DAY, NOON, histories, random_log


def activity(rows):
    names = schema.ACTIVITY.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in sorted(rows)], schema=schema.ACTIVITY)


def key(number):
    return bytes([number]) + bytes(15)


def event(user, item, kind, day, source=0, trainable=True, profilable=True):
    return (key(user), item, schema.EVENTS.index(kind), NOON + day * DAY, 1.0, source, trainable, profilable)


def test_a_purpose_that_is_not_granted_leaves_the_event_out():
    table = activity(
        [event(1, 0, "view", 0), event(1, 1, "purchase", 1, trainable=False), event(2, 2, "view", 0, profilable=False)]
    )
    trained, ranked = Histories.of(table, "trainable"), Histories.of(table, "profilable")
    assert trained.keys.to_pylist() == [key(1), key(2)] and trained.item.tolist() == [0, 2]
    assert ranked.keys.to_pylist() == [key(1)] and ranked.item.tolist() == [0, 1]


def test_the_group_is_the_source_and_whether_it_was_bought():
    table = activity([event(1, 0, "view", 0, 0), event(1, 0, "purchase", 1, 0), event(1, 0, "purchase", 2, 3)])
    assert Histories.of(table, "profilable").group.tolist() == [1, 0, 6]


def test_nothing_after_the_moment_is_kept_and_the_moment_itself_is():
    table = activity([event(1, item, "view", item) for item in range(4)])
    assert Histories.of(table, "profilable", NOON + 2 * DAY).item.tolist() == [0, 1, 2]


@pytest.mark.parametrize("rows", [[], [event(1, 0, "view", 0, profilable=False)]], ids=["no rows", "none allowed"])
def test_an_empty_shard_gives_nobody(rows):
    found = Histories.of(activity(rows), "profilable")
    assert found.users == 0 and len(found.owner) == 0 and found.starts.tolist() == [0]
    assert len(Windows(found, 8, 1.0, True)) == 0


def test_keys_that_end_in_zero_bytes_stay_apart():
    rows = [event(1, 0, "view", 0), (bytes([1]) + bytes(14) + b"\x01", *event(1, 1, "view", 0)[1:])]
    assert Histories.of(activity(rows), "profilable").users == 2


def targets(windows, events, seed=3, world=1):
    """How often each event of the log was a target, over all workers."""
    past = windows.histories
    seen = {}
    for rank in range(world):
        for batch in windows.batches(events, seed, rank, world):
            assert batch.item.shape == batch.days.shape == batch.weight.shape == batch.target.shape
            for row, column in zip(*np.nonzero(batch.target), strict=True):
                name = (int(batch.item[row, column]), round(float(batch.days[row, column]) * DAY))
                seen[name] = seen.get(name, 0) + 1
    owed = {(int(past.item[row]), int(past.ts[row])) for row in np.flatnonzero(windows.target)}
    return seen, owed


def distinct_log(sizes):
    """Every event has an item of its own, so that a target can be told from any other."""
    number = iter(range(10_000))
    return histories(
        [
            {"user": user, "item": next(number), "days": float(size - n)}
            for user, size in enumerate(sizes)
            for n in range(size)
        ],
        len(sizes),
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=8), st.integers(2, 20), st.integers(0, 2**20))
def test_windows_cover_every_target_exactly_once(sizes, length, seed):
    past = distinct_log(sizes)
    windows = Windows(past, length, 1.0, True)
    seen, owed = targets(windows, 40, seed)
    alone = {(int(past.item[row]), int(past.ts[row])) for row in past.starts[:-1][np.diff(past.starts) == 1]}
    assert set(seen) == owed - alone  # a person's only event has nothing before it to learn from
    assert set(seen.values()) <= {1}


def test_a_window_holds_the_half_window_before_each_of_its_targets():
    windows = Windows(distinct_log([100]), 10, 1.0, True)
    for batch in windows.batches(20, 0, 0, 1):
        for row, column in zip(*np.nonzero(batch.target), strict=True):
            start = batch.item[row, 0] == 0
            assert start or column >= 5


def test_only_a_first_want_is_a_target_and_a_weak_event_never_is():
    past = histories(
        [
            {"user": 0, "item": 5, "days": 9.0, "weight": 0.25},
            {"user": 0, "item": 5, "days": 8.0},
            {"user": 0, "item": 5, "days": 7.0},
            {"user": 0, "item": 6, "days": 6.0},
            {"user": 1, "item": 5, "days": 5.0},
        ]
    )
    assert Windows(past, 4, 1.0, True).target.tolist() == [False, True, False, True, True]
    assert Windows(past, 4, 1.0, False).target.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("world", [1, 2, 3, 7, 50])
def test_every_worker_gets_the_same_number_of_batches_and_together_they_see_all(world):
    windows = Windows(distinct_log([30, 5, 0, 1, 64, 2]), 8, 1.0, True)
    counts = [sum(1 for _ in windows.batches(24, 1, rank, world)) for rank in range(world)]
    assert set(counts) == {windows.steps(24, world)}
    seen, owed = targets(windows, 24, 1, world)
    assert len(owed - set(seen)) == 1  # the person of one event


def test_batches_follow_the_seed_alone():
    windows = Windows(random_log(np.random.default_rng(0), 40, 30, 700), 16, 1.0, True)
    same = [np.concatenate([b.item.ravel() for b in windows.batches(64, seed, 0, 1)]) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_padding_has_no_weight_and_is_no_target():
    windows = Windows(distinct_log([2, 9]), 8, 1.0, True)
    for batch in windows.batches(1000, 0, 0, 1):
        assert (batch.weight > 0).sum(1).tolist() == sorted([2, 8, 5])
        assert not batch.target[batch.weight == 0].any()
