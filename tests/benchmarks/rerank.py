"""What re-ranking costs a request on one core: 20 of 200 candidates, 64 wide, out of a table of 50,000 items.

python -m tests.benchmarks.rerank --json
python -m tests.benchmarks.rerank --items 1000000 --requests 600        a table that no cache holds

Every contender gets the same requests (candidates of a clustered catalogue, relevance falling from 1 to 0), from item rows, in
turns of a few requests each, in a fresh process; a figure is microseconds a request in its best turn, *_typical_us in the
median one. Caches are cold as they are in a server: the requests of a turn share no candidates but by chance.

mmr_us, dpp_us, space_us, calibrate_us    what rules call             *_door_us       the same through the front door
*_numpy_us    the textbook in NumPy        *_pyversity_us   its package, where it is installed, on rows gathered before
gather_us     the floor of whoever copies 200 rows first              mmr_like_numpy  share of lists that float32 NumPy makes too
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.kernels import rerank
from engine.kernels.rerank import cpu
from tests.benchmarks.harness import measured

CANDIDATES, KEEP, WIDTH, CLUSTERS, KINDS = 200, 20, 64, 100, 12
BALANCE, STRENGTH, WEIGHT = 0.7, 1 / 3, 0.5  # this strength makes the determinant's q exp(relevance)
WINDOW, MOST = 5, 1
TURN, ROUNDS = 25, 40
BUDGET_S = 45.0

Ask = Callable[[int], Any]


class Requests:
    """Candidates, and what is known of them."""

    def __init__(self, items: int, requests: int) -> None:
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((CLUSTERS, WIDTH), np.float32)
        table = centres[rng.integers(0, CLUSTERS, items)] + np.float32(0.6) * rng.standard_normal(
            (items, WIDTH), np.float32
        )
        self.table: NDArray[np.float32] = table / np.linalg.norm(table, axis=1, keepdims=True)
        self.table.flags.writeable = False  # as a snapshot's is
        kind = rng.integers(0, KINDS, items).astype(np.int32)
        self.rows = [rng.choice(items, CANDIDATES, replace=False).astype(np.int32) for _ in range(requests)]
        self.relevance = [-np.sort(-rng.random(CANDIDATES, np.float32)) for _ in range(requests)]
        self.vectors = [self.table[rows] for rows in self.rows]
        self.kinds = [kind[rows] for rows in self.rows]
        self.targets = [rng.dirichlet(np.full(KINDS, 0.5)) for _ in range(requests)]


def mmr_numpy(vectors: NDArray[np.float32], relevance: NDArray[np.float32]) -> list[int]:
    """As textbooks have it, but that each step compares with the last pick alone. Vectors are of unit length."""
    picked = [int(relevance.argmax())]
    likest = np.full(len(relevance), -inf, np.float32)
    while len(picked) < KEEP:
        np.maximum(likest, vectors @ vectors[picked[-1]], out=likest)
        value = np.float32(BALANCE) * relevance - np.float32(1 - BALANCE) * likest
        value[picked] = -inf
        picked.append(int(value.argmax()))
    return picked


def mmr_textbook(vectors: NDArray[np.float32], relevance: NDArray[np.float32]) -> list[int]:
    """Each step compares all that are left with all picks."""
    picked = [int(relevance.argmax())]
    left = [i for i in range(len(relevance)) if i != picked[0]]
    while len(picked) < KEEP:
        value = BALANCE * relevance[left] - (1 - BALANCE) * (vectors[left] @ vectors[picked].T).max(axis=1)
        picked.append(left.pop(int(value.argmax())))
    return picked


def dpp_numpy(vectors: NDArray[np.float32], relevance: NDArray[np.float32]) -> list[int]:
    """Algorithm 1 of Chen et al. 2018."""
    quality = np.exp((1 - STRENGTH) / (2 * STRENGTH) * relevance)
    rest = quality * quality
    factor = np.zeros((KEEP, len(relevance)), np.float32)
    picked = [int(rest.argmax())]
    while len(picked) < KEEP:
        last, step = picked[-1], len(picked) - 1
        row = quality[last] * quality * (vectors @ vectors[last]) - factor[:step, last] @ factor[:step]
        factor[step] = row / sqrt(rest[last])
        rest = rest - factor[step] * factor[step]
        rest[picked] = -inf
        picked.append(int(rest.argmax()))
    return picked


def space_numpy(values: NDArray[np.int32]) -> list[int]:
    """Place by place, with the codes of the window at hand."""
    left, placed = np.arange(len(values)), []
    for _ in range(KEEP):
        near = values[placed[-(WINDOW - 1) :]]
        fits = (values[left][:, None] == near).sum(axis=1) < MOST
        place = int(fits.argmax())
        placed.append(int(left[place]))
        left = np.delete(left, place)
    return placed + left.tolist()


def calibrate_numpy(relevance: NDArray[np.float32], kinds: NDArray[np.int32], target: NDArray[np.float64]) -> list[int]:
    """The divergence of the list with each category, once a pick."""
    counts, each = np.zeros(KINDS), np.eye(KINDS)
    picked: list[int] = []
    worth = (1 - WEIGHT) * relevance.astype(np.float64)
    for step in range(KEEP):
        shares = 0.99 * (counts + each) / (step + 1) + 0.01 * target
        divergence = (target * np.log(target / shares)).sum(axis=1)
        value = worth - WEIGHT * divergence[kinds]
        value[picked] = -inf
        picked.append(int(value.argmax()))
        counts[kinds[picked[-1]]] += 1
    return picked


def contenders(asked: Requests) -> dict[str, Ask]:
    """By name, what each does for request i."""
    table, rows, vectors, relevance = asked.table, asked.rows, asked.vectors, asked.relevance
    kinds, targets = asked.kinds, asked.targets
    every: dict[str, Ask] = {
        "mmr": lambda i: cpu.mmr_of(relevance[i], table, rows[i], KEEP, BALANCE),
        "dpp": lambda i: cpu.dpp_of(relevance[i], table, rows[i], KEEP, STRENGTH),
        "space": lambda i: cpu.space(kinds[i], KEEP, WINDOW, MOST),
        "calibrate": lambda i: cpu.calibrate(relevance[i], kinds[i], targets[i], KEEP, WEIGHT, -inf),
        "mmr_door": lambda i: rerank.mmr_of(relevance[i], table, rows[i], KEEP, BALANCE),
        "dpp_door": lambda i: rerank.dpp_of(relevance[i], table, rows[i], KEEP, STRENGTH),
        "space_door": lambda i: rerank.space(kinds[i], KEEP, WINDOW, MOST),
        "calibrate_door": lambda i: rerank.calibrate(relevance[i], kinds[i], targets[i], KEEP, WEIGHT),
        "gather": lambda i: table.take(rows[i], axis=0),
        "mmr_numpy": lambda i: mmr_numpy(table.take(rows[i], axis=0), relevance[i]),
        "mmr_textbook": lambda i: mmr_textbook(table.take(rows[i], axis=0), relevance[i]),
        "dpp_numpy": lambda i: dpp_numpy(table.take(rows[i], axis=0), relevance[i]),
        "space_numpy": lambda i: space_numpy(kinds[i]),
        "calibrate_numpy": lambda i: calibrate_numpy(relevance[i], kinds[i], targets[i]),
        "dpp_variety": lambda i: cpu.dpp_of(relevance[i], table, rows[i], KEEP, 1.0),
        "mmr_variety": lambda i: cpu.mmr_of(relevance[i], table, rows[i], KEEP, 0.0),
        "space_all": lambda i: cpu.space(kinds[i], CANDIDATES, WINDOW, MOST),
    }
    try:
        peer = importlib.import_module("pyversity")
    except ImportError:
        return every
    return every | {
        "mmr_pyversity": lambda i: peer.mmr(vectors[i], relevance[i], KEEP, diversity=1 - BALANCE),
        "dpp_pyversity": lambda i: peer.dpp(vectors[i], relevance[i], KEEP, diversity=STRENGTH),
    }


def child(items: int, requests: int) -> dict[str, float]:
    """Time them in this process, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    asked = Requests(items, requests)
    every = contenders(asked)
    turns: dict[str, list[float]] = {name: [] for name in every}
    gc.disable()
    began = time.perf_counter()
    for round_ in range(ROUNDS):
        if time.perf_counter() - began > BUDGET_S:
            break
        for place, (name, ask) in enumerate(every.items()):
            first = (
                round_ * len(every) + place
            ) * TURN  # no two neighbours of a round find each other's rows in a cache
            block = [(first + each) % requests for each in range(TURN)]
            ask(block[-1])
            start = time.perf_counter()
            for i in block:
                ask(i)
            turns[name].append((time.perf_counter() - start) / TURN * 1e6)
    told: dict[str, float] = {f"{name}_us": round(min(found), 2) for name, found in turns.items()}
    for name in ("mmr", "dpp", "space", "calibrate", "gather"):
        told[f"{name}_typical_us"] = round(float(np.median(turns[name])), 2)
    same = [every["mmr"](i).tolist() == every["mmr_numpy"](i) for i in range(requests)]
    told["mmr_like_numpy"] = round(float(np.mean(same)), 4)
    told["seconds"] = round(time.perf_counter() - began, 1)
    return told


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        sys.stdout.write(json.dumps(child(given.items, given.requests)) + "\n")
        return 0
    sizes = ("--items", str(given.items), "--requests", str(given.requests))
    told = measured("tests.benchmarks.rerank", "--child", *sizes).told
    result = {"items": given.items, "candidates": CANDIDATES, "keep": KEEP, "width": WIDTH} | told
    table = Table("figure", "value")
    for name, value in result.items():
        table.add_row(name, str(value))
    Console(stderr=given.json).print(table)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
