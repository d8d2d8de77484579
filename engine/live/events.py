"""One event as a replica takes it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """What somebody did with an item.

    Args:
        event_id: names it within its person; the same one again is the same event.
        user_id: raw; '' for somebody anonymous, or once it is no longer kept.
        item_id: '' where a category alone is meant.
        event: code of schema.EVENTS.
        ts: when it happened, microseconds since the epoch. received: by the server's clock.
        source: where. value: a price or quantity. position: in the list `recommendation_id`, 1-based; 0: from none.
        category: what dismiss_category names; '': the item's own.
        key: 16 bytes under which today's state files the person; b'' for nobody.
    """

    event_id: str
    user_id: str = field(repr=False)
    item_id: str
    event: int
    ts: int
    received: int
    source: str
    value: float | None
    session_id: str
    recommendation_id: str
    position: int
    flags: tuple[str, ...]
    category: str
    key: bytes
