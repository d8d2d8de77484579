"""The compiled merge does what a sort and a dictionary do, whatever the runs are; and trusts no file with its memory."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.activity.gather import gather
from engine.activity.keys import places_in
from engine.activity.merge import LEFT_OUT, ROW, merged
from engine.activity.settle import settle_bucket
from engine.errors import DataError
from tests.activity.logs import Shop, micros, row

SINCE, UNTIL = np.array([30, 0] + [0] * 254), 90
TIES = ("ts", "item", "event", "source", "gift", "value", "mark")


def order_of(each: Any, by_mark: bool) -> tuple[Any, ...]:
    value = float(each["value"])
    keys = [(np.isnan(value), 0.0 if np.isnan(value) else value) if name == "value" else each[name] for name in TIES]
    return (each["mark"], *keys) if by_mark else tuple(keys)


def drawn(draw: random.Random, rows: int, few: bool) -> np.ndarray[Any, Any]:
    """Rows that tie in all sorts of ways where they are of few kinds."""
    made = np.zeros(rows, ROW)
    for each in made:
        each["ts"] = draw.randrange(10, 100, 20) if few else draw.randrange(100)
        each["mark"] = draw.choice([0, 1, 2**63, 2**64 - 1]) if few else draw.randrange(2**64)
        each["value"] = draw.choice([np.nan, -1.0, 0.0, 2.5])
        each["item"], each["event"] = draw.choice([-2, -1, 0, 1, 2]), draw.randrange(2)
        each["source"], each["gift"] = draw.randrange(2), draw.random() < 0.5
    return made


@pytest.mark.parametrize("seed", range(12))
def test_it_is_a_sort_and_a_dictionary(seed: int) -> None:
    draw = random.Random(seed)
    people = [
        [drawn(draw, draw.choice([0, 1, 2, 7, 40]), few=draw.random() < 0.5) for _ in range(draw.choice([1, 2, 5, 13]))]
        for _ in range(draw.choice([1, 4, 30]))
    ]
    for number, blocks in enumerate(people):  # a run has a person's rows in order, and those of nobody by mark
        for block in blocks:
            block[:] = np.array(sorted(block, key=lambda each: order_of(each, number == len(people) - 1)), ROW)
    rows = np.concatenate([block for blocks in people for block in blocks])
    sizes = np.array([len(block) for blocks in people for block in blocks])
    first = np.cumsum([0, *(len(blocks) for blocks in people)])
    settled = np.empty_like(rows)
    ends, left_out, expired = merged(rows, (first, np.cumsum(sizes) - sizes, sizes), SINCE, UNTIL, settled)
    begin, repeated = 0, 0
    for number, blocks in enumerate(people):
        kept = [
            each for each in np.concatenate(blocks)
            if each["item"] >= 0 and each["ts"] <= UNTIL and each["ts"] >= SINCE[each["event"]]
        ]  # fmt: skip
        kept.sort(key=lambda each: order_of(each, number == len(people) - 1))
        last = {int(each["mark"]): place for place, each in enumerate(kept)}
        expected = [order_of(kept[place], False) for place in sorted(last.values())]
        assert [order_of(each, False) for each in settled[begin : ends[number]]] == expected
        begin, repeated = ends[number], repeated + len(kept) - len(last)
    offered = rows[rows["item"] >= 0]
    assert dict(zip(LEFT_OUT, left_out.tolist(), strict=True)) == {
        "-not_offered": (rows["item"] == -1).sum(),
        "unknown_item": (rows["item"] == -2).sum(),
        "-after_as_of": (offered["ts"] > UNTIL).sum(),
        "-duplicate": repeated,
    }
    assert expired.sum() == ((offered["event"] == 0) & (offered["ts"] < 30)).sum()
    assert len(rows) == begin + left_out.sum() + expired.sum()


def test_a_flood_of_one_person_in_no_order_takes_no_square_of_time() -> None:
    rows = drawn(random.Random(1), 200_000, few=False)
    rows["item"], rows["ts"] = 0, np.arange(len(rows))[::-1] % 61 + 30
    settled = np.empty_like(rows)
    blocks = (np.array([0, 1, 1]), np.zeros(1, np.int64), np.array([len(rows)]))
    ends, _, _ = merged(rows, blocks, SINCE, UNTIL, settled)
    assert ends.tolist() == [len(rows)] * 2
    assert (np.diff(settled["ts"]) >= 0).all()


@pytest.mark.parametrize("alike", [False, True])
def test_a_person_is_found_in_the_ledger_though_another_s_key_begins_alike(alike: bool) -> None:
    keys = [bytes([0] * 8 + [low] * 8) if alike else bytes([low] * 16) for low in (1, 2, 200)]
    listed = np.array(keys, "S16")
    assert places_in(listed, listed[[2, 0, 1]]).tolist() == [2, 0, 1]
    assert places_in(listed, np.array([b"\xff" * 16])).tolist() == [2]


def test_an_event_up_to_an_erasure_counts_for_nothing_not_even_for_what_is_popular(shop: Shop) -> None:
    shop.erased = {"ann": 3}
    (settled,) = shop.settle([row(item, day=day) for item, day in zip("abcd", (1, 3, 3.1, 5), strict=True)])
    assert settled.activity["item"].to_pylist() == [2, 3]
    assert (settled.counts["-erased"], settled.counts["-no_grant"], settled.people, settled.unprofiled) == (2, 0, 1, 0)
    assert settled.popularity[0]["item"].to_pylist() == [2, 3]
    shop.erased = {"ann": 5}
    (settled,) = shop.settle([row(day=5), row("b", day=5, user_id="bob")])
    assert settled.activity["item"].to_pylist() == settled.popularity[0]["item"].to_pylist() == [1]
    assert (settled.people, settled.unprofiled) == (1, 0)


def test_a_part_whose_rows_end_before_they_begin_is_refused(shop: Shop) -> None:
    parts = shop.split([row(user_id=name, day=day) for name in ("ann", "bob", "eve") for day in (1, 2)])
    path = next((parts.store.root / parts.keys[0]).glob("people-*.arrow"))
    with pa.memory_map(str(path)) as source:
        people = pa.ipc.open_file(source).read_all()
    twisted = people.set_column(2, "end", pa.array([6, 2, 6]))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, people.schema) as writer:
        writer.write_table(twisted)
    tonight = shop.tonight(parts, 59, (59,), 30)
    with pytest.raises(DataError, match="is damaged"):
        gather(parts.store, parts.keys, tonight.places, 0, 1, SINCE, micros(59))
    with pytest.raises(DataError, match="is damaged"):
        settle_bucket(0, 1, tonight)
