"""What an ingest says of a log: how much of it is bad, how far it has come, and which days are odd."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.activity.report import Reading, added, check_share, summed, warnings
from engine.errors import DataError, QuarantineError
from tests.activity.logs import SOURCES, Shop, micros, row


def reading(rows: int = 100, **rest: object) -> Reading:
    return Reading(files=10, rows=rows, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "allowed", "refused"), [(0, 0.0, False), (1, 0.0, True), (5, 0.05, False), (6, 0.05, True)]
)
def test_the_night_stops_above_the_share_that_is_allowed_and_not_at_it(bad: int, allowed: float, refused: bool) -> None:
    counts = {"no_time": bad, "-not_offered": 94}
    if not refused:
        check_share(reading(), counts, allowed, 0.0)
        return
    with pytest.raises(QuarantineError, match=f"{bad} of 100 rows are bad .no_time {bad}.*share of {allowed}"):
        check_share(reading(), counts, allowed, 0.0)


@pytest.mark.parametrize(
    ("bad", "allowed", "refused"), [(0, 0.0, False), (1, 0.0, True), (1, 0.1, False), (2, 0.1, True)]
)
def test_files_that_cannot_be_read_are_allowed_up_to_a_share_too(bad: int, allowed: float, refused: bool) -> None:
    broken = {f"{at}.parquet": {"why": "bad_footer", "message": f"{at}.parquet is broken."} for at in range(bad)}
    if not refused:
        check_share(reading(refused=broken), {}, 0.0, allowed)
        return
    with pytest.raises(QuarantineError, match=rf"{bad} of 10 files cannot be used.*0\.parquet is broken"):
        check_share(reading(refused=broken), {}, 0.0, allowed)


def test_the_reasons_are_named_with_the_worst_first_and_what_was_probably_meant() -> None:
    counts = {"no_time": 1, "unknown_event": 7, "-duplicate": 3}
    with pytest.raises(QuarantineError, match=r"unknown_event 7, no_time 1\)") as caught:
        check_share(reading(20, near={"Buy": "buy", "Veiw": "view"}), counts, 0.1, 0.0)
    assert "Did you mean 'buy' by 'Buy'? Did you mean 'view' by 'Veiw'?" in caught.value.message
    assert "quarantine" in caught.value.remedy


def test_a_log_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        check_share(reading(0), {}, 1.0, 1.0)


def test_counts_are_added_by_reason() -> None:
    assert added([]) == {}
    assert added([{"a": 1}, {"b": 2, "a": 3}, {}]) == {"a": 4, "b": 2}


def test_parts_add_up_by_source_event_and_day_with_a_watermark_a_source(shop: Shop) -> None:
    files = [
        [row(day=1), row(day=1.5, event="purchase", source="store"), row(event="levitate")],
        [row(day=2, event="impression"), row(day=2.25), row(event="return", day=2, source="store")],
    ]
    whole = summed(shop.split(*files).abouts, 2, SOURCES)
    assert (whole.files, whole.rows, whole.counts["unknown_event"]) == (2, 6, 1)
    assert whole.by_source == {"web": 3, "store": 2}
    assert whole.by_event == {"view": 2, "purchase": 1, "impression": 1, "undo purchase": 1}
    assert whole.by_day == {"2026-01-02": 2, "2026-01-03": 3}
    assert whole.watermarks == {"web": micros(2.25), "store": micros(2)}
    assert whole.latest == micros(2.25)


def test_an_empty_day_and_one_of_less_than_half_are_warned_of() -> None:
    days = Counter({"2026-01-01": 100, "2026-01-02": 50, "2026-01-03": 24, "2026-01-05": 30})
    assert warnings(Reading(by_day=days)) == [
        "2026-01-03 has 24 rows, less than half of the 50 of the day before.",
        "2026-01-04 is empty.",
    ]
    assert warnings(Reading()) == []


def test_a_source_that_lags_is_warned_of() -> None:
    found = warnings(Reading(watermarks={"web": micros(9), "store": micros(7.5), "app": micros(8.5)}))
    assert found == ["'store' has arrived up to 1.5 days before the latest event alone."]
