"""Opening a snapshot and looking people up in it, beside the stores that teams use for it.

python -m tests.benchmarks.snapshot --users 2000000 --candidates 200 --json

Ours holds the whole of a person: candidates with three ways to justify each, decayed sums, seen items, interests, habits; it
is checked by its CRC at each look-up. The peers hold items and scores alone (8 bytes a candidate) of `--peer-users` people,
and check nothing. People are drawn at random, and each was looked up once before, so that nobody pays for the first touch of
a page. lookup_us: a person found and checked. candidates_us: and their candidates as NumPy arrays, which is what a peer's
look-up ends with, and what its ratio is to. record_us: and the other four tables.

--folder DIR keeps the stores (the file system needs about 20 GiB for the figures above); --rounds N; --peer-users N.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.snapshot import Snapshot, UserRecord
from tests.benchmarks.snapshot_peers import PEERS, Shop
from tests.benchmarks.snapshot_shop import keys_of, write

TARGETS = {"lookup_us": 2.0}
_FEW = 20_000
_ASKED = 20_000  # people that are looked up a round
_OPENINGS = 15


@dataclass(frozen=True, slots=True)
class Ours:
    """Figures of one snapshot."""

    lookup_us: float
    candidates_us: float
    record_us: float
    open_ms: float
    first_open_ms: float
    bytes_per_user: float
    write_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and fail where a figure is past its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--peer-users", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with _folder(asked.folder) as folder:
        told = _measure(asked.users, asked.candidates, min(asked.peer_users, asked.users), asked.rounds, folder)
    _show(told, sys.stderr if asked.json else sys.stdout)
    if asked.json:
        sys.stdout.write(json.dumps(told) + "\n")
    return 0 if all(told[name] <= most for name, most in TARGETS.items()) else 1


def _measure(users: int, candidates: int, peer_users: int, rounds: int, folder: Path) -> dict[str, Any]:
    few, many = (_ours(folder, count, candidates, rounds) for count in (min(_FEW, users), users))
    told: dict[str, Any] = {
        "users": users,
        "candidates": candidates,
        "lookup_us": many.lookup_us,
        "candidates_us": many.candidates_us,
        "record_us": many.record_us,
        "lookup_us_at_20k": few.lookup_us,
        "open_ms": many.open_ms,
        "open_ms_at_20k": few.open_ms,
        "first_open_ms": many.first_open_ms,
        "bytes_per_user": many.bytes_per_user,
        "write_s": many.write_s,
        "peer_users": peer_users,
        "peers": {},
    }
    shop = Shop.random(keys_of(peer_users), candidates)
    asked = np.random.default_rng(3).choice(peer_users, min(_ASKED, peer_users), replace=False).tolist()
    for name, peer in PEERS.items():
        with peer(folder / f"{name}-{peer_users}-{candidates}", shop) as store:
            places = [place % store.people for place in asked[: store.asks]]
            if not np.array_equal(store.look_up(shop.keys[places[0]])[0], shop.items[places[0]]):
                raise RuntimeError(f"{name} answers with other items than it was given.")
            took = _timed(store.look_up, [shop.keys[place] for place in places], rounds)
            told["peers"][name] = {
                "lookup_us": took,
                "open_ms": store.open_ms,
                "bytes_per_user": store.bytes_per_user,
                "ratio": round(took / many.candidates_us, 2),
            }
    return told


def _ours(folder: Path, users: int, candidates: int, rounds: int) -> Ours:
    place = folder / f"snapshot-{users}-{candidates}"
    began = time.perf_counter()
    if not place.exists():
        write(place, users, candidates)
    write_s = time.perf_counter() - began
    size = sum(file.stat().st_size for file in place.iterdir() if not file.name.startswith("items"))
    openings = [_opening(place) for _ in range(_OPENINGS)]
    keys = keys_of(users)
    asked = [keys[each] for each in np.random.default_rng(2).choice(users, min(_ASKED, users), replace=False)]
    with Snapshot.open(place, verify=False) as snapshot:
        lookup, candidates_us, record = (
            _timed(partial(what, snapshot), asked, rounds) for what in (_found, _candidates, _everything)
        )
    return Ours(
        lookup, candidates_us, record, round(statistics.median(openings), 2), round(openings[0], 2), round(size / users, 1),
        round(write_s, 1),
    )  # fmt: skip


def _found(snapshot: Snapshot, key: bytes) -> UserRecord:
    record = snapshot.user(key)
    if record is None:
        raise RuntimeError("A person of the snapshot is not found in it.")
    return record


def _candidates(snapshot: Snapshot, key: bytes) -> Any:
    return _found(snapshot, key).candidates


def _everything(snapshot: Snapshot, key: bytes) -> Any:
    record = _found(snapshot, key)
    return record.candidates, record.sums, record.seen, record.mix, record.cadence


def _opening(place: Path) -> float:
    began = time.perf_counter()
    Snapshot.open(place, verify=False).close()
    return 1e3 * (time.perf_counter() - began)


def _timed(look_up: Callable[[bytes], Any], keys: list[bytes], rounds: int) -> float:
    """Microseconds a look-up: the best round, after one that is not counted."""
    best = float("inf")
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for key in keys:
            look_up(key)
        best = min(best, time.perf_counter() - began)
    return round(1e6 * best / len(keys), 2)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="bodega-snapshot-") as made:
        yield Path(made)


def _show(told: dict[str, Any], to: Any) -> None:
    rows = [
        ("store", "look-up us", "ours takes", "open ms", "bytes a person"),
        (
            f"ours, {told['users']:,} people",
            f"{told['lookup_us']:.2f} found and checked, {told['candidates_us']:.2f} with candidates",
            "",
            f"{told['open_ms']:.1f} ({told['open_ms_at_20k']:.1f} at {min(_FEW, told['users']):,})",
            f"{told['bytes_per_user']:,.0f}",
        ),
        *(
            (name, f"{each['lookup_us']:.2f}", f"1/{each['ratio']:g}", f"{each['open_ms']:.1f}", f"{each['bytes_per_user']:,.0f}")
            for name, each in told["peers"].items()
        ),
    ]  # fmt: skip
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(size) for cell, size in zip(row, wide, strict=True)), file=to)


if __name__ == "__main__":
    sys.exit(main())
