"""A few rounds of tests/chaos_publish.py, so that it stays runnable; its own command runs as many as are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("rounds", "store"), [(8, "folder"), pytest.param(40, "s3", marks=pytest.mark.slow)])
def test_whatever_happens_to_a_publisher_nothing_is_half_read_or_lost(rounds: int, store: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos_publish", f"--rounds={rounds}", f"--store={store}", "--seed=3", "--json"],
        capture_output=True, text=True, timeout=280, cwd=ROOT, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and told["half_read"] == told["lost"] == 0, told["faults"]
    assert told["seen"]["ended -9"] >= 1 and told["seen"]["reads"] >= rounds
