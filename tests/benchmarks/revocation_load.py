"""The load of tests.benchmarks.revocation, in a process of its own: lists asked for one replica, noted with their times.

python -m tests.benchmarks.revocation_load --address HOST:PORT --users N --until SECONDS --note FILE
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
from bodega.client import BodegaRpcError, Client
from bodega.requests import recommend_request
from bodega.v1 import ranking_pb2

NOTE = np.dtype([("sent", "f8"), ("got", "f8"), ("user", "i4"), ("profiled", "?"), ("reason", "U24")])
BATCH = 8  # people a call
THREADS = 2
PAUSE = 0.004  # seconds between two calls of a thread: the machine has writers and a database to run as well


def person(number: int) -> str:
    """The raw id of a person."""
    return f"person-{number}"


def ask(address: str, users: int, until: float, seed: int) -> list[tuple[float, float, int, bool, str]]:
    """Ask for people at random until the monotonic clock, which all processes of a machine share, says so."""
    notes: list[tuple[float, float, int, bool, str]] = []
    non_profiled = ranking_pb2.Provenance.MODE_NON_PROFILED

    def work(number: int) -> None:
        draw = np.random.default_rng([seed, number])
        with Client(address, timeout=20) as client:
            while time.monotonic() < until:
                asked = draw.integers(0, users, BATCH).tolist()
                requests = [recommend_request(person(each), limit=5) for each in asked]
                sent = time.monotonic()
                try:
                    results = client.batch_recommend(requests)
                except BodegaRpcError:
                    time.sleep(0.05)
                    continue
                got = time.monotonic()
                for each, result in zip(asked, results, strict=False):
                    made = result.response.provenance
                    if result.HasField("response"):
                        notes.append((sent, got, each, made.mode != non_profiled, made.reason))
                time.sleep(PAUSE)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, and leave the notes in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", required=True)
    asked = parser.parse_args(arguments)
    np.save(asked.note, np.array(ask(asked.address, asked.users, asked.until, asked.seed), NOTE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
