"""What is asked of a canary's list is held property by property; nothing but its name is ever told of it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from engine.errors import SettingsError
from engine.evaluation.canaries import Canary, Shown, ShownItem, faults


def item(name: str, lane: str = "usual", *path: str, sensitive: bool = False) -> ShownItem:
    return ShownItem(name, lane, path or ("Tea", "Green"), sensitive)


LIST = Shown(
    True, (item("a"), item("b", "similar", "Cups", "Glass"), item("c", "popular", "Tea", "Black", sensitive=True))
)
EMPTY = Shown(False, ())
CASES = [  # what is asked, of which list, and what is said
    ({"profiled": False}, LIST, "is profiled, expected not to be"),
    ({"profiled": True}, EMPTY, "is not profiled, expected to be"),
    ({"least_items": 4}, LIST, "has 3 items, at least 4 expected"),
    ({"least_categories": 3}, LIST, "has 2 root categories (Cups, Tea), at least 3 expected"),
    ({"lanes": ["two_tower", "usual", "discovery"]}, LIST, "lacks the lanes discovery, two_tower"),
    ({"some_category": ["Coffee", "Mugs"]}, LIST, "has nothing of Coffee, Mugs"),
    ({"some_category": ["Coffee"]}, EMPTY, "has nothing of Coffee"),
    ({"never_categories": ["Glass", "Coffee"]}, LIST, "has items of Glass"),
    ({"never_items": ["b", "z"]}, LIST, "has the items b"),
    ({"no_sensitive": True}, LIST, "has 1 sensitive items"),
]
KEPT = [
    {"profiled": True},
    {"least_items": 3},
    {"least_categories": 2},
    {"lanes": ["usual", "popular"]},
    {"some_category": ["Coffee", "Black"]},
    {"never_categories": ["Coffee"]},
    {"never_items": ["z"]},
    {"no_sensitive": False, "least_items": 0},
]


@pytest.mark.parametrize(("asked", "shown", "words"), CASES)
def test_what_a_list_lacks_or_must_not_have_is_said(asked, shown, words):
    assert faults(Canary(user="u", **asked), shown) == [words]


@pytest.mark.parametrize("asked", KEPT)
def test_a_list_that_is_as_asked_has_no_fault(asked):
    assert faults(Canary(user="u", **asked), LIST) == []


def test_every_property_is_tried_above():
    about = {"user", "surface", "region", "granted"}
    tried = [{name for asked in each for name in asked} for each in ([case[0] for case in CASES], KEPT)]
    assert tried[0] == tried[1] == {each.name for each in fields(Canary)} - about


def test_all_faults_are_told():
    assert len(faults(Canary(user="u", profiled=False, least_items=9, no_sensitive=True), LIST)) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"least_items": 1}, "gates.canaries.teapot.user is empty"),
        ({"user": "a\0", "least_items": 1}, "NUL"),
        ({"user": "teapot", "least_items": 1}, "called by its user id"),
        ({"user": "qa-7"}, "gates.canaries.teapot asks for nothing"),
        ({"user": "qa-7", "no_sensitive": False}, "asks for nothing"),
        ({"user": "qa-7", "proflied": True}, "Did you mean 'profiled'"),
        ({"user": "qa-7", "profiled": 7}, "gates.canaries.teapot.profiled is not true or false"),
        ({"user": "qa-7", "least_items": True}, "least_items is not a whole number"),
        ({"user": "qa-7", "least_items": -1}, "least_items is not a whole number"),
        ({"user": "qa-7", "never_items": "b"}, "never_items is not a list of words"),
        ({"user": ["qa-7"], "least_items": 1}, "user is not an id"),
        ({"user": "qa-7", "lanes": ["two_towers"]}, "Did you mean 'two_tower'"),
        ({"user": "qa-7", "least_items": 1, "granted": "legder"}, "Did you mean 'ledger'"),
    ],
)
def test_a_canary_that_cannot_be_meant_is_refused_and_its_id_is_not_told(given, words):
    with pytest.raises(SettingsError) as caught:
        Canary.of("teapot", given)
    assert words in str(caught.value)
    assert "qa-7" not in str(caught.value)


def test_a_sound_canary_is_read_and_an_id_of_digits_is_an_id():
    given = {"user": 17, "profiled": False, "lanes": ["usual"], "granted": "all", "least_items": 0}
    assert Canary.of("withdrawn", given) == Canary("17", profiled=False, lanes=["usual"], granted="all", least_items=0)
