"""What the policy costs a request on one core: 500 candidates to a list of 20, of a table of 50,000 items.

python -m tests.benchmarks.policy --json

Each request is another person's, so that nothing of it is in a cache but by chance. 400 of the candidates are the person's own,
in up to three ways each, some with bases that are not granted; 100 popular ones stand behind them. The person has a history, a
mix of interests, events of today and a seed. `default` is the surface home of conf/policy/default.yaml as it comes; `all` has
every rule there is, each with something to do.

default_p50_us, default_p99_us, all_p50_us, all_p99_us    a whole list, from mapped columns to the last rule
shares      what each rule of `all` takes of its median, `join` and `lists` being what the chain itself does
mmr_us, dpp_us    that rule alone, 20 of the first 100
*_numpy_us  the same filters, quota, caps and MMR as one would write them in NumPy: no trace, no propensities, no reasons
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.policy import Chain, Moment, Slate, load_policies, make_list
from engine.policy.rules.diversity import Diversity
from engine.schema import LANES, NEVER, NO_ITEM, TODAY
from engine.snapshot import Candidates, Mix, Seen, Snapshot
from tests.benchmarks.harness import measured
from tests.benchmarks.rerank import mmr_numpy
from tests.snapshot_builder import build_snapshot

ITEMS, WIDTH, ROOTS, CREATORS, OWN, POPULAR, SEEN, LIMIT = 50_000, 64, 24, 2_000, 400, 100, 400, 20
GRANTED = 0b0111
NOW = 1_790_000_000_000_000
ROUNDS, BUDGET_S = 12, 60.0
EVERY_RULE: list[dict[str, Any]] = [
    {"name": "availability"},
    {"name": "blocks", "blocks": [{"item": f"item-{code:04d}", "until": "2030-01-01", "reason": "recall"} for code in range(20)]},
    {"name": "exclusions"},
    {"name": "dismissed"},
    {"name": "fatigue"},
    {"name": "usual_quota"},
    {"name": "category_cap", "share": 0.4},
    {"name": "creator_cap", "share": 0.3},
    {"name": "price_cap"},
    {"name": "calibration"},
    {"name": "diversity", "strength": 0.2},
    {"name": "discovery"},
    {"name": "kinds", "kinds": [{"kind": "event", "categories": ["category-3"], "least": 0.1, "most": 0.3}]},
    {"name": "spacing"},
    {"name": "rotation"},
    {"name": "exploration"},
    {"name": "pins", "pins": [{"item": "item-0300", "place": 3, "until": "2030-01-01", "reason": "summer"}]},
    {"name": "consent"},
]  # fmt: skip


class Requests:
    """People, each with candidates and a moment."""

    def __init__(self, shop: Snapshot, count: int) -> None:
        self.shop = shop
        rng = np.random.default_rng(0)
        weight = 1.0 / np.arange(1, ITEMS + 1)
        self.popular = Slate.of_anyone(
            np.arange(POPULAR, dtype=np.int32), (weight[:POPULAR] * 100).astype(np.float32), LANES.index("popular")
        )
        self.candidates = [self._candidates(rng) for _ in range(count)]
        self.moments = [self._moment(rng, each) for each in self.candidates]

    def _candidates(self, rng: np.random.Generator) -> Candidates:
        basis = rng.choice(np.array([0, 1, 2, 3, 12, TODAY | 1], np.uint64), (OWN, 3))
        basis[:, 1:][rng.random((OWN, 2)) < 0.3] = NEVER
        score = -np.sort(-rng.random((OWN, 3), np.float32), axis=1)
        lanes = rng.choice([LANES.index(name) for name in ("usual", "two_tower", "similar")], (OWN, 3))
        return Candidates(
            rng.choice(ITEMS, OWN, replace=False).astype(np.int32),
            lanes.astype(np.uint8),
            basis,
            score[np.argsort(-score[:, 0])],
            np.full((OWN, 3), NO_ITEM, np.int32),
        )

    def _moment(self, rng: np.random.Generator, candidates: Candidates) -> Moment:
        shown = np.sort(rng.choice(candidates.item, 40, replace=False))
        roots = np.sort(rng.choice(ROOTS, 6, replace=False)).astype(np.int32)
        mix = Mix(roots, rng.dirichlet(np.full(6, 0.7)).astype(np.float32), np.ones(6, np.uint64))
        return Moment(
            items=self.shop.items,
            categories=self.shop.categories,
            now_us=NOW,
            surface="home",
            granted=GRANTED,
            granted_today=GRANTED,
            limit=LIMIT,
            region="DE",
            seen=Seen(rng.choice(ITEMS, SEEN, replace=False).astype(np.int32), np.ones(SEEN, np.uint64)),
            exclude=frozenset(candidates.item[rng.choice(OWN, 5, replace=False)].tolist()),
            hidden=np.sort(rng.choice(candidates.item, 5, replace=False)),
            dismissed=np.sort(rng.choice(ROOTS, 1)).astype(np.int32),
            mix=mix,
            shown=shown,
            times=rng.integers(1, 8, len(shown)).astype(np.int32),
            seed=int(rng.integers(1, 2**63)),
        )


class Timed:
    """A rule with a clock before and after it."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.name, self.took = rule, rule.name, 0.0

    def __call__(self, slate: Slate, moment: Moment) -> Any:
        """The rule's own answer."""
        began = time.perf_counter()
        verdict = self.rule(slate, moment)
        self.took = time.perf_counter() - began
        return verdict


