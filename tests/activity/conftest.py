"""A shop with an empty log for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.activity.logs import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)
