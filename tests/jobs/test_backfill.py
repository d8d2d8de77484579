"""Days of the past are ingested by one command, as of their own ends, over a log that is read once."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SettingsError
from jobs.backfill import days
from tests.nights import SmallShop, command

BUCKETS = ("cluster.cpus=2", "buckets=2")


def facts(shop: SmallShop, run: str) -> dict[str, Any]:
    content = json.loads((shop.out / "runs" / run / "ingest" / "_stage.json").read_text())
    found: dict[str, Any] = content["facts"]
    return found | {"sums": {path: about["sha256"] for path, about in content["files"].items()}}


def test_each_day_is_what_an_ingest_of_that_day_comes_to_and_the_log_is_read_once(
    small_shop: SmallShop, tmp_path: Path
) -> None:
    shop = SmallShop(tmp_path / "out")
    for name in ("shop", "keys"):
        shutil.copytree(small_shop.out / name, shop.out / name)
    shutil.copy(small_shop.out / "consent.db", shop.out)
    source = f"data.path={shop.out / 'shop'}"
    forgetting = "+data.retention_days.view=3"
    ran = command("jobs.ingest", f"out={shop.out}", source, "run=today", forgetting, *BUCKETS)
    assert ran.code == 0, ran.err
    asked = ("backfill.since=2026-01-20", "backfill.until=2026-01-22")
    ran = command("jobs.backfill", f"out={shop.out}", source, forgetting, *asked, *BUCKETS)
    assert ran.code == 0, ran.err
    found = [facts(shop, f"backfill-2026-01-{day}") for day in (20, 21, 22)]
    ends = [dt.datetime(2026, 1, day, tzinfo=dt.UTC).timestamp() * 1e6 + 86_400_000_000 - 1 for day in (20, 21, 22)]
    assert [each["as_of"] for each in found] == ends
    assert found[0]["events"] > 0 and found[0]["oldest"]["view"] >= "2026-01-17"
    # What today's night had to forget of those days is read once more, and for all of them at once.
    assert [each["partitions"]["read"] > 0 for each in found] == [True, False, False]
    alone = ("run=alone", "data.as_of=2026-01-21T23:59:59.999999", f"store.parts={tmp_path / 'other'}")
    ran = command("jobs.ingest", f"out={shop.out}", source, forgetting, *alone, *BUCKETS)
    assert ran.code == 0, ran.err
    assert facts(shop, "alone")["sums"] == found[1]["sums"]


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [("", "2026-01-01", "backfill.since is ''"), ("2026-01-02", "2026-01-01", "before"), ("x", "y", "2026-01-31")],
)
def test_days_that_cannot_be_meant_are_refused(since: str, until: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        days(since, until)


def test_both_ends_count() -> None:
    assert [str(day) for day in days("2025-12-31", "2026-01-01")] == ["2025-12-31", "2026-01-01"]
