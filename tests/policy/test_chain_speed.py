"""How long the policy takes for one request: 300 candidates, 20 wanted, on one core.

python -m pytest -m benchmark -s tests/policy/test_chain_speed.py
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine.kernels.rerank import mmr
from engine.policy import Chain, Moment, resolve
from engine.schema import NEVER, NO_ITEM
from engine.snapshot import Candidates, Seen, Snapshot
from tests.policy.moments import moment_of
from tests.snapshot_builder import build_snapshot

ITEMS, WIDTH, ROOTS, CANDIDATES, SEEN, LIMIT = 5_000, 64, 12, 300, 400, 20
TARGET_MICROSECONDS = 300.0
SHARED_MACHINE = 1.33  # caches are cold where others run too; a regression costs more than this

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def large_shop(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder: Path = tmp_path_factory.mktemp("large") / "snapshot"
    build_snapshot(folder, items=ITEMS, categories=[f"category-{code}" for code in range(ROOTS)], width=WIDTH)
    return Snapshot.open(folder)


def test_a_request_of_300_candidates_stays_near_its_target(large_shop: Snapshot, surfaces: dict[str, Chain]) -> None:
    candidates, moment = _person(large_shop)
    chain = surfaces["home"]
    figures = {"whole chain": best(partial(chain.run, candidates, moment))}
    figures["  resolve"] = best(partial(resolve, candidates, moment.granted))
    slate = resolve(candidates, moment.granted)
    for rule in chain.rules:
        figures[f"  {rule.name}, {len(slate)} in"] = best(partial(rule, slate, moment))
        slate = slate.take(rule(slate, moment).kept)
    for pool in (100, 200):
        relevance, vectors = np.linspace(1, 0, pool, dtype=np.float32), large_shop.items.vector[:pool]
        figures[f"mmr, {LIMIT} of {pool}, {WIDTH} wide"] = best(partial(mmr, relevance, vectors, LIMIT, 0.8))
    lines = [f"{name:36} {value:8.1f} us" for name, value in figures.items()]
    lines[0] += f" (target {TARGET_MICROSECONDS:.0f})"
    told = json.dumps({name.strip(): round(value, 1) for name, value in figures.items()})
    sys.stdout.write("\n".join(["", *lines, told, ""]))
    assert figures["whole chain"] <= TARGET_MICROSECONDS * SHARED_MACHINE


def best(run: Callable[[], object]) -> float:
    """Microseconds of the best of many runs: other load on the machine only ever adds."""
    return min(timeit.repeat(run, number=1, repeat=5000)) * 1e6


def _person(shop: Snapshot) -> tuple[Candidates, Moment]:
    rng = np.random.default_rng(0)
    basis = rng.choice(np.array([0, 1, 2, 3, 12], np.uint64), (CANDIDATES, 3))
    basis[:, 1:][rng.random((CANDIDATES, 2)) < 0.3] = NEVER
    score = -np.sort(-rng.random((CANDIDATES, 3), np.float32), axis=1)
    candidates = Candidates(
        rng.choice(ITEMS, CANDIDATES, replace=False).astype(np.int32),
        rng.integers(0, 5, (CANDIDATES, 3)).astype(np.uint8),
        basis,
        score[np.argsort(-score[:, 0])],
        np.full((CANDIDATES, 3), NO_ITEM, np.int32),
    )
    seen = Seen(rng.choice(ITEMS, SEEN, replace=False).astype(np.int32), np.ones(SEEN, np.uint64))
    return candidates, moment_of(shop, granted=0b0111, limit=LIMIT, seen=seen, exclude=frozenset(range(50)))
