"""People whose lists must have certain properties before a night is published, and what is asked of any list at all."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import SettingsError
from engine.identity import fault_in_id
from engine.schema import LANES

GRANTS = ("ledger", "all", "none")


@dataclass(slots=True)
class Probes:
    """What must hold of every shop's lists.

    stranger_items: on each surface, of someone unknown; no more than the surface shows. people: published ones that are
    asked for their lists; 0: none. region: where all of them are. available: nothing that cannot be had now and there.
    """

    stranger_items: int | None = 1
    people: int = 200
    region: str = ""
    available: bool = True

    def __post_init__(self) -> None:
        """Raises SettingsError where a number is negative."""
        for name in ("stranger_items", "people"):
            if (getattr(self, name) or 0) < 0:
                raise SettingsError(f"gates.probes.{name} is {getattr(self, name)}.", "Give 0 or more.")


@dataclass(frozen=True, slots=True)
class Canary:
    """An account of the log, and what its list must be like; what is left out is not asked.

    user: its raw id, which stands nowhere else. surface: empty: that of the evaluation. granted: what it allows, as the
    ledger has it now; or all, or none. lanes: that must occur. some_category: one of these must occur. Categories: at any
    height of an item's path. no_sensitive: none of a sensitive category.
    """

    user: str = ""
    surface: str = ""
    region: str = ""
    granted: str = "ledger"
    profiled: bool | None = None
    least_items: int | None = None
    least_categories: int | None = None
    lanes: Sequence[str] = ()
    some_category: Sequence[str] = ()
    never_categories: Sequence[str] = ()
    never_items: Sequence[str] = ()
    no_sensitive: bool = False

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> Canary:
        """What conf/gates says of one canary.

        Raises:
            SettingsError: names the canary and the field, with the nearest known word; never the id.
        """
        where = f"gates.canaries.{name}"
        _known(where, given, _KINDS)
        for word, value in given.items():
            kind = _KINDS[word]
            if not _fits(value, kind):
                raise SettingsError(f"{where}.{word} is not {_WORDS[kind]}.", f"Write {word} as {_WORDS[kind]}.")
        canary = cls(**{**given, "user": str(given.get("user", ""))})  # YAML reads an id of digits as a number
        fault = fault_in_id(canary.user)
        if fault:
            raise SettingsError(f"{where}.user is {fault}.", "Name an account of the log by its id.")
        if canary.user == name:
            raise SettingsError(
                "A canary is called by its user id.", "Give it a name that says what it stands for: names are told."
            )
        _known(f"{where}.granted", [canary.granted], GRANTS)
        _known(f"{where}.lanes", canary.lanes, LANES)
        if not any(asked(canary) for asked, _, _ in _CHECKS):
            raise SettingsError(f"{where} asks for nothing.", "Say what its list must be like, such as least_items.")
        return canary


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One place of a list."""

    item_id: str
    lane: str
    categories: tuple[str, ...]
    sensitive: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A list as its reader sees it, and whether anything of the reader was used."""

    profiled: bool
    items: tuple[ShownItem, ...]

    @property
    def categories(self) -> set[str]:
        """All that occur."""
        return {name for item in self.items for name in item.categories}

    @property
    def roots(self) -> set[str]:
        """Root categories that occur."""
        return {item.categories[0] for item in self.items if item.categories}


def faults(canary: Canary, shown: Shown) -> list[str]:
    """What a list lacks, or has and must not; empty when nothing."""
    return [words(canary, shown) for asked, kept, words in _CHECKS if asked(canary) and not kept(canary, shown)]


_KINDS: Mapping[str, type] = {
    "user": object, "surface": str, "region": str, "granted": str, "profiled": bool, "least_items": int,
    "least_categories": int, "lanes": list, "some_category": list, "never_categories": list, "never_items": list,
    "no_sensitive": bool,
}  # fmt: skip
_WORDS = {
    object: "an id",
    str: "a word",
    bool: "true or false",
    int: "a whole number of 0 or more",
    list: "a list of words",
}


def _fits(value: Any, kind: type) -> bool:
    if kind is object:
        return isinstance(value, (str, int)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, kind)


def _known(where: str, words: Iterable[str], known: Collection[str]) -> None:
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(str(word), known, 1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise SettingsError(f"{where} has '{word}'.", f"{hint}Known: {', '.join(known)}.")


def _named(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


_Check = tuple[Callable[[Any], Any], Callable[[Any, Any], bool], Callable[[Any, Any], str]]
# Of a canary and its list: whether anything is asked, whether it holds, and what is said where it does not.
_CHECKS: tuple[_Check, ...] = (
    (
        lambda c: c.profiled is not None,
        lambda c, s: s.profiled == c.profiled,
        lambda c, s: f"is {'' if s.profiled else 'not '}profiled, expected {'to be' if c.profiled else 'not to be'}",
    ),
    (
        lambda c: c.least_items is not None,
        lambda c, s: len(s.items) >= c.least_items,
        lambda c, s: f"has {len(s.items)} items, at least {c.least_items} expected",
    ),
    (
        lambda c: c.least_categories is not None,
        lambda c, s: len(s.roots) >= c.least_categories,
        lambda c, s: f"has {len(s.roots)} root categories ({_named(s.roots)}), at least {c.least_categories} expected",
    ),
    (
        lambda c: c.lanes,
        lambda c, s: {*c.lanes} <= {item.lane for item in s.items},
        lambda c, s: f"lacks the lanes {_named({*c.lanes} - {item.lane for item in s.items})}",
    ),
    (
        lambda c: c.some_category,
        lambda c, s: not s.categories.isdisjoint(c.some_category),
        lambda c, s: f"has nothing of {_named({*c.some_category})}",
    ),
    (
        lambda c: c.never_categories,
        lambda c, s: s.categories.isdisjoint(c.never_categories),
        lambda c, s: f"has items of {_named(s.categories & {*c.never_categories})}",
    ),
    (
        lambda c: c.never_items,
        lambda c, s: {item.item_id for item in s.items}.isdisjoint(c.never_items),
        lambda c, s: f"has the items {_named({item.item_id for item in s.items} & {*c.never_items})}",
    ),
    (
        lambda c: c.no_sensitive,
        lambda c, s: not any(item.sensitive for item in s.items),
        lambda c, s: f"has {sum(item.sensitive for item in s.items)} sensitive items",
    ),
)
