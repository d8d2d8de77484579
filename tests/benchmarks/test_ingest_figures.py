"""Ingest and its peers come to the same rows, and the benchmark says what it promises.

python -m pytest -m benchmark -s tests/benchmarks/test_ingest_figures.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.schema import ACTIVITY, POPULARITY
from tests.benchmarks import ingest
from tests.benchmarks.harness import measured
from tests.benchmarks.ingest_log import LogSettings, add_the_last_day, all_but_the_last_day, open_log
from tests.benchmarks.ingest_result import result_of

EVENTS = 300_000

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch, (folder / "told.json").open("w+") as told:
        patch.setattr("sys.stdout", told)
        code = ingest.main([f"--events={EVENTS}", f"--folder={folder}", "--rounds=1", "--double", "--json"])
        told.seek(0)
        text = told.read()
    assert code == 0, text
    return dict(json.loads(text.splitlines()[-1]))


def test_ours_and_every_peer_keep_the_same_rows(found: dict[str, Any]) -> None:
    assert found["same_result"]
    assert 0.05 < found["kept"] / found["rows"] < 0.5
    assert abs(found["rows"] / EVENTS - 1) < 0.05


def test_each_step_has_something_to_do(found: dict[str, Any]) -> None:
    reasons = ("-duplicate", "-past_retention", "-no_grant", "-anonymous", "unknown_event", "unknown_item")
    assert not [reason for reason in reasons if not found["counts"].get(reason)], found["counts"]


def test_every_figure_that_is_promised_is_told(found: dict[str, Any]) -> None:
    ratios = {f"ratio_to_{name}" for name in ingest.PEERS}
    figures = {*ratios, *ingest.TARGETS, "ray_start_s", "open_s"}
    assert not [name for name in figures if not found[name] > 0]
    assert "ray_overhead_s" in found  # may be negative where nothing but noise is measured
    assert {"driver", "workers", "ray"} == set(found["peak_by_role"])
    assert {*ingest.FLOORS, *ingest.PEERS, "ray", "pool", "increment"} == set(found["seconds"])


def test_a_log_is_made_once(folder: Path, found: dict[str, Any]) -> None:
    settings = LogSettings(EVENTS)
    about = folder / f"log-{settings.events}-{settings.seed}" / "about.json"
    made = about.stat().st_mtime_ns
    assert open_log(settings, folder).rows == found["rows"]
    assert about.stat().st_mtime_ns == made


def test_the_day_before_differs_from_the_log_by_a_day(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    log = open_log(LogSettings(EVENTS), folder)
    shop = all_but_the_last_day(log, tmp_path / "shop")
    assert len(_names(log.folder) - _names(shop)) == 1
    add_the_last_day(log, shop)
    assert _names(shop) == _names(log.folder)


def _names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in (root / "log").rglob("*.parquet")}


def test_another_row_is_another_result(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    log = open_log(LogSettings(EVENTS), folder)
    measured("tests.benchmarks.ingest_peers", "polars", log.folder, tmp_path / "one")
    one = result_of(tmp_path / "one")
    assert one.rows == found["kept"]
    rows = pa.ipc.open_file(tmp_path / "one" / "activity.arrow").read_all()
    other = rows.set_column(1, "item", pa.concat_arrays([pa.array([-2], pa.int32()), *rows["item"].slice(1).chunks]))
    (tmp_path / "two").mkdir()
    for moment in ("full", "holdout"):
        os.link(tmp_path / "one" / f"popularity-{moment}.arrow", tmp_path / "two" / f"popularity-{moment}.arrow")
    pq.write_table(other, tmp_path / "two" / "activity.parquet")
    assert "activity" in result_of(tmp_path / "two").unlike(one)


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    keys = [bytes([number]) * 16 for number in (2, 1)]
    columns = [keys, [0, 0], [0, 0], [0, 0], [1.0, 1.0], [0, 0], [True, True], [True, True]]
    pq.write_table(pa.table(columns, schema=ACTIVITY), tmp_path / "activity.parquet")
    for moment in ("full", "holdout"):
        pq.write_table(POPULARITY.empty_table(), tmp_path / f"popularity-{moment}.parquet")
    with pytest.raises(ValueError, match="not sorted"):
        result_of(tmp_path)


def test_a_disagreement_fails_the_run(folder: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest.Bench, "check", _disagree)
    assert ingest.main([f"--events={EVENTS}", f"--folder={folder}", "--rounds=1", "--peers=polars"]) == 1


def _disagree(self: ingest.Bench, name: str, folder: Path) -> None:
    raise ingest.Disagreement(f"{name} differs")


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ingest_peers nobody .* ended with 1(.|\n)*No module named"):
        measured("tests.benchmarks.ingest_peers", "nobody", tmp_path, tmp_path / "out")
