"""Lanes are found by name and built with their parameters."""

import dataclasses
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from engine.errors import SettingsError
from engine.ranking import found
from engine.ranking.found import Found, lanes
from engine.ranking.lanes.usual import UsualLane


def test_every_lane_of_the_house_is_built_with_its_parameters():
    built = lanes({"usual": {"keep": 3}, "two_tower": {}, "similar": {}, "discovery": {}, "popular": {}})
    assert list(built) == ["usual", "two_tower", "similar", "discovery", "popular"]
    assert built["usual"] == UsualLane(keep=3)


def test_an_unknown_lane_is_refused_with_the_near_miss():
    with pytest.raises(SettingsError, match="no lane 'usuel'; did you mean 'usual'"):
        lanes({"usuel": {}})
    with pytest.raises(SettingsError, match=r"no lane 'xyz'\."):
        lanes({"xyz": {}})


def test_an_unknown_parameter_is_refused_with_the_lane():
    with pytest.raises(SettingsError, match=r"lanes\.usual: .*kep"):
        lanes({"usual": {"kep": 3}})


@dataclasses.dataclass
class HouseWine:
    strength: float = 1.0

    def find(self, people, shop):
        return Found.nothing()


def test_a_lane_that_a_team_registers_needs_no_change_here(monkeypatch):
    point = EntryPoint("house_wine", "tests.ranking.test_found:HouseWine", "bodega.lanes")
    monkeypatch.setattr(found, "entry_points", lambda group: [point])
    assert lanes({"house_wine": {"strength": 2.0}})["house_wine"].strength == 2.0


def test_candidates_join_and_part():
    none = Found.nothing()
    assert len(Found.together([]).owner) == len(Found.together([none, none]).owner) == 0
    some = Found(
        np.array([0, 1, 1]),
        np.array([4, 5, 6], np.int32),
        np.array([0.5, 0.25, 0.125], np.float32),
        np.array([1, 2, 3], np.uint64),
        np.array([-1, 4, 4], np.int32),
    )
    both = Found.together([some, none, some])
    assert both.item.tolist() == [4, 5, 6, 4, 5, 6] and both.basis.dtype == np.uint64
    assert both.take(np.array([5, 0])).item.tolist() == [6, 4]
    assert both.take(both.score > 0.2).owner.tolist() == [0, 1, 0, 1]
    assert [part.dtype for part in dataclasses.astuple(none)] == [part.dtype for part in dataclasses.astuple(some)]
