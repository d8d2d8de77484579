"""What must hold before a night is published. A gate that says no leaves yesterday's snapshot serving.

GATES is the whole of it: a row bounds one figure, by itself or against yesterday's, by a setting that null switches off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from engine.errors import SettingsError
from engine.evaluation.canaries import Canary, Probes

ERROR = ".se"  # a figure's standard error stands beside it under this ending
FEWEST_PEOPLE = "least_people"


@dataclass(slots=True)
class GateSettings:
    """Bounds of a night's figures; null switches one off.

    *_fall, *_rise: how far a figure may lie below or above yesterday's, as a share of it. *_change: how far it may move, either
    way. least_*, most_*: of the figure itself. day_fall: a new day of the log with less than 1 - day_fall of the rows of the day
    before is thin. noise: standard errors by which a bound on something measured on people gives way. least_people: behind
    such a figure; with fewer it is not held against yesterday's.
    """

    quality_fall: float | None = 0.3
    new_quality_fall: float | None = 0.5
    least_recall: float | None = None
    least_ndcg: float | None = None
    beat_popularity: bool = True
    evaluated_fall: float | None = 0.7
    coverage_fall: float | None = 0.5
    least_coverage: float | None = None
    tail_fall: float | None = 0.5
    miscalibration_rise: float | None = 0.5
    most_miscalibration: float | None = None
    lane_change: float | None = 0.25
    withheld_change: float | None = 0.25
    most_withheld: float | None = None
    people_fall: float | None = 0.5
    people_rise: float | None = 1.0
    items_fall: float | None = 0.5
    items_rise: float | None = 1.0
    least_items: int | None = 1
    size_fall: float | None = 0.5
    size_rise: float | None = 1.0
    most_bytes: float | None = None
    person_size_fall: float | None = 0.5
    person_size_rise: float | None = 1.0
    most_epsilon: float | None = 10.0
    most_empty_days: int | None = 0
    most_thin_days: int | None = 0
    day_fall: float = 0.5
    most_days_back: float | None = 0.0
    most_log_age_days: float | None = None
    noise: float = 2.0
    least_people: int = 30
    probes: Probes = field(default_factory=Probes)
    canaries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before any work.

        Raises:
            SettingsError: names the setting.
        """
        for gate in GATES:
            value = self.value(gate)
            if value is not None:
                _require(gate.setting, value, _HIGHEST.get(gate.kind, math.inf))
        _require("day_fall", self.day_fall, 1.0)
        _require("noise", self.noise)
        _require(FEWEST_PEOPLE, self.least_people)
        self.watched()

    def watched(self) -> dict[str, Canary]:
        """The canaries by name."""
        return {name: Canary.of(name, given) for name, given in self.canaries.items()}

    def value(self, gate: Gate) -> float | None:
        """What a gate is set to; None where it is off."""
        value = getattr(self, gate.setting)
        if isinstance(value, bool):  # a gate that is on or off holds its figure above 0
            return 0.0 if value else None
        return None if value is None else float(value)


class Bound(Enum):
    """How a setting bounds a figure."""

    LEAST = "at least"
    MOST = "at most"
    FALL = "falls"  # below yesterday's, as a share of it
    RISE = "rises"
    CHANGE = "moves"  # either way


class Outcome(Enum):
    """What a gate says."""

    PASSED = "passed"
    BROKEN = "BROKEN"
    SKIPPED = "not compared"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound.

    figure: its name; with * at the end, all that begin so. setting: of GateSettings. behind: the figure that counts the people
    it was measured on; such a figure is random, and comparable only with one that was measured in the same way.
    needed: a bound of the figure itself is broken where there is no figure.
    """

    figure: str
    kind: Bound
    setting: str
    behind: str = ""
    measured: bool = False  # comparable only under one protocol
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate said of one figure. bound: in words; why: what is broken and by how much, or why nothing was compared."""

    gate: str
    figure: str
    today: float | None
    yesterday: float | None
    bound: str
    outcome: Outcome
    why: str = ""


