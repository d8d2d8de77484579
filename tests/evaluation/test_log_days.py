"""Days that came empty or thin are found once, rhythms of the week are no fault, and a day that has just begun is left alone."""

from __future__ import annotations

import datetime as dt

import pytest

from engine.evaluation.log_days import OddDays, odd_days

START = dt.date(2026, 1, 1)  # a Thursday


def log(*rows: int, start: dt.date = START) -> dict[str, int]:
    """Sound rows of one day after the other; a day without any is not in the log."""
    return {(start + dt.timedelta(days=day)).isoformat(): count for day, count in enumerate(rows) if count}


def at(day: int, hour: int = 23, minute: int = 59) -> dt.datetime:
    return dt.datetime.combine(START + dt.timedelta(days=day), dt.time(hour, minute), dt.UTC)


def test_an_even_log_is_not_odd():
    assert odd_days(log(*[1000] * 10), at(7), at(9), 0.5) == OddDays()


def test_an_empty_day_is_found_whether_the_log_goes_on_after_it_or_was_delivered_without_an_event():
    assert odd_days(log(1000, 0, 1000), at(0), at(2), 0.5).empty == ("2026-01-02 is empty",)
    delivered = [START + dt.timedelta(days=day) for day in range(3)]
    assert odd_days(log(1000, 1000), at(1), at(1), 0.5, delivered=delivered).empty == ("2026-01-03 is empty",)
    assert odd_days(log(1000, 1000), at(1), at(1), 0.5) == OddDays()  # the same log again is no new day


def test_a_day_of_less_than_half_is_thin_and_one_of_half_is_not():
    assert odd_days(log(10_000, 4_800), at(0), at(1), 0.5).thin == ("2026-01-02 has 4800 rows where 9993 are usual",)
    assert odd_days(log(10_000, 5_000), at(0), at(1), 0.5) == OddDays()
    assert odd_days(log(10_000, 4_800), at(0), at(1), 0.6) == OddDays()


def test_a_few_rows_less_than_half_of_few_may_be_chance():
    assert odd_days(log(100, 40), at(0), at(1), 0.5) == OddDays()
    assert odd_days(log(100, 40), at(0), at(1), 0.5, noise=0.0).thin
    assert odd_days(log(100, 30), at(0), at(1), 0.5).thin


def test_a_shop_that_closes_on_one_day_of_the_week_is_not_blocked_each_week():
    week = [1000, 1000, 0, 800, 1000, 1000, 1000]
    for today in range(7, 21):
        assert odd_days(log(*week * 3), at(today - 1), at(today), 0.5) == OddDays(), today
    # In the first week nothing is known of its weeks yet, and after it an open day that stays empty is found.
    assert odd_days(log(*week), at(1), at(6), 0.5).empty == ("2026-01-03 is empty",)
    lost = [*week, *week]
    lost[10] = 0  # a Sunday, after the Saturday that always is empty
    assert odd_days(log(*lost), at(9), at(13), 0.5).empty == ("2026-01-11 is empty",)


def test_a_quiet_day_of_the_week_is_held_against_the_same_of_the_week_before():
    week = [1000, 1000, 300, 280, 1000, 1000, 1000]
    assert odd_days(log(*week, *week), at(6), at(13), 0.5) == OddDays()
    assert odd_days(log(*week, 1000, 1000, 100), at(8), at(9), 0.5).thin


def test_a_day_that_has_just_begun_waits_for_the_next_night():
    begun = log(1000, 1000, 20)
    assert odd_days(begun, at(1), at(2, 4), 0.5) == OddDays()
    # The next night looks at it, though it had begun when the last one looked.
    assert odd_days(log(1000, 1000, 20, 1000), at(2, 4), at(3), 0.5).thin[0].startswith("2026-01-03 has 20 rows")
    # And one that was judged is not judged twice.
    assert odd_days(log(1000, 1000, 20, 1000), at(2), at(3), 0.5) == OddDays()


def test_a_day_that_is_half_over_is_held_against_that_part():
    assert odd_days(log(1000, 400), at(0), at(1, 12), 0.5) == OddDays()
    assert odd_days(log(1000, 100), at(0), at(1, 12), 0.5).thin


def test_weeks_without_a_publish_are_looked_through_day_by_day():
    rows = [1000] * 30
    rows[12] = rows[25] = 0
    assert len(odd_days(log(*rows), at(2), at(29), 0.5).empty) == 2


@pytest.mark.parametrize("since", [at(40), at(9)])
def test_a_log_that_does_not_go_beyond_what_serves_has_no_new_day(since):
    assert odd_days(log(*[1000] * 9, 1), since, at(9), 0.5) == OddDays()


def test_an_empty_log_has_no_days():
    assert odd_days({}, at(0), at(1), 0.5) == OddDays()
