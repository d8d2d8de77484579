from __future__ import annotations

from typing import Any

import pytest

from engine.consent import Profile, Vocabulary, parse_profiles
from engine.errors import ConsentError


def test_profiles_narrow_by_source_and_by_event(vocabulary: Vocabulary) -> None:
    spec = {
        "full": None,
        "first_party": {"sources": ["web", "app"]},
        "purchases": {"events": ["purchase"]},
        "store_browsing": {"sources": ["store"], "events": ["other"]},
        "either": {"events": ["purchase", "other"]},
    }
    assert parse_profiles(spec, vocabulary) == (
        Profile("full", 0b111111),
        Profile("first_party", 0b001111),
        Profile("purchases", 0b010101),
        Profile("store_browsing", 0b100000),
        Profile("either", 0b111111),
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "full"),
        ({"purchases": {"events": ["purchase"]}, "full": {}}, "full"),
        ({"full": {"sources": ["web"]}}, "without limits"),
        ({"full": {}, "x": {"sources": ["wbe"]}}, "Did you mean 'web'"),
        ({"full": {}, "x": {"sources": [""]}}, "Unknown source ''"),
        ({"full": {}, "x": {"sources": []}}, "at least one"),
        ({"full": {}, "x": {"sources": "web"}}, "list"),
        ({"full": {}, "x": {"events": ["purchases"]}}, "Did you mean 'purchase'"),
        ({"full": {}, "x": {"source": ["web"]}}, "Did you mean 'sources'"),
    ],
)
def test_a_wrong_profile_is_named(spec: Any, said: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(ConsentError, match=said):
        parse_profiles(spec, vocabulary)