ALL, NEW, SAMPLED = "served.all.people", "served.new.people", "sampled"
AHEAD = "ahead.all.recall@20"  # of the served lists over those of the most popular items, person by person
GATES = (
    Gate("served.all.recall@20", Bound.FALL, "quality_fall", ALL),
    Gate("served.all.ndcg@10", Bound.FALL, "quality_fall", ALL),
    Gate("served.new.recall@20", Bound.FALL, "new_quality_fall", NEW),
    Gate("served.new.ndcg@10", Bound.FALL, "new_quality_fall", NEW),
    Gate("served.all.recall@20", Bound.LEAST, "least_recall"),
    Gate("served.all.ndcg@10", Bound.LEAST, "least_ndcg"),
    Gate(AHEAD, Bound.LEAST, "beat_popularity", ALL, needed=False),
    Gate(ALL, Bound.FALL, "evaluated_fall", measured=True),
    Gate("served.coverage", Bound.FALL, "coverage_fall", ALL),
    Gate("served.coverage", Bound.LEAST, "least_coverage"),
    Gate("served.tail_share", Bound.FALL, "tail_fall", ALL),
    Gate("served.miscalibration", Bound.RISE, "miscalibration_rise", ALL),
    Gate("served.miscalibration", Bound.MOST, "most_miscalibration"),
    Gate("lane_share.*", Bound.CHANGE, "lane_change", SAMPLED),
    Gate("withheld_share", Bound.CHANGE, "withheld_change", SAMPLED),
    Gate("withheld_share", Bound.MOST, "most_withheld"),
    Gate("people", Bound.FALL, "people_fall"),
    Gate("people", Bound.RISE, "people_rise"),
    Gate("items", Bound.FALL, "items_fall"),
    Gate("items", Bound.RISE, "items_rise"),
    Gate("items", Bound.LEAST, "least_items"),
    Gate("size.bytes", Bound.FALL, "size_fall"),
    Gate("size.bytes", Bound.RISE, "size_rise"),
    Gate("size.bytes", Bound.MOST, "most_bytes"),
    Gate("size.bytes_per_person", Bound.FALL, "person_size_fall"),
    Gate("size.bytes_per_person", Bound.RISE, "person_size_rise"),
    Gate("epsilon_spent", Bound.MOST, "most_epsilon"),
    Gate("log.empty_days", Bound.MOST, "most_empty_days", needed=False),
    Gate("log.thin_days", Bound.MOST, "most_thin_days", needed=False),
    Gate("log.days_back", Bound.MOST, "most_days_back", needed=False),
    Gate("log.age_days", Bound.MOST, "most_log_age_days"),
)

_Range = tuple[float, float]
# From the setting and yesterday's figure: between what today's must lie, and how much of yesterday's error that carries.
_RANGES: Mapping[Bound, Callable[[float, float], _Range]] = {
    Bound.LEAST: lambda value, _: (value, math.inf),
    Bound.MOST: lambda value, _: (-math.inf, value),
    Bound.FALL: lambda value, before: (before * (1 - value), math.inf),
    Bound.RISE: lambda value, before: (-math.inf, before * (1 + value)),
    Bound.CHANGE: lambda value, before: (before - value, before + value),
}
_CARRIED: Mapping[Bound, Callable[[float], float]] = {
    Bound.FALL: lambda value: 1 - value,
    Bound.RISE: lambda value: 1 + value,
    Bound.CHANGE: lambda _: 1.0,
}
_HIGHEST = {Bound.FALL: 1.0, Bound.CHANGE: 1.0}
_SHARES = (Bound.FALL, Bound.RISE)
_PROBED = ("lane_share.", "withheld_share")  # nothing to measure them on where gates.probes asks nobody
_UNMEASURED = "there is nothing to measure it on"


