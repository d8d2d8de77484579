"""Odd shops, refused settings, and folders that are left alone."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.activity.simulator import ShopSettings, live, simulate
from engine.errors import SettingsError

SMALL = ShopSettings(users=150, items=80, days=9)


@pytest.mark.parametrize(
    "settings",
    [
        ShopSettings(users=1, items=32, days=1),
        ShopSettings(users=3, items=33, days=2, page=1, sources=("web",), source_shares=(1.0,)),
        ShopSettings(users=7, items=40, days=3, sessions_per_day=0, repeat_share=0, gift_burst_share=0),
        ShopSettings(users=5, items=40, days=3, newcomer_share=0.6),
        ShopSettings(users=30, items=60, days=6, minor_share=1, wavering_share=1, clickbait_share=1, ended_share=1),
        ShopSettings(
            users=30, items=40, days=6, wavering_share=1, sources=("web",), source_shares=(1.0,), churn=1, seasons=2
        ),
        ShopSettings(users=40, items=40, days=4, late_share=1, sensitive_share=1, limited_share=1, anonymous_share=1),
    ],
)
def test_odd_shops_are_whole(settings: ShopSettings, tmp_path: Path) -> None:
    report = simulate(settings, tmp_path / "shop")
    files = sorted((tmp_path / "shop").glob("log/*/*.parquet"))
    assert len(files) == settings.days
    assert sum(pq.read_metadata(path).num_rows for path in files) == report.total


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"users": 0}, "users"),
        ({"users": 2.5}, "users"),
        ({"seed": -1}, "seed"),
        ({"days": True}, "days"),
        ({"items": 31}, "items"),
        ({"anonymous_share": 1.1}, "anonymous_share"),
        ({"drift": float("nan")}, "drift"),
        ({"drift": "much"}, "drift"),
        ({"start": "2026-01-01"}, "start"),
        ({"start": dt.datetime(2026, 1, 1)}, "start"),
        ({"sources": ()}, "sources"),
        ({"sources": ("web", "web"), "source_shares": (0.5, 0.5)}, "sources"),
        ({"sources": ("web", "app")}, "source_shares"),
        ({"source_shares": (1.0, 0.0, 1.0, 1.0)}, "source_shares"),
        ({"seasons": 2.5}, "seasons"),
        ({"churn": -0.1}, "churn"),
        ({"newcomer_days": 0}, "newcomer_days"),
        ({"newcomer_share": 0.5, "no_consent_share": 0.5}, "newcomer_share"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_with_a_remedy(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ShopSettings(**wrong)  # type: ignore[arg-type]
    assert named in caught.value.message
    assert caught.value.remedy


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        simulate(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_fails_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(live, "users_table", fail)  # the last file but one
    with pytest.raises(OSError, match="disk full"):
        simulate(SMALL, tmp_path / "shop")
    assert not list(tmp_path.iterdir())
