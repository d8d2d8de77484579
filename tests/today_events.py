"""Short ways to write events of today, and a clock that a test moves."""

from __future__ import annotations

import hashlib
from typing import Any

from engine.live.events import LiveEvent
from engine.live.today import Today
from engine.schema import EVENTS

MINUTE = 60_000_000
NOON = 1_790_000_000_000_000  # microseconds since the epoch


class Clock:
    """Microseconds since the epoch, until it is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


def key_of(person: str) -> bytes:
    """A pseudonymous key; '' has none."""
    return hashlib.sha256(person.encode()).digest()[:16] if person else b""


def did(person: str, event_id: str, item: str = "tea", event: str = "view", at: int = NOON, **more: Any) -> LiveEvent:
    """What somebody did: `at` is when, and when it was received unless that is said."""
    told = {
        "event_id": event_id,
        "user_id": person,
        "item_id": item,
        "event": EVENTS.index(event),
        "ts": at,
        "received": at,
        "source": "web",
        "value": None,
        "session_id": "",
        "recommendation_id": "",
        "position": 0,
        "flags": (),
        "category": "",
        "key": key_of(person),
    }
    return LiveEvent(**(told | more))


def rows(today: Today) -> list[tuple[object, ...]]:
    """Its rows, one tuple each, in its order; a missing value is None."""
    values = [None if value != value else value for value in today.values.tolist()]
    numbers = (today.events, today.ts, today.received, today.counts)
    columns = (today.items, *(column.tolist() for column in numbers), today.sources, values, today.gifts.tolist())
    return list(zip(*columns, today.categories, strict=True))
