"""A shop for each test, and one that is served to those that change nothing but people's consent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bodega.client import Client

from engine.serving.server import Server
from tests.serving.shop import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "out")


@pytest.fixture
def served(shop: Shop) -> Iterator[tuple[Server, Client]]:
    shop.publish()
    with shop.served() as pair:
        yield pair


@pytest.fixture
def client(served: tuple[Server, Client]) -> Client:
    return served[1]


@pytest.fixture
def server(served: tuple[Server, Client]) -> Server:
    return served[0]
