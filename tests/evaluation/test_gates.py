"""Gates say which figure broke which bound, by how much, and why something was not compared; null switches them off."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SettingsError
from engine.evaluation.canaries import Probes
from engine.evaluation.gates import GATES, Bound, Gate, GateSettings, Outcome, Verdict, broken, judge

NIGHT = {
    "served.all.recall@20": 0.3,
    "served.all.recall@20.se": 0.0,
    "served.all.ndcg@10": 0.2,
    "served.new.recall@20": 0.1,
    "served.new.ndcg@10": 0.1,
    "ahead.all.recall@20": 0.05,
    "served.all.people": 500.0,
    "served.new.people": 400.0,
    "served.coverage": 0.6,
    "served.tail_share": 0.4,
    "served.miscalibration": 0.8,
    "lane_share.usual": 0.3,
    "lane_share.two_tower": 0.7,
    "sampled": 200.0,
    "withheld_share": 0.2,
    "people": 100.0,
    "items": 50.0,
    "size.bytes": 4000.0,
    "size.bytes_per_person": 40.0,
    "epsilon_spent": 1.0,
    "log.empty_days": 0.0,
    "log.thin_days": 0.0,
    "log.days_back": 0.0,
    "log.age_days": 0.5,
}


def said(today, yesterday=NIGHT, comparable=True, **settings) -> list[str]:
    return broken(judge(today, yesterday, GateSettings(**settings), comparable))


def verdict(gate: str, figure: str, *arguments, **more) -> Verdict:
    (found,) = [each for each in judge(*arguments, **more) if (each.gate, each.figure) == (gate, figure)]
    return found


def test_the_same_night_again_passes_every_gate():
    verdicts = judge(NIGHT, NIGHT, GateSettings())
    assert broken(verdicts) == []
    assert {each.outcome for each in verdicts} == {Outcome.PASSED, Outcome.OFF}


@pytest.mark.parametrize(
    ("figure", "value", "setting", "words"),
    [
        (
            "served.all.recall@20",
            0.2,
            "quality_fall",
            "0.2, at least 0.21 expected, missed by 0.01 (4.8 %); yesterday 0.3",
        ),
        ("served.all.ndcg@10", 0.1, "quality_fall", "at least 0.14 expected"),
        ("served.new.recall@20", 0.04, "new_quality_fall", "at least 0.05 expected"),
        ("served.new.ndcg@10", 0.04, "new_quality_fall", "at least 0.05 expected"),
        ("ahead.all.recall@20", -0.01, "beat_popularity", "-0.01, at least 0 expected, missed by 0.01"),
        ("served.all.people", 149.0, "evaluated_fall", "149, at least 150 expected"),
        ("served.coverage", 0.2, "coverage_fall", "at least 0.3 expected"),
        ("served.tail_share", 0.1, "tail_fall", "at least 0.2 expected"),
        ("served.miscalibration", 1.5, "miscalibration_rise", "1.5, at most 1.2 expected, missed by 0.3 (25.0 %)"),
        ("lane_share.usual", 0.0, "lane_change", "0, at least 0.05 expected"),
        ("lane_share.two_tower", 0.96, "lane_change", "at most 0.95 expected"),
        ("withheld_share", 0.5, "withheld_change", "at most 0.45 expected"),
        (
            "people",
            49.0,
            "people_fall",
            "49, at least 50 expected, missed by 1 (2.0 %); yesterday 100 (gates.people_fall=0.5)",
        ),
        ("people", 201.0, "people_rise", "at most 200 expected"),
        ("items", 20.0, "items_fall", "20, at least 25 expected"),
        ("items", 101.0, "items_rise", "at most 100 expected"),
        ("size.bytes", 1999.0, "size_fall", "at least 2000 expected"),
        ("size.bytes", 8001.0, "size_rise", "at most 8000 expected"),
        ("size.bytes_per_person", 19.0, "person_size_fall", "at least 20 expected"),
        ("size.bytes_per_person", 81.0, "person_size_rise", "at most 80 expected"),
        ("epsilon_spent", 11.0, "most_epsilon", "11, at most 10 expected, missed by 1 (10.0 %)"),
        ("log.empty_days", 1.0, "most_empty_days", "1, at most 0 expected"),
        ("log.thin_days", 1.0, "most_thin_days", "1, at most 0 expected"),
        ("log.days_back", 0.5, "most_days_back", "0.5, at most 0 expected"),
    ],
)
def test_a_figure_past_its_bound_is_named_with_bound_miss_yesterday_and_setting(figure, value, setting, words):
    (line,) = said(NIGHT | {figure: value})
    assert line.startswith(f"{figure}: ") and words in line and f"gates.{setting}=" in line
    assert said(NIGHT | {figure: value}, **{setting: False if setting == "beat_popularity" else None}) == []


@pytest.mark.parametrize(
    ("setting", "value", "figure"),
    [
        ("least_recall", 0.31, "served.all.recall@20"),
        ("least_ndcg", 0.21, "served.all.ndcg@10"),
        ("least_coverage", 0.61, "served.coverage"),
        ("most_miscalibration", 0.79, "served.miscalibration"),
        ("most_withheld", 0.19, "withheld_share"),
        ("least_items", 51, "items"),
        ("most_bytes", 3999, "size.bytes"),
        ("most_epsilon", 0.9, "epsilon_spent"),
        ("most_log_age_days", 0.4, "log.age_days"),
    ],
)
def test_a_bound_of_the_figure_itself_holds_on_the_first_night_too(setting, value, figure):
    for yesterday in (None, NIGHT):
        (line,) = said(NIGHT, yesterday, **{setting: value})
        assert line.startswith(f"{figure}: ") and f"gates.{setting}={value:g}" in line


def test_every_gate_has_a_case_above():
    tried = {mark.args[1][place][index] for test, index in (
        (test_a_figure_past_its_bound_is_named_with_bound_miss_yesterday_and_setting, 2),
        (test_a_bound_of_the_figure_itself_holds_on_the_first_night_too, 0),
    ) for mark in test.pytestmark if mark.name == "parametrize" for place in range(len(mark.args[1]))}  # fmt: skip
    assert tried == {gate.setting for gate in GATES}
    rest = {"day_fall", "noise", "least_people", "probes", "canaries"}
    assert {each.name for each in fields(GateSettings)} == tried | rest


def test_the_first_night_has_nothing_to_fall_below():
    first = judge(NIGHT, None, GateSettings())
    assert broken(first) == []
    assert {each.why for each in first if each.outcome is Outcome.SKIPPED} == {"nothing serves yet"}


def test_a_figure_that_was_lost_since_yesterday_is_broken_unless_its_gates_are_off():
    for lost in (None, math.nan, math.inf):
        today = {name: value for name, value in NIGHT.items() if name != "served.coverage"}
        today |= {} if lost is None else {"served.coverage": lost}
        (line,) = said(today)
        assert line == "served.coverage: could not be measured; yesterday 0.6 (gates.coverage_fall)"
        assert said(today, coverage_fall=None) == []


def test_where_nobody_is_asked_what_only_lists_can_tell_is_no_loss():
    figures = ("lane_share.usual", "lane_share.two_tower", "withheld_share")
    today = {name: value for name, value in NIGHT.items() if name not in figures} | {"sampled": 0.0}
    verdicts = judge(today, NIGHT, GateSettings(most_withheld=0.9))
    assert not broken(verdicts)
    assert {each.figure for each in verdicts if each.why == "no list was asked for"} == set(figures)


def test_a_lane_that_only_yesterday_knew_is_a_figure_that_was_lost():
    assert (
        "lane_share.usual: could not be measured"
        in said({k: v for k, v in NIGHT.items() if k != "lane_share.usual"})[0]
    )


def test_a_demand_on_a_figure_that_is_not_there_is_broken_on_the_first_night_too():
    assert said({"items": 3.0, "epsilon_spent": 0.0}, None) == []  # nobody was evaluated, and nothing was demanded
    (line,) = said({"items": 3.0, "epsilon_spent": 0.0}, None, least_recall=0.1)
    assert "served.all.recall@20: could not be measured" in line


def test_lists_that_lose_to_popularity_pass_only_where_that_may_be_chance():
    behind = NIGHT | {"ahead.all.recall@20": -0.01, "ahead.all.recall@20.se": 0.004}
    assert (
        "at least -0.008 expected" in said(behind, None)[0] and "a margin of 0.008 for noise" in said(behind, None)[0]
    )
    assert said(behind | {"ahead.all.recall@20.se": 0.006}, None) == []
    assert said(NIGHT | {"ahead.all.recall@20": math.nan}, None) != []


def test_a_bound_gives_way_by_the_error_of_both_nights():
    fell = NIGHT | {"served.all.recall@20": 0.2, "served.all.recall@20.se": 0.004}
    before = NIGHT | {"served.all.recall@20.se": 0.005}
    margin = 2 * math.hypot(0.004, 0.7 * 0.005)  # yesterday's counts by what of it the bound is
    found = verdict("quality_fall", "served.all.recall@20", fell, before, GateSettings())
    assert found.bound == f">= {0.21 - margin:.4g}" and found.outcome is Outcome.PASSED
    assert said(fell, before, noise=1.0) != []


def test_figures_of_few_people_are_not_held_against_each_other():
    for today, before, when in ((29.0, 500.0, "today"), (500.0, 29.0, "yesterday")):
        worse = NIGHT | {"served.all.recall@20": 0.01, "served.all.people": today}
        found = verdict(
            "quality_fall", "served.all.recall@20", worse, NIGHT | {"served.all.people": before}, GateSettings()
        )
        assert found.outcome is Outcome.SKIPPED and when in found.why and "gates.least_people" in found.why
    # That so few were left is a gate of its own.
    assert any("served.all.people: 29" in line for line in said(NIGHT | {"served.all.people": 29.0}))


def test_what_was_measured_in_another_way_is_not_compared_and_says_so():
    worse = NIGHT | {"served.all.recall@20": 0.01, "lane_share.usual": 0.9, "served.all.people": 3.0, "people": 10.0}
    lines = said(worse, comparable=False)
    assert len(lines) == 1 and lines[0].startswith("people: ")  # a count is a count
    found = verdict("quality_fall", "served.all.recall@20", worse, NIGHT, GateSettings(), comparable=False)
    assert (found.outcome, found.why) == (Outcome.SKIPPED, "yesterday's was measured in another way")


def test_what_yesterday_lacks_or_has_as_nothing_does_not_block_for_ever():
    for before in ({"served.coverage": math.nan}, {"people": 0.0}):
        assert said(NIGHT, NIGHT | before) == []
    assert said(NIGHT, {}) == []


def test_exactly_at_the_bound_passes():
    assert said(NIGHT | {"people": 50.0}) == said(NIGHT | {"people": 200.0}) == []


def test_every_broken_gate_is_told_and_a_detail_stands_beside_it():
    today = NIGHT | {"people": 10.0, "log.empty_days": 2.0}
    lines = broken(judge(today, NIGHT, GateSettings(), details={"log.empty_days": "the 4th; the 5th", "items": "no"}))
    assert len(lines) == 2 and lines[1].endswith("(the 4th; the 5th)") and "(no)" not in lines[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quality_fall": 1.1}, "gates.quality_fall is 1.1"),
        ({"lane_change": -0.1}, "gates.lane_change is -0.1"),
        ({"people_rise": math.nan}, "gates.people_rise is nan"),
        ({"most_epsilon": math.inf}, "gates.most_epsilon is inf"),
        ({"day_fall": 2.0}, "gates.day_fall is 2"),
        ({"noise": -1.0}, "gates.noise is -1"),
        ({"least_people": -1}, "gates.least_people"),
        ({"canaries": {"ana": {"user": "", "least_items": 1}}}, "gates.canaries.ana.user is empty"),
    ],
)
def test_a_bound_that_cannot_be_meant_is_refused_before_any_work(settings, named):
    with pytest.raises(SettingsError, match=named) as caught:
        GateSettings(**settings)
    assert caught.value.remedy


def test_probes_refuse_negative_numbers():
    with pytest.raises(SettingsError, match=r"gates\.probes\.people is -1"):
        Probes(people=-1)


# --- any figures at all -----------------------------------------------------------------------------------------------

numbers = st.floats(0, 1e6)
anything = st.one_of(st.none(), st.floats())
ROW = st.sampled_from([gate for gate in GATES if not gate.figure.endswith("*") and gate.setting != "beat_popularity"])


def outcome(gate: Gate, now: float, then: float, value: float) -> Outcome:
    """By the definition, without noise, of two nights that compare."""
    low = {Bound.LEAST: value, Bound.FALL: then * (1 - value), Bound.CHANGE: then - value}.get(gate.kind, -math.inf)
    high = {Bound.MOST: value, Bound.RISE: then * (1 + value), Bound.CHANGE: then + value}.get(gate.kind, math.inf)
    if then == 0 and gate.kind in (Bound.FALL, Bound.RISE):
        return Outcome.SKIPPED
    return Outcome.PASSED if low <= now <= high else Outcome.BROKEN


@given(ROW, numbers, numbers, st.floats(0, 1))
def test_each_gate_says_what_its_definition_says(gate, now, then, value):
    people = {gate.behind: 1e3} if gate.behind else {}
    value = float(int(value)) if gate.setting in ("least_items", "most_empty_days", "most_thin_days") else value
    settings = GateSettings(**{gate.setting: value})
    found = verdict(gate.setting, gate.figure, people | {gate.figure: now}, people | {gate.figure: then}, settings)
    assert found.outcome is outcome(gate, now, then, value)
    assert bool(found.why) == (found.outcome is not Outcome.PASSED)


@given(
    st.dictionaries(st.sampled_from([*NIGHT, "lane_share.odd", "x"]), anything.filter(lambda each: each is not None)),
    st.one_of(st.none(), st.dictionaries(st.sampled_from([*NIGHT, "lane_share.odd"]), st.floats())),
    st.booleans(),
)
def test_no_figures_make_gates_fail_and_what_is_lost_never_passes(today, yesterday, comparable):
    for each in judge(today, yesterday, GateSettings(), comparable):
        if each.outcome is Outcome.PASSED:
            assert each.today is not None and math.isfinite(each.today)
        if each.outcome is Outcome.BROKEN:
            assert each.figure in each.why and f"gates.{each.gate}" in each.why


@given(ROW, numbers, numbers, st.floats(0, 100), st.floats(0, 3))
def test_noise_never_breaks_what_passed_without_it(gate, now, then, error, noise):
    people = {gate.behind: 1e3} if gate.behind else {}
    today, before = people | {gate.figure: now, gate.figure + ".se": error}, people | {gate.figure: then}
    value = 1.0 if gate.kind in (Bound.LEAST, Bound.MOST) else 0.5
    without, with_noise = (
        verdict(gate.setting, gate.figure, today, before, GateSettings(**{gate.setting: value}, noise=each)).outcome
        for each in (0.0, noise)
    )
    assert with_noise is without or (without, with_noise) == (Outcome.BROKEN, Outcome.PASSED)
