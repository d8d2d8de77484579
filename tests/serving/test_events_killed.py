"""What was acknowledged survives kill -9, and counts once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.events_killed import trial

FAULTS = ("lost", "twice_today", "missing_today", "missing_in_log", "twice_in_log")


def clean(found: dict[str, int]) -> bool:
    return found["acknowledged"] > 0 and not any(found[fault] for fault in FAULTS)


def test_five_kills_at_full_load_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    assert clean(found := trial(5, seed=3, out=tmp_path / "out")), found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_kills_at_full_load(tmp_path: Path) -> None:
    assert clean(found := trial(100, seed=1, out=tmp_path / "out")), found
