"""Today's state in the process: for a single replica, and for each that has a Redis, in case it goes away."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from engine.errors import SettingsError
from engine.live.events import LiveEvent
from engine.live.today import (
    DIGEST,
    HEAD,
    IMPRESSION,
    Figures,
    Made,
    Today,
    chunks,
    digest_of,
    now_us,
    packed,
    unpacked,
)

ANONYMOUS = 100_000  # events of nobody whose ids are remembered
HOUR_US = 3_600_000_000
_PERSON_BYTES = 420  # of a person beside their rows, as measured
_ANONYMOUS_BYTES = 100
_PAUSE_NS = 2_000_000
_STEPS = 64  # in which the hours are freed
_NOTHING = unpacked(b"", b"", 0)[0]


class _Latest:
    """The latest digests of nobody's events: at least half of `room`, and never more than it."""

    def __init__(self, room: int) -> None:
        self._half = max(room // 2, 1)
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._now or digest in self._before

    def __len__(self) -> int:
        return len(self._now) + len(self._before)

    def add(self, digest: bytes) -> bool:
        if digest in self:
            return False
        self._now.add(digest)
        if len(self._now) >= self._half:
            self._before, self._now = self._now, set()
        return True


class _Person:
    """The rows of one person in the order in which they came; each blob is replaced whole, so that a reader needs no lock."""

    __slots__ = ("bucket", "digests", "heads", "oldest", "stamp", "texts")

    def __init__(self) -> None:
        self.digests = self.heads = self.texts = b""
        self.oldest = 0  # `received`
        self.bucket = -1
        self.stamp = 0

    @property
    def size(self) -> int:
        return _PERSON_BYTES + len(self.digests) + len(self.heads) + len(self.texts)

    def holds(self, digest: bytes) -> int:
        """Where the digest stands; -1: nowhere."""
        at = self.digests.find(digest)
        while at > 0 and at % DIGEST:
            at = self.digests.find(digest, at + 1)
        return at // DIGEST if at >= 0 else -1

    def fit(self, since: int, most: int) -> None:
        """Drop what is older than `since`, then beyond `most` rows the oldest: impressions first."""
        head = np.frombuffer(self.heads, HEAD)
        keep = head["received"] >= since
        excess = int(keep.sum()) - most
        if excess > 0:
            order = np.lexsort((head["received"], head["ts"], head["event"] != IMPRESSION))
            keep[order[keep[order]][:excess]] = False
        if not keep.all():
            sizes = (head["item"].astype(np.int64) + head["source"] + head["category"]).tolist()
            spans = zip(accumulate(sizes, initial=0), sizes, keep.tolist(), strict=False)
            self.texts = b"".join([self.texts[at : at + size] for at, size, kept in spans if kept])
            self.digests = np.frombuffer(self.digests, f"V{DIGEST}")[keep].tobytes()
            head = head[keep]
            self.heads = head.tobytes()
        self.oldest = int(head["received"].min()) if len(head) else 0

    def rows(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Digest, fixed part and texts of each."""
        head = np.frombuffer(self.heads, HEAD)
        sizes = (head["item"].astype(np.int64) + head["source"] + head["category"]).tolist()
        width = HEAD.itemsize
        for at, (start, size) in enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False)):
            fixed = self.heads[at * width : (at + 1) * width]
            yield self.digests[at * DIGEST : (at + 1) * DIGEST], fixed, self.texts[start : start + size]


class EmbeddedToday:
    """A store within bounds: the latest rows of each person, and the people of whom something was taken or asked last.

    Of a person's rows the oldest go first, and impressions before all others.

    Args:
        hours: after how long a row counts no longer, by when it was received.
        people: of whom something is held, at most.
        events_each: rows of one person, at most.
        gibibytes: of rows, at most, whatever the other bounds allow.
        anonymous: how many events of nobody are told from new ones; at least the latest half of them are.
        made: answers kept ready.
        clock: microseconds since the epoch.

    Raises:
        SettingsError: a bound is not positive.
    """

    def __init__(
        self,
        hours: float = 48.0,
        people: int = 200_000,
        events_each: int = 200,
        *,
        gibibytes: float = 2.0,
        anonymous: int = ANONYMOUS,
        made: int = 2_048,
        clock: Callable[[], int] = now_us,
    ) -> None:
        bounds = {"hours": hours, "people": people, "events_each": events_each, "gibibytes": gibibytes, "made": made}
        for name, value in bounds.items():
            if not value > 0:
                raise SettingsError(f"live.{name} is {value}.", "Give more than 0.")
        self._span = int(hours * HOUR_US)
        self._step = max(self._span // _STEPS, 1)
        self._most_people, self._events_each = people, events_each
        self._most_bytes = int(gibibytes * 2**30)
        self._clock = clock
        self._lock = threading.Lock()
        self._people: OrderedDict[bytes, _Person] = OrderedDict()  # the least recently touched first
        self._due: dict[int, dict[bytes, None]] = {}  # people by the step in which their oldest row was received
        self._nobody = _Latest(anonymous)
        self._made = Made(made)
        self._stamp = self._rows = self._bytes = 0

    def add(self, events: Sequence[LiveEvent]) -> list[bool]:
        """As TodayStore."""
        return [new for chunk in chunks(events) for new in self._add(chunk)]

    def _add(self, events: Sequence[LiveEvent]) -> list[bool]:
        since = self._clock() - self._span
        made = [(event.key, event.received, digest_of(event), packed(event)) for event in events]
        told: list[bool] = []
        with self._lock:
            touched: dict[bytes, _Person] = {}
            for key, received, digest, (head, texts) in made:
                if not key:
                    told.append(self._nobody.add(digest))
                    continue
                person = touched.get(key)
                if person is None:
                    person = touched[key] = self._taken_out(key)
                    if person.heads and person.oldest < since:
                        person.fit(since, self._events_each)
                told.append(person.holds(digest) < 0)
                if told[-1] and received >= since:
                    person.oldest = min(person.oldest, received) if person.heads else received
                    person.digests += digest
                    person.heads += head
                    person.texts += texts
            for key, person in touched.items():
                if len(person.digests) > DIGEST * self._events_each:
                    person.fit(since, self._events_each)
                if person.heads:
                    self._people[key] = person
                    self._count(key, person)
            while self._people and (len(self._people) > self._most_people or self._bytes > self._most_bytes):
                self._taken_out(next(iter(self._people)))
        return told

    def known(self, events: Sequence[LiveEvent]) -> list[bool]:
        """As TodayStore."""
        since = self._clock() - self._span
        made = [(event.key, digest_of(event)) for event in events]
        with self._lock:
            return [self._knows(key, digest, since) for key, digest in made]

    def _knows(self, key: bytes, digest: bytes, since: int) -> bool:
        if not key:
            return digest in self._nobody
        person = self._people.get(key)
        at = -1 if person is None else person.holds(digest)
        if person is None or at < 0:
            return False
        return person.oldest >= since or int(np.frombuffer(person.heads, HEAD)["received"][at]) >= since

    def of(self, keys: Sequence[bytes]) -> Today:
        """As TodayStore."""
        since = self._clock() - self._span
        asked = tuple(dict.fromkeys(keys))
        with self._lock:
            found = []
            for key in asked:
                person = self._people.get(key)
                if person is not None:
                    self._people.move_to_end(key)
                    found.append(person)
            if not found:
                return _NOTHING
            mark = tuple([person.stamp for person in found])
            heads, texts = [person.heads for person in found], [person.texts for person in found]
        answer = self._made.find(asked, mark, since)
        if answer is None:
            answer, oldest = unpacked(b"".join(heads), b"".join(texts), since)
            self._made.keep(asked, mark, oldest, answer)
        return answer

    def rows(self, key: bytes) -> list[tuple[bytes, bytes, bytes]]:
        """Digest, fixed part and texts of each row under a key, as they came; some may be too old."""
        with self._lock:
            person = self._people.get(key)
            return [] if person is None else list(person.rows())

    def forget(self, keys: Sequence[bytes]) -> None:
        """As TodayStore."""
        gone = frozenset(keys)
        with self._lock:
            for key in gone:
                self._taken_out(key)
        self._made.drop(lambda keys, _: not gone.isdisjoint(keys))

    def trim(self, now_us: int) -> None:
        """As TodayStore; a row is freed at most 1/64 of the hours after it counts no longer."""
        since, until = now_us - self._span, time.monotonic_ns() + _PAUSE_NS
        self._made.drop(lambda _, oldest: oldest < since)
        with self._lock:
            while self._due and time.monotonic_ns() < until:
                first = min(self._due)
                if (first + 1) * self._step > since:
                    return
                key = next(iter(self._due[first]))
                person = self._people[key]
                self._uncount(key, person)
                person.fit(since, self._events_each)
                if person.heads:
                    self._count(key, person)
                else:
                    del self._people[key]

    def figures(self) -> Figures:
        """As TodayStore."""
        with self._lock:
            anonymous = len(self._nobody)
            return Figures(len(self._people), self._rows, anonymous, self._bytes + anonymous * _ANONYMOUS_BYTES)

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            self._people.clear()
            self._due.clear()
            self._rows = self._bytes = 0
        self._made.drop(lambda *_: True)

    # Each of these with the lock held.

    def _taken_out(self, key: bytes) -> _Person:
        """The person, of whom nothing is held any longer; a new one where there was none."""
        person = self._people.pop(key, None)
        if person is None:
            return _Person()
        self._uncount(key, person)
        return person

    def _uncount(self, key: bytes, person: _Person) -> None:
        self._rows -= len(person.digests) // DIGEST
        self._bytes -= person.size
        due = self._due[person.bucket]
        del due[key]
        if not due:
            del self._due[person.bucket]

    def _count(self, key: bytes, person: _Person) -> None:
        self._stamp += 1
        person.stamp = self._stamp
        person.bucket = person.oldest // self._step
        self._due.setdefault(person.bucket, {})[key] = None
        self._rows += len(person.digests) // DIGEST
        self._bytes += person.size
