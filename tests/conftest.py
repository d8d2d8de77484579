"""What several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nights import Ran, SmallShop, open_small_shop
from tests.postgres_server import PostgresServer, fresh_server


@pytest.fixture(scope="session")
def small_shop(tmp_path_factory: pytest.TempPathFactory) -> SmallShop:
    return open_small_shop(tmp_path_factory.mktemp("shop") / "out")


@pytest.fixture(scope="session")
def first_night(small_shop: SmallShop) -> Ran:
    ran = small_shop.nightly()
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests, started by the first that asks; whoever stops one starts their own."""
    with fresh_server() as server:
        yield server
