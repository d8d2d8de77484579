"""A real ledger in a file, and short ways to write and read it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from engine.consent import KEYED_GRANTS, Change, Ledger, Recorded, Vocabulary

Record = Callable[..., Recorded]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(sources=("web", "app", "store"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/consent.db"


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
