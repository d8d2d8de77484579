"""A real ledger, in a file and on a server, and short ways to write and read it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from engine.consent import KEYED_GRANTS, Change, Ledger, Recorded, Vocabulary
from tests.postgres_server import PostgresServer

Record = Callable[..., Recorded]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(sources=("web", "app", "store"))


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> str:
    """Where ledgers live. A test of one alone says so: parametrize("store", ["sqlite"], indirect=True)."""
    return str(request.param)


@pytest.fixture(scope="session")
def new_url(store: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """new_url() is the address of a ledger that does not exist yet."""
    if store == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda: server.url(server.schema())
    folder, number = tmp_path_factory.mktemp("ledgers"), count()
    return lambda: f"sqlite:///{folder}/{next(number)}.db"


@pytest.fixture
def url(store: str, new_url: Callable[[], str], tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/consent.db" if store == "sqlite" else new_url()


@pytest.fixture
def sql(url: str) -> Callable[..., list[Any]]:
    """sql("UPDATE ... WHERE number = :n", n=1), as somebody who may write to the database beside the ledger."""

    def run(*statements: str, **values: Any) -> list[Any]:
        address = make_url(url)
        if address.get_backend_name() == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        rows: list[Any] = []
        with ExitStack() as stack:
            engine = create_engine(address, poolclass=NullPool)
            stack.callback(engine.dispose)
            connection = stack.enter_context(engine.begin())
            for statement in statements:
                result = connection.execute(text(statement), values)
                rows = list(result) if result.returns_rows else []
        return rows

    return run


@pytest.fixture
def ledger(url: str, vocabulary: Vocabulary) -> Iterator[Ledger]:
    opened = Ledger.open(url, vocabulary)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def key() -> Callable[[int], bytes]:
    return lambda number: hashlib.sha256(str(number).encode()).digest()[:16]


@pytest.fixture
def record(ledger: Ledger) -> Record:
    """record(key, "+profile/web", "-train/", preference=2, request_id="r1")"""

    def write(person: bytes, *said: str, preference: int | None = None, request_id: str = "") -> Recorded:
        split = ((text[0] == "+", text[1:].split("/")) for text in said)
        changes = [Change(purpose, source, granted) for granted, (purpose, source) in split]
        return ledger.record(person, changes, preference, "notice-1", "person", request_id, None)

    return write


@pytest.fixture(scope="session")
def grants() -> Callable[..., pa.Table]:
    """grants((key, "+profile/web", seconds or None), ...) as a table to import."""

    def build(*rows: tuple[bytes, str, float | None], notice_version: str = "notice-0") -> pa.Table:
        return pa.Table.from_pylist([_row(*row, notice_version) for row in rows], schema=KEYED_GRANTS)

    return build


def _row(person: bytes, said: str, seconds: float | None, notice_version: str) -> dict[str, object]:
    purpose, source = said[1:].split("/")
    return {
        "user_key": person,
        "purpose": purpose,
        "source": source,
        "granted": said[0] == "+",
        "notice_version": notice_version,
        "actor": "operator",
        "occurred_at": None if seconds is None else datetime.fromtimestamp(seconds, UTC),
    }


@pytest.fixture(scope="session")
def names() -> Callable[[Sequence[Change]], set[str]]:
    return lambda held: {f"{change.purpose}/{change.source}" for change in held}
