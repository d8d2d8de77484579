"""Linked ids are settled as one person, wherever the parts have them, and only as far as each of them grants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.activity.linked import linked_in, moved, with_persons
from engine.activity.settle import Settled, Tonight, settle_bucket
from engine.schema import LINKS
from tests.activity.logs import ALL, KEYS, PROFILE, TRAIN, Row, Shop, as_bytes, row

WHO = ("ann", "bob", "eve", "joe")
CROSS = (32, 64)  # by source
NEEDED = [(CROSS[s], CROSS[s] | TRAIN[s] | PROFILE[s]) for s in (0, 1)]
EVERYTHING = ALL | CROSS[0] | CROSS[1]
PERSONS = (b"p" * 15 + b"\0", b"q" * 16)  # NumPy takes zeros off the end of bytes


def links_of(groups: Sequence[Sequence[str]]) -> pa.Table:
    rows = [
        {"user_key": KEYS.stable.derive(who), "person": person}
        for group, person in zip(groups, PERSONS, strict=False)
        for who in group
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda each: each["user_key"]), schema=LINKS)


def settled(shop: Shop, files: Sequence[Sequence[Row]], groups: Sequence[Sequence[str]]) -> list[Settled]:
    tonight = linked(shop, shop.tonight(parts := shop.split(*files), 59, (59,), 30), parts, groups)
    return [settle_bucket(bucket, shop.buckets, tonight) for bucket in range(shop.buckets)]


def linked(shop: Shop, tonight: Tonight, parts: Any, groups: Sequence[Sequence[str]]) -> Tonight:
    links = links_of(groups)
    runs = [(about.generation, about.runs) for about in parts.abouts]
    found = [linked_in(parts.store, runs, bucket, shop.buckets, KEYS, links) for bucket in range(shop.buckets)]
    return replace(tonight, moved=moved(found, KEYS), standings=with_persons(tonight.standings, links, NEEDED))


def of_each(found: Sequence[Settled]) -> dict[bytes, bytes]:
    """What is kept of each, without the key."""
    activity = pa.concat_tables([each.activity for each in found])
    return {
        key: as_bytes(activity.filter(pa.compute.equal(activity["user_key"], key)).drop(["user_key"]))
        for key in activity["user_key"].unique().to_pylist()
    }


@pytest.fixture
def everyone(shop: Shop) -> Shop:
    shop.granted = dict.fromkeys(WHO, EVERYTHING)
    return shop


ROWS = st.builds(
    row,
    item=st.sampled_from("abc"),
    event=st.sampled_from(["purchase", "view"]),
    day=st.sampled_from([0.0, 1.0, 2.0, 58.0]),
    user_id=st.sampled_from([*WHO, None]),
    source=st.sampled_from(["web", "store"]),
    event_id=st.sampled_from([None, "e1", "e2"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(ROWS, max_size=12), min_size=1, max_size=3),
    groups=st.sampled_from([[("ann", "bob")], [("ann", "bob", "eve")], [("ann", "joe"), ("bob", "eve")]]),
    buckets=st.integers(1, 5),
)
def test_linked_ids_are_as_one_that_did_it_all(
    everyone: Shop, files: list[list[Row]], groups: list[tuple[str, ...]], buckets: int
) -> None:
    everyone.buckets = buckets
    apart = {who: KEYS.rotating.derive(who) for who in WHO}
    together = apart | {
        who: KEYS.rotating.of_person(person) for group, person in zip(groups, PERSONS, strict=False) for who in group
    }
    as_one = {who: group[0] for group in groups for who in group}
    relabelled = [[each | {"user_id": as_one.get(each["user_id"], each["user_id"])} for each in file] for file in files]
    found, expected = settled(everyone, files, groups), settled(everyone, relabelled, [])
    keys = {apart[as_one.get(who, who)]: together[who] for who in WHO}
    assert of_each(found) == {keys[key]: kept for key, kept in of_each(expected).items()}
    assert sum(each.people for each in found) == sum(each.people for each in expected)
    low = 0
    for bucket, each in enumerate(found):
        edge = -(-65_536 * (bucket + 1) // buckets)
        assert all(low <= int.from_bytes(key[:2]) < edge for key in each.activity["user_key"].unique().to_pylist())
        low = edge
    popular = [pa.concat_tables([each.popularity[0] for each in side]).to_pylist() for side in (found, expected)]
    totals = [
        {item: sum(row["weight"] for row in side if row["item"] == item) for item in {row["item"] for row in side}}
        for side in popular
    ]
    assert totals[0] == pytest.approx(totals[1])


def test_what_one_id_does_not_grant_is_used_of_none(everyone: Shop) -> None:
    rows = [row("a", source="web", user_id="ann"), row("b", source="store", user_id="bob")]
    groups = [("ann", "bob")]
    everyone.granted["bob"] = EVERYTHING & ~PROFILE[0]  # an import that reached one of them alone
    (kept,) = settled(everyone, [rows], groups)
    assert [(each["item"], each["profilable"]) for each in kept.activity.to_pylist()] == [(0, False), (1, True)]
    del everyone.granted["bob"]
    (kept,) = settled(everyone, [rows], groups)
    assert not kept.activity.num_rows and kept.unprofiled == 1


def test_a_source_without_cross_source_is_not_put_together(everyone: Shop) -> None:
    rows = [row("a", source="web", user_id="ann"), row("b", source="store", user_id="bob")]
    everyone.granted |= dict.fromkeys(("ann", "bob"), EVERYTHING & ~CROSS[1])
    (kept,) = settled(everyone, [rows], [("ann", "bob")])
    assert kept.activity["item"].to_pylist() == [0]


def test_an_erasure_of_one_holds_for_what_they_share(everyone: Shop) -> None:
    rows = [row(item, day=day, user_id=who) for item, who in (("a", "ann"), ("b", "bob")) for day in (1, 5)]
    everyone.erased["bob"] = 3
    (kept,) = settled(everyone, [rows], [("ann", "bob")])
    assert kept.activity.num_rows == 2 and kept.counts["-erased"] == 2


def test_whom_the_log_does_not_know_moves_nowhere(everyone: Shop) -> None:
    (kept,) = settled(everyone, [[row(user_id="ann")]], [("joe", "eve")])
    assert kept.activity["user_key"].to_pylist() == [KEYS.rotating.derive("ann")]
    (kept,) = settled(everyone, [[row(user_id="ann")]], [("joe", "ann")])
    assert kept.activity["user_key"].to_pylist() == [KEYS.rotating.of_person(PERSONS[0])]
