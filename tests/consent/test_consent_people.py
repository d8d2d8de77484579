"""Everybody's rows: searched, moved on, kept in a file, and not believed once a byte of it is another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.consent import people as module
from engine.consent.changes import ALONE, Held
from engine.consent.people import Origin, People, load, rows_of
from engine.consent.replay import State


@pytest.fixture(autouse=True, scope="module", params=[1, 7, 1 << 16], ids=lambda rows: f"{rows} rows a piece")
def piece(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", request.param)
        yield


ORIGIN = Origin(stable_key="k", vocabulary="v", sequence=7, audit_head="h")
HELD = st.builds(
    Held,
    st.binary(min_size=16, max_size=16) | st.binary(min_size=15, max_size=15).map(lambda key: key + b"\0"),
    st.integers(0, 2**63 - 1),
    st.integers(0, 4),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.just(ALONE) | st.binary(min_size=16, max_size=16),
)
CROWD = st.lists(HELD, max_size=60, unique_by=lambda held: held.key)


def people(crowd: list[Held], origin: Origin = ORIGIN) -> People:
    columns = zip(*sorted(crowd), strict=True) if crowd else [()] * 7
    kinds = ("S16", np.uint64, np.uint8, np.int64, np.int64, np.int64, "S16")
    return People(rows_of(State(*(np.array(c, kind) for c, kind in zip(columns, kinds, strict=True)))), origin)


@settings(max_examples=60, deadline=None)
@given(CROWD, st.lists(HELD, max_size=9))
def test_everybody_is_found_and_nobody_else(crowd: list[Held], strangers: list[Held]) -> None:
    held, of = people(crowd), {each.key: each for each in crowd}
    assert len(held) == len(crowd)
    for each in [*crowd, *strangers]:
        assert held.find(each.key) == of.get(each.key)


@settings(max_examples=60, deadline=None)
@given(CROWD, CROWD, st.data())
def test_whoever_moved_takes_their_own_place(crowd: list[Held], others: list[Held], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(crowd), unique=True)) if crowd else []
    moved = {each.key: each for each in others} | {each.key: each._replace(granted=1, sequence=9) for each in again}
    before = people(crowd)
    after = before.with_moved(moved.values(), ORIGIN)
    expected = {each.key: each for each in crowd} | moved
    assert len(after) == len(expected) and all(after.find(key) == held for key, held in expected.items())
    assert list(after.rows["key"]) == sorted(after.rows["key"])
    assert all(before.find(each.key) == each for each in crowd), "replies may still read from it"


def test_many_people_of_even_keys_are_found() -> None:
    rng = np.random.default_rng(3)
    crowd = [Held(rng.bytes(16), int(n), 4, n, 0, 0) for n in range(20_011)]
    held = people(crowd)
    assert all(held.find(each.key) == each for each in crowd)
    assert not any(held.find(rng.bytes(16)) for _ in range(1000))


@pytest.mark.parametrize("count", [1, 123])
def test_a_file_gives_the_same_people_and_is_its_owners_alone(tmp_path: Path, count: int) -> None:
    crowd = [Held(bytes([n]) * 16, n, 1, n, n, n) for n in range(count)]
    path = tmp_path / "new" / "x.people"
    people(crowd).save(path)
    held = load(path)
    assert held.origin == ORIGIN and [held.find(each.key) for each in crowd] == crowd
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["x.people"]


def test_a_byte_more_less_or_other_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.people"
    people([Held(bytes([n]) * 16, n, 1, n, 0, 0) for n in range(9)]).save(path)
    whole = path.read_bytes()
    for place in [*range(0, 300, 3), 4000, *range(4096, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError):
            load(path)
    for cut in (0, 5, 4095, 4096, len(whole) - 1, len(whole) - 49):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError):
            load(path)
    path.write_bytes(whole + b"\0" * 49)
    with pytest.raises(ValueError):
        load(path)
    with pytest.raises(OSError):
        load(tmp_path / "none")
