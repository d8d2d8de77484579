"""Fallback profiles: parts of a history encoded beside the whole, so that a withdrawal narrows a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.consent.vocabulary import EVENTS, PROFILE, Vocabulary, unknown_name
from engine.errors import ConsentError

FULL = "full"


@dataclass(frozen=True, slots=True)
class Profile:
    """A named part of what may be known of a person: a mask over the vocabulary's groups."""

    name: str
    groups: int


def parse_profiles(
    spec: Mapping[str, Mapping[str, Sequence[str]] | None], vocabulary: Vocabulary
) -> tuple[Profile, ...]:
    """Fallback profiles from settings.

    Args:
        spec: by name, `sources` and `events` (purchase, other) that the profile is limited to; what is left out does
            not limit. For example `{full: {}, first_party: {sources: [web, app]}, purchases: {events: [purchase]}}`.
        vocabulary: gives the bits.

    Returns:
        The profiles in the order given, `full` first.

    Raises:
        ConsentError: the first is not an unlimited `full`, a name is unknown, or a profile holds nothing.
    """
    profiles = tuple(Profile(name, _groups(name, limits or {}, vocabulary)) for name, limits in spec.items())
    if not profiles or profiles[0] != Profile(FULL, vocabulary.groups):
        raise ConsentError(
            f"The first fallback profile must be '{FULL}', without limits.", f"Begin the list with `{FULL}: {{}}`."
        )
    return profiles


def _groups(name: str, limits: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> int:
    groups = vocabulary.groups
    for limit, values in limits.items():
        if isinstance(values, str) or not values:
            raise ConsentError(f"Profile '{name}' limits '{limit}' to {values!r}.", "Give a list of at least one name.")
        if limit == "sources":
            groups &= _union(vocabulary.mask(PROFILE, _named(source, vocabulary)) for source in values)
        elif limit == "events":
            groups &= _union(_events(event, vocabulary) for event in values)
        else:
            raise unknown_name(f"limit in profile '{name}'", limit, ("sources", "events"))
    return groups


def _named(source: str, vocabulary: Vocabulary) -> str:
    # An empty name would mean every source to mask(), and so widen what was meant as a limit.
    vocabulary.source_code(source)
    return source


def _events(event: str, vocabulary: Vocabulary) -> int:
    if event not in EVENTS:  # the groups tell purchases from the rest and nothing finer
        raise unknown_name("event in a fallback profile", event, EVENTS)
    return vocabulary.purchase_groups if event == EVENTS[0] else vocabulary.groups ^ vocabulary.purchase_groups


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union
