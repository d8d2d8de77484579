"""A server that is killed while events come in as fast as it takes them: what it acknowledged is there, once.

python -m tests.events_killed --rounds 100 --seed 1

Each round starts a server on the same folder, sends events from several threads, and ends it by SIGKILL after a random moment.
Then everything that was ever sent is sent again, under the same event ids, and counted: in the lists' today, and in the log that
the next night would read. Prints one line of JSON: rounds, sent, acknowledged, lost, twice_today, twice_in_log, missing_in_log.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bodega.client import BodegaRpcError, Client, event

from engine.kernels.encode_user import Scale
from engine.schema import EVENTS
from tests.event_logs import random_tower
from tests.serving.shop import ITEMS, Process, Shop, allow, item

THREADS, EACH = 4, 8  # callers, and events a call
PEOPLE_A_ROUND = 3  # for each caller: today's state keeps so many events of one person
_WEIGHTS = (0.1,) * len(EVENTS)


class Caller(threading.Thread):
    """Sends events of its own people until the server is gone; remembers what was acknowledged."""

    def __init__(self, client: Client, name: str) -> None:
        super().__init__()
        self._client, self.called = client, name
        self.sent: list[tuple[str, str]] = []  # person, event id
        self.acknowledged: list[tuple[str, str]] = []

    def run(self) -> None:
        for call in range(100_000):
            person = f"{self.called}-{call % PEOPLE_A_ROUND}"
            batch = [(person, f"{person}-{call}-{n}") for n in range(EACH)]
            if len(self.sent) >= 180 * PEOPLE_A_ROUND:
                return
            self.sent += batch
            try:
                told = self._client.record_events(events_of(batch), timeout=10)
            except BodegaRpcError:
                return
            assert told.accepted + told.duplicates == len(batch) and not told.rejected
            self.acknowledged += batch


def events_of(batch: list[tuple[str, str]]) -> list[Any]:
    """As they were sent the first time: what is sent again is the same."""
    return [event(person, "view", item(len(name) % ITEMS), event_id=name) for person, name in batch]


def trial(rounds: int, seed: int, out: Path) -> dict[str, int]:
    """All rounds, and the count at the end."""
    chance = random.Random(seed)
    shop = Shop(out)
    scale = Scale(0, 1.0, 0, {"two_tower": (40, 1.0)}, event_weights=_WEIGHTS)
    shop.publish(tower=random_tower(np.random.default_rng(0), 4).arrays() | scale.arrays())
    sent: list[tuple[str, str]] = []
    acknowledged: set[tuple[str, str]] = set()
    settings = (f"live.ship_seconds={chance.choice((0.1, 0.3))}", "live.people=100000")
    for number in range(rounds):
        server = Process([f"out={out}", "port=0", "log.format=json", *settings])
        with server.client() as client:
            callers = [Caller(client, f"r{number}-c{each}") for each in range(THREADS)]
            for person in (f"{caller.called}-{each}" for caller in callers for each in range(PEOPLE_A_ROUND)):
                allow(client, person)  # or the log would name nobody
            for caller in callers:
                caller.start()
            time.sleep(chance.uniform(0.02, 0.6))
            server.kill()
            for caller in callers:
                caller.join(30)
        for caller in callers:
            sent += caller.sent
            acknowledged |= set(caller.acknowledged)
    return _counted(out, settings, sent, acknowledged) | {"rounds": rounds}


def _counted(
    out: Path, settings: tuple[str, ...], sent: list[tuple[str, str]], acknowledged: set[tuple[str, str]]
) -> dict[str, int]:
    server = Process([f"out={out}", "port=0", "log.format=json", *settings])
    people = Counter(person for person, _ in sent)
    try:
        with server.client() as client:
            before = _today(client, people)
            for first in range(0, len(sent), 500):
                client.record_events(events_of(sent[first : first + 500]), timeout=30)
            after = _today(client, people)
            in_log = _log(out, len(sent))
    finally:
        server.kill()
    kept = Counter(person for person, _ in acknowledged)
    counted = Counter(in_log)
    return {
        "sent": len(sent),
        "acknowledged": len(acknowledged),
        "lost": sum(max(0, kept[person] - before[person]) for person in people),
        "twice_today": sum(max(0, after[person] - people[person]) for person in people),
        "missing_today": sum(max(0, people[person] - after[person]) for person in people),
        "missing_in_log": len(set(sent) - counted.keys()),
        "twice_in_log": sum(count - 1 for count in counted.values()),
    }


def _today(client: Client, people: Counter[str]) -> Counter[str]:
    return Counter({person: client.recommend(person, limit=1).provenance.today_events for person in people})


def _log(out: Path, wanted: int) -> list[tuple[str, str]]:
    """Person and event id of every row of the log, once all are there or nothing more comes."""
    until, rows = time.monotonic() + 20, []
    while len(rows) < wanted and time.monotonic() < until:
        time.sleep(0.2)
        files = sorted((out / "events").rglob("[!.]*.parquet"))
        rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    return [(row["user_id"], row["event_id"]) for row in rows]


def main() -> int:
    """The command line; 1 where anything was lost or counted twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(given.rounds, given.seed, Path(folder) / "out")
    sys.stdout.write(json.dumps(found) + "\n")
    return int(any(found[name] for name in ("lost", "twice_today", "missing_today", "missing_in_log", "twice_in_log")))


if __name__ == "__main__":
    sys.exit(main())
