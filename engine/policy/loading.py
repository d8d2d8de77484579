"""From the settings of conf/policy to chains: rules found by name, and a mistake answered with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from engine.consent.vocabulary import Level
from engine.errors import PolicyError
from engine.policy.chain import Chain
from engine.policy.slate import Rule

GROUP = "bodega.rules"
_SURFACE_KEYS = ("limit", "level", "rules")
_ENTRY_KEYS = ("name", "enabled")
_LEVELS = {level.name.lower(): level for level in Level if level is not Level.UNSET}
_DEFAULT_LIMIT = 20


def load_policies(spec: Mapping[str, Any]) -> dict[str, Chain]:
    """The chain of each surface.

    Args:
        spec: plain settings by surface, {limit: 20, level: full, rules: [{name: category_cap, share: 0.4}, ...]};
            limit and level may be left out, and are then 20 and full. A rule with `enabled: false` is checked and left out.

    Returns:
        chains by surface, in the order of the settings.

    Raises:
        PolicyError: a surface has an unknown key, a rule or parameter is unknown, mistyped or out of range, consent is
            not the last rule, or there is no surface at all. Says where, and which known name is nearest.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise PolicyError("There is no policy.", "Choose a group file of conf/policy, such as policy=default.")
    registered = {point.name: point for point in entry_points(group=GROUP)}
    return {str(surface): _chain(str(surface), settings, registered) for surface, settings in spec.items()}


def _chain(surface: str, settings: Any, registered: Mapping[str, EntryPoint]) -> Chain:
    where = f"Policy '{surface}'"
    if not isinstance(settings, Mapping):
        raise PolicyError(f"{where}: expected limit, level and rules, found {settings!r}.", _EXAMPLE)
    _refuse_unknown(where, "setting", settings, _SURFACE_KEYS)
    limit = settings.get("limit", _DEFAULT_LIMIT)
    if not _fits(limit, int):
        raise PolicyError(f"{where}: limit: expected a whole number, found {limit!r}.", _EXAMPLE)
    level = settings.get("level", "full")
    _refuse_unknown(where, "level", [level], _LEVELS)
    listed = settings.get("rules")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise PolicyError(f"{where}: rules: expected a list, found {listed!r}.", _EXAMPLE)
    made = [_rule(where, entry, registered) for entry in listed]
    rules = tuple(rule for rule, entry in zip(made, listed, strict=True) if entry.get("enabled", True))
    return Chain(surface, _version(limit, level, rules), rules, limit, _LEVELS[level])


def _rule(where: str, entry: Any, registered: Mapping[str, EntryPoint]) -> Rule:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise PolicyError(f"{where}: a rule is {entry!r}, without a name.", _EXAMPLE)
    name, enabled = entry["name"], entry.get("enabled", True)
    _refuse_unknown(where, "rule", [name], registered)
    if not isinstance(enabled, bool):
        raise PolicyError(f"{where}: {name}: enabled: expected bool, found {enabled!r}.", "Write true or false.")
    made = _rule_class(where, registered[name])
    fields = [field for field in dataclasses.fields(made) if field.init]
    kinds = get_type_hints(made)
    given = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    _refuse_unknown(where, f"parameter of '{name}'", given, [field.name for field in fields])
    for field in fields:
        kind = kinds[field.name]
        if field.name not in given and _needed(field):
            raise PolicyError(f"{where}: {name} lacks {field.name}.", "Add what has no default.")
        if field.name in given and not _fits(given[field.name], kind):
            expected = getattr(kind, "__name__", str(kind))
            raise PolicyError(
                f"{where}: {name}: {field.name}: expected {expected}, found {given[field.name]!r}.",
                f"Write {field.name} as {expected}.",
            )
    try:
        rule: Rule = made(**given)
    except PolicyError as error:
        raise PolicyError(f"{where}: {error.message}", error.remedy) from error
    return rule


def _rule_class(where: str, point: EntryPoint) -> Any:
    try:
        made = point.load()
    except (ImportError, AttributeError) as error:
        raise PolicyError(
            f"{where}: rule '{point.name}' cannot be loaded from {point.value}: {error}.",
            "Mend its entry point, and install its package again.",
        ) from error
    if not (isinstance(made, type) and dataclasses.is_dataclass(made) and getattr(made, "name", None) == point.name):
        raise PolicyError(
            f"{where}: {point.value} is no rule called '{point.name}'.",
            f"Make it a frozen dataclass with `name: ClassVar[str] = '{point.name}'`.",
        )
    return made


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _fits(value: object, kind: Any) -> bool:
    if not isinstance(kind, type):
        return True  # a rule with richer parameters checks them itself
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _version(limit: int, level: str, rules: Sequence[Rule]) -> str:
    told = [[rule.name, {each.name: getattr(rule, each.name) for each in dataclasses.fields(rule) if each.init}]  # type: ignore[arg-type]
            for rule in rules]  # fmt: skip
    text = json.dumps([limit, level, told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _refuse_unknown(where: str, kind: str, found: Collection[Any], known: Collection[str]) -> None:
    for name in found:
        if not isinstance(name, str) or name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise PolicyError(f"{where}: unknown {kind} '{name}'.", f"{hint}Known: {', '.join(known) or 'none'}.")


_EXAMPLE = "Write it as {limit: 20, level: full, rules: [{name: category_cap, share: 0.4}, {name: consent}]}."
