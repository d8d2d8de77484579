"""The snapshot's benchmark says what it promises, and its peers answer with what they were given.

python -m pytest -m benchmark -s tests/benchmarks/test_snapshot.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import snapshot
from tests.benchmarks.snapshot_peers import PEERS

pytestmark = pytest.mark.benchmark


def test_every_figure_that_is_promised_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot.main(
        ["--users=4000", "--peer-users=2000", "--candidates=50", "--rounds=1", f"--folder={tmp_path}", "--json"]
    )
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = ("lookup_us", "candidates_us", "record_us", "open_ms", "bytes_per_user")
    assert not [name for name in figures if not told[name] > 0]
    assert told["lookup_us"] < told["candidates_us"] < told["record_us"]
    assert set(told["peers"]) == set(PEERS) and all(each["lookup_us"] > 0 for each in told["peers"].values())