def in_numpy(asked: Requests, i: int) -> NDArray[np.int32]:
    """What the default does, without its bookkeeping, as a service without an engine would have it."""
    candidates, moment = asked.candidates[i], asked.moments[i]
    way = np.where((candidates.basis & np.uint64(~GRANTED & 2**64 - 1)) == 0, candidates.score, -np.inf)
    best = way.argmax(axis=1)
    score = way[np.arange(len(way)), best]
    order = np.argsort(-score, kind="stable")
    order = order[np.isfinite(score[order])]
    items = np.concatenate([candidates.item[order], np.setdiff1d(asked.popular.item, candidates.item[order])])
    assert moment.seen is not None
    gone = np.concatenate([moment.seen.item, moment.hidden, np.fromiter(moment.exclude, np.int32)])
    items = items[~np.isin(items, gone)]
    table = moment.items
    items = items[(table.available_from[items] <= NOW) & (table.available_until[items] > NOW)]
    root = table.root_category[items]
    items = items[~np.isin(root, moment.dismissed)]
    root = table.root_category[items]
    by_root = np.argsort(root, kind="stable")
    starts = np.searchsorted(root[by_root], root[by_root])
    rank = np.empty(len(items), np.int64)
    rank[by_root] = np.arange(len(items)) - starts
    pool = items[rank < int(0.4 * LIMIT)][:100]
    relevance = np.linspace(1, 0, len(pool), dtype=np.float32)
    return pool[mmr_numpy(table.vector[pool], relevance)]


def child(requests: int) -> dict[str, Any]:
    """Time them in this process, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot"
        rng = np.random.default_rng(1)
        columns = {
            "creator": rng.integers(0, CREATORS, ITEMS).tolist(),
            "price": np.exp(rng.normal(3, 1, ITEMS)).round(2).tolist(),
            "available_from": np.where(
                rng.random(ITEMS) < 0.1, NOW - 10**6 * rng.integers(1, 10**6, ITEMS), -(2**63)
            ).tolist(),
            "regions": [["DE"] if limited else [] for limited in rng.random(ITEMS) < 0.2],
        }
        roots = [f"category-{code}" for code in range(ROOTS)]
        build_snapshot(path, items=ITEMS, categories=roots, width=WIDTH, item_columns=columns)
        shop = Snapshot.open(path)
        asked = Requests(shop, requests)
        return _timed(asked)


def _timed(asked: Requests) -> dict[str, Any]:
    spec = yaml.safe_load((Path(__file__).parents[2] / "conf" / "policy" / "default.yaml").read_text())
    default = load_policies(spec)["home"]
    every = load_policies({"home": {"limit": LIMIT, "rules": EVERY_RULE}})["home"]
    contenders: dict[str, Callable[[int], Any]] = {
        "default": lambda i: _listed(default, asked, i),
        "all": lambda i: _listed(every, asked, i),
        "default_numpy": lambda i: in_numpy(asked, i),
    }
    count = len(asked.moments)
    took: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    for round_ in range(ROUNDS):
        if round_ and time.perf_counter() - began > BUDGET_S:
            break
        for name, ask in contenders.items():
            for i in range(count):
                start = time.perf_counter()
                ask(i)
                took[name].append(time.perf_counter() - start)
    # The first round compiles and touches what a server has touched: it is left out.
    told: dict[str, Any] = {}
    for name, found in took.items():
        p50, p99 = np.percentile(np.array(found[count:]) * 1e6, [50, 99])
        told[f"{name}_p50_us"], told[f"{name}_p99_us"] = round(float(p50), 1), round(float(p99), 1)
    told["ratio_to_numpy"] = round(told["default_p50_us"] / told["default_numpy_p50_us"], 2)
    told["shares"] = _shares(every, asked)
    for method in ("mmr", "dpp"):
        told[f"{method}_us"] = _alone(Diversity(0.2, 100, method), asked)
    told["seconds"] = round(time.perf_counter() - began, 1)
    return told


def _listed(chain: Chain, asked: Requests, i: int) -> Any:
    return make_list(chain, asked.candidates[i], asked.popular, asked.moments[i])


def _shares(chain: Chain, asked: Requests) -> dict[str, float]:
    """Microseconds in the median, by rule."""
    timed = [Timed(rule) for rule in chain.rules]
    probed = Chain(chain.name, chain.version, chain.rules, chain.default_limit, chain.default_level)
    object.__setattr__(probed, "_steps", tuple((rule, True) for rule in timed))
    by_rule: dict[str, list[float]] = {rule.name: [] for rule in timed}
    rest = []
    for i in range(len(asked.moments)):
        start = time.perf_counter()
        _listed(probed, asked, i)
        rest.append(time.perf_counter() - start - sum(rule.took for rule in timed))
        for rule in timed:
            by_rule[rule.name].append(rule.took)
    found = {"the chain": rest} | by_rule
    return {name: round(float(np.median(each)) * 1e6, 1) for name, each in found.items()}


def _alone(rule: Diversity, asked: Requests) -> float:
    slate = [Slate.of_anyone(each.item, each.score[:, 0].copy(), 0) for each in asked.candidates]
    best = []
    for i, moment in enumerate(asked.moments):
        start = time.perf_counter()
        rule(slate[i], moment)
        best.append(time.perf_counter() - start)
    return round(float(np.median(best)) * 1e6, 1)


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        sys.stdout.write(json.dumps(child(given.requests)) + "\n")
        return 0
    told = measured("tests.benchmarks.policy", "--child", "--requests", str(given.requests)).told
    result = {"candidates": OWN + POPULAR, "limit": LIMIT, "items": ITEMS} | told
    table = Table("figure", "value")
    for name, value in result.items():
        if name != "shares":
            table.add_row(name, str(value))
    for name, value in told["shares"].items():
        table.add_row(f"  of all_p50_us: {name}", str(value))
    Console(stderr=given.json).print(table)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
