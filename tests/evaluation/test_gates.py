"""Gates say which figure fell, below which bound, and are silent about what cannot be compared."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from engine.evaluation.gates import GateSettings, broken_gates, gone_back

GOOD = {"people": 100.0, "items": 50.0, "served.all.recall@20": 0.3, "served.all.ndcg@10": 0.2, "served.coverage": 0.6}


def test_the_first_night_has_nothing_to_fall_below():
    assert broken_gates(GOOD, None, GateSettings()) == []


@pytest.mark.parametrize(
    ("figure", "value", "words"),
    [
        ("people", 49.0, "people: 49 is below 50, which is yesterday's 100"),
        ("items", 20.0, "items: 20 is below 25"),
        ("served.all.recall@20", 0.2, "served.all.recall@20: 0.2 is below 0.21"),
        ("served.all.ndcg@10", 0.1, "served.all.ndcg@10: 0.1 is below 0.14"),
        ("served.coverage", 0.2, "served.coverage: 0.2 is below 0.3"),
    ],
)
def test_a_fall_past_its_bound_is_named_with_the_bound(figure, value, words):
    (broken,) = broken_gates(GOOD | {figure: value}, GOOD, GateSettings())
    assert words in broken


def test_exactly_at_the_bound_passes():
    assert broken_gates(GOOD | {"people": 50.0}, GOOD, GateSettings()) == []


def test_an_empty_shop_is_never_published():
    assert "items: 0, at least 1 expected" in broken_gates({"people": 3.0}, None, GateSettings())


def test_a_list_that_loses_to_popularity_is_refused_unless_the_gate_is_off():
    worse = GOOD | {"popularity.all.recall@20": 0.31}
    assert "popularity" in broken_gates(worse, None, GateSettings())[0]
    assert broken_gates(worse, None, GateSettings(beat_popularity=False)) == []


def test_a_figure_that_could_not_be_measured_is_not_compared():
    today = {name: value for name, value in GOOD.items() if not name.startswith("served")}
    assert broken_gates(today, GOOD, GateSettings()) == []


def test_a_figure_that_is_not_a_number_passes_no_gate():
    (broken,) = broken_gates(GOOD | {"served.all.recall@20": float("nan")}, GOOD, GateSettings())
    assert "served.all.recall@20: nan is below 0.21" in broken
    against = GOOD | {"served.all.recall@20": float("nan"), "popularity.all.recall@20": 0.1}
    assert "popularity" in broken_gates(against, None, GateSettings())[0]


def test_a_bad_figure_of_yesterday_does_not_block_for_ever():
    assert broken_gates(GOOD, GOOD | {"served.coverage": float("nan")}, GateSettings()) == []


def test_a_log_that_ends_before_the_one_that_serves_is_refused():
    first, second = datetime(2026, 1, 20, tzinfo=UTC), datetime(2026, 1, 21, tzinfo=UTC)
    assert gone_back(second, first) == gone_back(first, first) == gone_back(first, None) == []
    (broken,) = gone_back(first, second)
    assert "2026-01-20" in broken and "2026-01-21" in broken
