"""Today's state in Redis, for several replicas: a view of their journals, which may be lost at any moment and is made again.

A person is a hash: digest of an event's id -> order of arrival, fixed part, texts. One script takes a run of events: what
is new and what is to go is decided in Redis, at once. Each write also counts up a number of this process's own; a number
that is lower than one that was told before, or gone, says that Redis lost writes, be it by a restart, FLUSHALL or failover.

Needs one primary (managed failover is fine); Redis Cluster is not spoken. With a bound on its memory, volatile-lru makes it
forget the people who were quiet longest.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from engine.errors import BodegaError
from engine.live.embedded import ANONYMOUS, HOUR_US, EmbeddedToday
from engine.live.events import LiveEvent
from engine.live.redis_link import RedisLink
from engine.live.redis_rows import TAKE, TELL, Row, rows_of, still_counts
from engine.live.today import CHUNK, Figures, Made, Today, chunks, digest_of, now_us, packed, unpacked

_log = logging.getLogger(__name__)
_MADE = 2_048  # answers kept ready
_LONGEST_WAIT = 60.0


class RedisToday:
    """A store that all replicas of a deployment share; what this replica took is also held here, and answers when Redis does not.

    Nothing raises. A call waits for one connection and one answer at most, and for a second answer where Redis does not have
    the scripts yet, or not heard yet of whom to forget. Redis holds of people what this process holds, and no more.

    Args:
        url: redis://, rediss:// (TLS) or unix://, with its password; it is neither logged nor shown.
        deployment: whose state it is; deployments may share one Redis.
        hours, events_each: as EmbeddedToday's; the same for all replicas.
        people: of whom this process holds something; of Redis its own bound on memory decides.
        connect_seconds, read_seconds: how long a connection and an answer are waited for.
        failures, pause_seconds: after how many failures in a row nothing is asked, and for how long.
        clock: microseconds since the epoch.

    Raises:
        SettingsError: the address is not one, a bound is not positive, or the driver is missing.
    """

    def __init__(
        self,
        url: str,
        hours: float = 48.0,
        people: int = 200_000,
        events_each: int = 200,
        *,
        deployment: str = "default",
        connect_seconds: float = 0.25,
        read_seconds: float = 0.05,
        failures: int = 3,
        pause_seconds: float = 1.0,
        anonymous: int = ANONYMOUS,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self._local = EmbeddedToday(hours, people, events_each, anonymous=anonymous, clock=clock)
        self._link = RedisLink(url, connect_seconds, read_seconds, failures, pause_seconds)
        self._span, self._events_each, self._half = int(hours * HOUR_US), events_each, max(anonymous // 2, 1)
        self._clock = clock
        self._deployment: Final = deployment
        prefix = f"bodega:{deployment}:today:1:"
        self._person = f"{prefix}p:".encode()
        self._nobody = [f"{prefix}nobody:now", f"{prefix}nobody:before"]
        self._writer, self._order = f"{prefix}writer:{secrets.token_hex(8)}", f"{prefix}order"
        self._made = Made(_MADE)
        self._lock, self._forgetting = threading.Lock(), threading.Lock()
        self._writes = 0  # of this process that Redis told of
        self._losses = 0  # how often writes were lost,
        self._made_good = -1  # and up to which of these they were made again; nothing was yet
        self._wait, self._wait_until = pause_seconds, 0.0
        self._to_forget: set[bytes] = set()

    def __repr__(self) -> str:
        return f"RedisToday({self._deployment!r}, degraded={self.degraded})"

    @property
    def degraded(self) -> bool:
        """Whether Redis did not answer last time: lists look at what this replica took, and at nothing of the others."""
        return self._link.down

    @property
    def fault(self) -> BodegaError:
        """Why it is degraded, without its address."""
        return self._link.fault

    def add(self, events: Sequence[LiveEvent]) -> list[bool]:
        """As TodayStore; what Redis does not take is made good by `rebuild`."""
        told: list[bool] = []
        away = False
        for chunk in chunks(events):
            new = self._local.add(chunk)
            fresh = [event for event, first in zip(chunk, new, strict=True) if first]
            taken = None if away else self._write(fresh) if fresh else []
            away = taken is None
            if taken is None:
                told += new
            else:
                answers = iter(taken)
                told += [first and next(answers) for first in new]
        return told

    def known(self, events: Sequence[LiveEvent]) -> list[bool]:
        """As TodayStore."""
        told = self._local.known(events)
        asked: dict[bytes, list[int]] = {}
        for place, event in enumerate(events):
            if not told[place]:
                asked.setdefault(event.key, []).append(place)
        if not asked:
            return told
        since = self._clock() - self._span

        def ask() -> list[Any]:
            pipeline = self._link.client.pipeline(transaction=False)
            pipeline.get(self._writer)
            for key, places in asked.items():
                digests = [digest_of(events[place]) for place in places]
                if key:
                    pipeline.hmget(self._person + key, digests)
                else:
                    for name in self._nobody:
                        pipeline.smismember(name, digests)
            return list(pipeline.execute())

        answers = self._read(ask)
        if answers is None:
            return told
        replies = iter(answers)
        for key, places in asked.items():
            if key:
                held = [still_counts(row, since) for row in next(replies)]
            else:
                held = [bool(now or before) for now, before in zip(next(replies), next(replies), strict=True)]
            for place, there in zip(places, held, strict=True):
                told[place] = there and key not in self._to_forget
        return told

    def of(self, keys: Sequence[bytes]) -> Today:
        """As TodayStore, in one round trip."""
        asked = tuple(dict.fromkeys(keys))
        if not asked:
            return self._local.of(asked)
        names: list[str | bytes] = [self._writer, *(self._person + key for key in asked)]
        told = self._read(lambda: self._link.run(TELL, names))
        if told is None:
            return self._local.of(asked)
        since = self._clock() - self._span
        to_forget, lost = self._to_forget, self._lost
        alone = not lost and to_forget.isdisjoint(asked)  # what Redis tells is all there is
        mark = hashlib.blake2b(b"".join(told), digest_size=16).digest()
        answer = self._made.find(asked, mark, since) if alone else None
        if answer is None:
            rows: list[Row] = []
            for key, one in zip(asked, told, strict=True):
                found = {} if key in to_forget else rows_of(one)
                if lost:  # what this replica took may be missing there
                    for row in self._local.rows(key):
                        found.setdefault(row[0], row)
                rows += found.values()
            heads, texts = b"".join([row[1] for row in rows]), b"".join([row[2] for row in rows])
            answer, oldest = unpacked(heads, texts, since)
            if alone:
                self._made.keep(asked, mark, oldest, answer)
        return answer

    def forget(self, keys: Sequence[bytes]) -> None:
        """As TodayStore; while Redis is away they are kept in mind, and nothing is written there before they are gone."""
        gone = frozenset(keys)
        self._local.forget(keys)
        self._made.drop(lambda held, _: not gone.isdisjoint(held))
        with self._lock:
            self._to_forget |= gone
        self._link.ask(self._forget_there)

    def trim(self, now_us: int) -> None:
        """As TodayStore, of this process; Redis drops people by itself, and rows when a person's next ones come."""
        self._local.trim(now_us)
        self._made.drop(lambda _, oldest: oldest < now_us - self._span)

    def figures(self) -> Figures:
        """What this process took and holds; of what is in Redis, Redis tells."""
        return self._local.figures()

    def needs_rebuild(self) -> bool:
        """Ask Redis whether it lost writes of this process. False while it does not answer: then there is nothing to fill."""
        if self._read(lambda: [self._link.client.get(self._writer)]) is None:
            return False
        if self._to_forget:
            self._link.ask(self._forget_there)
        return self._lost and time.monotonic() >= self._wait_until

    def rebuild(self, events: Iterable[LiveEvent]) -> bool:
        """Fill in what is missing, here and in Redis; doing it twice changes nothing, and others may write meanwhile.

        Args:
            events: the journal of this replica in its order, without those of erased people; read from start to end.

        Returns:
            Whether Redis took all of it; if not, `needs_rebuild` says so again after a pause that doubles.
        """
        with self._lock:
            losses = self._losses
        source, there = iter(events), True
        while run := list(itertools.islice(source, CHUNK)):
            self._local.add(run)
            there = there and self._write(run) is not None
        there = there and self._write([]) is not None
        with self._lock:
            if there:
                self._made_good, self._wait = losses, 1.0
            else:
                self._wait_until = time.monotonic() + self._wait
                self._wait = min(self._wait * 2, _LONGEST_WAIT)
        return there

    def close(self) -> None:
        """Close the connections, and free what is held."""
        self._link.client.close()
        self._local.close()
        self._made.drop(lambda *_: True)

    @property
    def _lost(self) -> bool:
        return self._losses != self._made_good

    def _write(self, events: Sequence[LiveEvent]) -> list[bool] | None:
        """Give them to Redis: which of them are new to it, or None where it does not answer."""
        since = self._clock() - self._span
        people: dict[bytes, int] = {}
        values: list[Any] = [since, self._events_each, self._span // 1000, self._half]
        for event in events:
            place = people.setdefault(event.key, len(people) + 1) if event.key else 0
            values += place, digest_of(event), b"".join(packed(event))
        names: list[str | bytes] = [self._writer, self._order, *self._nobody, *(self._person + key for key in people)]

        def ask() -> list[Any]:
            if self._to_forget:
                self._forget_there()
            return self._link.run(TAKE, names, values)

        before = self._writes
        answer = self._link.ask(ask)
        if answer is None:
            with self._lock:
                self._losses += 1
            return None
        self._hear(int(answer[0]), before + 1)
        return [new == ord("1") for new in answer[1]]

    def _read(self, ask: Callable[[], list[Any]]) -> list[Any] | None:
        """What was asked, after the first answer, which is this writer's count; None where Redis does not answer."""
        before = self._writes
        answers = self._link.ask(ask)
        if answers is None:
            return None
        self._hear(int(answers[0] or 0), before)
        return answers[1:]

    def _hear(self, writes: int, least: int) -> None:
        """Compare this writer's count in Redis with what it must be at least."""
        with self._lock:
            if writes >= least:
                self._writes = max(self._writes, writes)
                return
            self._writes = writes
            self._losses += 1
        _log.warning("redis lost writes: today's state is to be made again from the journals")

    def _forget_there(self) -> bool:
        # One at a time: what is asked for here must not come to pass after somebody's next event was written.
        with self._forgetting:
            with self._lock:
                gone = list(self._to_forget)
            if gone:
                self._link.client.delete(*(self._person + key for key in gone))
                with self._lock:
                    self._to_forget.difference_update(gone)
        return True
