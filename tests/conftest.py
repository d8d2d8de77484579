"""What several rooms' tests share."""

from __future__ import annotations

import pytest

from tests.nights import Ran, SmallShop, open_small_shop


@pytest.fixture(scope="session")
def small_shop(tmp_path_factory: pytest.TempPathFactory) -> SmallShop:
    return open_small_shop(tmp_path_factory.mktemp("shop") / "out")


@pytest.fixture(scope="session")
def first_night(small_shop: SmallShop) -> Ran:
    ran = small_shop.nightly()
    assert ran.code == 0, ran.err
    return ran
