"""What this replica takes of today: the journal that makes events durable, the state that lists look at, the way into the log.

RecordEvents -> known already? -> journal (fsynced) -> today's state -> acknowledged
                                     └─ sealed segments -> the log that the next night reads; of people who granted nothing,
                                                           without their ids
Lists in which something was drawn are logged beside it, with their chances, and never with a person.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import structlog

from engine.consent.changes import Held
from engine.consent.vocabulary import Vocabulary
from engine.errors import BodegaError, JournalUnavailable, LedgerUnavailable
from engine.identity import UserKeys
from engine.live import EmbeddedToday, Journal, LiveEvent, RedisToday, ServedList, ServedLog, Today, TodayStore, ship
from engine.serving.asking import Answer
from engine.serving.settings import ServeSettings

_log = structlog.get_logger("bodega.events")
_HOUR = 3_600_000_000
_RUN = 1000


class LiveRoom:
    """Shared by all threads of a process. Nothing is opened before the first look; until then no event is taken.

    Args:
        standing: what somebody allows, by stable key; raises LedgerUnavailable where that is not known.
    """

    def __init__(self, settings: ServeSettings, vocabulary: Vocabulary, standing: Callable[[bytes], Held]) -> None:
        self._settings, self._live = settings, settings.live
        self._standing = standing
        self._beyond = {source: _bits(vocabulary, source) for source in vocabulary.sources}
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._store: TodayStore | None = None
        self._keys: UserKeys | None = None
        self._served = ServedLog(self._live.served) if self._live.enabled and self._live.served else None
        self._shipped_at = self._logged_at = 0.0
        self._fault: Mapping[str, BodegaError] = {}

    @property
    def keys(self) -> UserKeys:
        """Of the deployment.

        Raises:
            JournalUnavailable: events cannot be taken now.
        """
        if self._keys is None:
            raise JournalUnavailable("Events are not taken yet.", "Try again in a moment.")
        return self._keys

    @property
    def ready(self) -> bool:
        """Whether events are taken."""
        return self._store is not None

    @property
    def journal(self) -> Journal | None:
        """For its figures; None before it is open."""
        return self._journal

    def record(self, events: Sequence[LiveEvent]) -> list[bool]:
        """Take events, each once; they survive this process, and count in the next list.

        Returns:
            False for each that was there already.

        Raises:
            JournalUnavailable: the disk does not take them: none of these counts.
        """
        journal, store = self._journal, self._store
        if journal is None or store is None:
            raise JournalUnavailable("Events are not taken yet.", "Try again in a moment.")
        there = store.known(events)
        twice: set[tuple[bytes, str]] = set()
        for place, event in enumerate(events):
            there[place] |= (event.key, event.event_id) in twice
            twice.add((event.key, event.event_id))
        new = [event for event, known in zip(events, there, strict=True) if not known]
        if new:
            journal.append(new)
            store.add(new)
        return [not known for known in there]

    def served(self, name: str, answer: Answer) -> None:
        """A list went out; it is logged if something in it was drawn."""
        log = self._served
        if log is None or not answer.propensity:
            return
        lines = answer.lines
        log.add(
            ServedList(
                recommendation_id=name,
                made_us=answer.made_us,
                surface=answer.policy.partition("@")[0],
                policy=answer.policy,
                snapshot_id=answer.manifest.snapshot_id,
                mode=answer.mode,
                seed=answer.seed,
                items=[line.item_id for line in lines],
                lanes=[line.lane for line in lines],
                scores=[line.score for line in lines],
                propensities=answer.propensity,
            )
        )

    def today(self, keys: Sequence[bytes]) -> Today | None:
        """What somebody did lately, under any of these keys; None where nothing is known."""
        store = self._store
        if store is None:
            return None
        found = store.of(keys)
        return found if len(found.items) else None

    def forget(self, keys: Sequence[bytes]) -> None:
        """Let go of what is remembered of somebody, under any of these keys; the journal drops it once its hours are over."""
        if self._store is not None:
            self._store.forget(keys)

    @property
    def unlogged(self) -> tuple[int, int]:
        """Served lists that wait for the log, and those that were lost while it could not be written."""
        return (0, 0) if self._served is None else (len(self._served), self._served.lost)

    def look(self) -> Mapping[str, BodegaError]:
        """Open what is not open, and ship what is due. Returns what ails, by stable code; never raises."""
        if not self._live.enabled:
            return {}
        with self._lock:
            try:
                if self._store is None:
                    self._open()
                self._tend()
                self._log_served()
            except LedgerUnavailable:
                return {}  # which is told already; what is not shipped waits
            except BodegaError as error:
                return {"events_unavailable" if self._store is None else "events_not_shipped": error}
        store = self._store
        if isinstance(store, RedisToday) and store.degraded:
            return {"today_alone": store.fault}
        return {}

    def close(self) -> None:
        """Let go; what is not shipped is shipped by whoever opens the folder next."""
        with self._lock:
            if self._served is not None:
                with suppress(JournalUnavailable):  # which was told at the looks before
                    self._served.write()
            if self._store is not None:
                self._store.close()
            if self._journal is not None:
                self._journal.close()
            self._store = self._journal = None

    def _open(self) -> None:
        keys = UserKeys.load(self._settings.keys)
        live = self._live
        journal = Journal.open(Path(live.folder), most_bytes=live.most_bytes, keep_hours=live.hours)
        bounds = (live.hours, live.people, live.events_each)
        shared = live.redis and RedisToday(live.redis, *bounds, deployment=keys.stable.key_id)
        store: TodayStore = shared or EmbeddedToday(*bounds)
        self._replay(journal, store)
        self._keys, self._journal, self._store = keys, journal, store

    def _replay(self, journal: Journal, store: TodayStore) -> None:
        """Make today's state again from what this process and the one before it took."""
        events = journal.replay(time.time_ns() // 1000 - int(self._live.hours * _HOUR))
        if isinstance(store, RedisToday):
            store.rebuild(events)
            return
        while run := list(islice(events, _RUN)):
            store.add(run)

    def _tend(self) -> None:
        journal, store = self._journal, self._store
        if journal is None or store is None:
            return
        now = time.time_ns() // 1000
        store.trim(now)
        if isinstance(store, RedisToday) and store.needs_rebuild():
            self._replay(journal, store)
        if time.monotonic() - self._shipped_at >= self._live.ship_seconds:
            self._shipped_at = time.monotonic()
            ship(journal, self._live.log, self._kept)
            journal.forget(now)

    def _log_served(self) -> None:
        if self._served is None or time.monotonic() - self._logged_at < self._live.ship_seconds:
            return
        self._logged_at = time.monotonic()
        self._served.write()
        self._served.forget(datetime.now(UTC).date() - timedelta(days=self._live.served_days))

    def _kept(self, events: Sequence[LiveEvent]) -> list[str | None]:
        """Under which id each event goes into the log: none where the person granted nothing for its source; None: not at all.

        Raises:
            LedgerUnavailable: it is not known; all of it waits.
        """
        held: dict[str, Held] = {}
        ids: list[str | None] = []
        for event in events:
            if not event.user_id:
                ids.append("")
                continue
            if event.user_id not in held:
                held[event.user_id] = self._standing(self.keys.stable.derive(event.user_id))
            person = held[event.user_id]
            allows = person.granted & self._beyond.get(event.source, 0)
            erased = person.erased_at and event.received <= person.erased_at
            ids.append(None if erased else event.user_id if allows else "")
        return ids


def _bits(vocabulary: Vocabulary, source: str) -> int:
    mask = 0
    for purpose in vocabulary.purposes:
        mask |= vocabulary.mask(purpose, source)
    return mask