def judge(
    today: Mapping[str, float],
    yesterday: Mapping[str, float] | None,
    settings: GateSettings,
    comparable: bool = True,
    details: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """What each gate says of today's figures.

    Args:
        today: figures by name, their standard errors beside them; what could not be measured is absent or NaN.
        yesterday: those of the snapshot that serves; None on the first night.
        comparable: whether both were measured in the same way, on people picked in the same way.
        details: by figure, what a broken gate says besides.

    Returns:
        a verdict for each gate and figure, in the order of GATES.
    """
    before = {name: value for name, value in (yesterday or {}).items() if math.isfinite(value)}
    verdicts = []
    for gate in GATES:
        for figure in _figures(gate.figure, {*today, *before}):
            outcome, bound, why = _held(
                gate, figure, today, before if yesterday is not None else None, settings, comparable
            )
            if outcome is Outcome.BROKEN and details and details.get(figure):
                why += f" ({details[figure]})"
            now = today.get(figure)
            verdicts.append(
                Verdict(
                    gate.setting,
                    figure,
                    now if now is not None and math.isfinite(now) else None,
                    before.get(figure),
                    bound,
                    outcome,
                    why,
                )
            )
    return verdicts


def broken(verdicts: Iterable[Verdict]) -> list[str]:
    """What the broken gates say."""
    return [verdict.why for verdict in verdicts if verdict.outcome is Outcome.BROKEN]


def _held(
    gate: Gate,
    figure: str,
    today: Mapping[str, float],
    before: Mapping[str, float] | None,
    settings: GateSettings,
    comparable: bool,
) -> tuple[Outcome, str, str]:
    value = settings.value(gate)
    if value is None:
        return Outcome.OFF, "", ""
    now, then = today.get(figure), (before or {}).get(figure)
    if now is None and figure.startswith(_PROBED) and today.get(SAMPLED) == 0:
        return Outcome.SKIPPED, "", "no list was asked for"
    against = gate.kind in _CARRIED
    for applies, why in _reasons_to_skip(gate, now, then, today, before, settings, comparable):
        if against and applies:
            return Outcome.SKIPPED, "", why
    if now is None or not math.isfinite(now):
        if now is None and then is None and not gate.needed:
            return Outcome.SKIPPED, "", _UNMEASURED
        had = f"; yesterday {_number(then)}" if then is not None else ""
        return Outcome.BROKEN, "", f"{figure}: could not be measured{had} (gates.{gate.setting})"
    margin = 0.0
    if gate.behind:
        carried = _CARRIED[gate.kind](value) if against else 0.0
        error = math.hypot(today.get(figure + ERROR, 0.0), carried * (before or {}).get(figure + ERROR, 0.0))
        margin = settings.noise * error if math.isfinite(error) else 0.0
    low, high = _RANGES[gate.kind](value, then if then is not None else math.nan)
    low, high = low - margin, high + margin
    within = " to ".join(_number(each) for each in (low, high) if math.isfinite(each))
    bound = within if math.isfinite(low) and math.isfinite(high) else f"{'>=' if math.isfinite(low) else '<='} {within}"
    if low <= now <= high:
        return Outcome.PASSED, bound, ""
    return Outcome.BROKEN, bound, _message(gate, figure, now, then, (low, high), margin, value)


def _reasons_to_skip(
    gate: Gate,
    now: float | None,
    then: float | None,
    today: Mapping[str, float],
    before: Mapping[str, float] | None,
    settings: GateSettings,
    comparable: bool,
) -> Iterator[tuple[bool, str]]:
    """Why a figure cannot be held against yesterday's. One that was lost since yesterday is no such reason."""
    yield before is None, "nothing serves yet"
    yield bool(gate.behind or gate.measured) and not comparable, "yesterday's was measured in another way"
    yield then is None, _UNMEASURED if now is None else "yesterday has no such figure"
    yield then == 0 and gate.kind in _SHARES, "yesterday's is 0"
    if gate.behind and now is not None and math.isfinite(now):
        for figures, when in ((today, "today"), (before or {}, "yesterday")):
            people = figures.get(gate.behind, math.inf)
            yield (
                people < settings.least_people,
                f"measured on {_number(people)} people {when}, fewer than gates.{FEWEST_PEOPLE}",
            )


def _message(
    gate: Gate, figure: str, now: float, then: float | None, within: _Range, margin: float, value: float
) -> str:
    low, high = within
    word, bound = ("at least", low) if now < low else ("at most", high)
    miss = abs(now - bound)
    share = f" ({100 * miss / abs(bound):.1f} %)" if bound and math.isfinite(miss) else ""
    given = f"; a margin of {_number(margin)} for noise is given" if margin else ""
    had = f"; yesterday {_number(then)}" if then is not None else ""
    set_to = "true" if gate.setting == "beat_popularity" else f"{value:g}"
    return (
        f"{figure}: {_number(now)}, {word} {_number(bound)} expected, missed by {_number(miss)}{share}{had}{given}"
        f" (gates.{gate.setting}={set_to})"
    )


def _figures(pattern: str, known: set[str]) -> list[str]:
    if not pattern.endswith("*"):
        return [pattern]
    return sorted(name for name in known if name.startswith(pattern[:-1]) and not name.endswith(ERROR))


def _number(value: float) -> str:
    whole = math.isfinite(value) and (abs(value) >= 1e4 or value == round(value))
    return f"{value:.0f}" if whole else f"{value:.4g}"


def _require(setting: str, value: float, highest: float = math.inf) -> None:
    if not (0 <= value <= highest and math.isfinite(value)):
        span = "0 or more" if math.isinf(highest) else f"0 to {highest:g}"
        raise SettingsError(f"gates.{setting} is {value:g}.", f"Give a number of {span}; null switches a gate off.")
