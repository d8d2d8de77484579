"""Today: the journal that makes events durable, the state that lists look at, and the way into the next night's log."""

from engine.live.embedded import EmbeddedToday
from engine.live.events import LiveEvent
from engine.live.journal import Journal
from engine.live.redis import RedisToday
from engine.live.served import ServedList, ServedLog
from engine.live.shipping import ship
from engine.live.today import Today, TodayStore

__all__ = [
    "EmbeddedToday",
    "Journal",
    "LiveEvent",
    "RedisToday",
    "ServedList",
    "ServedLog",
    "Today",
    "TodayStore",
    "ship",
]
