"""Slates and moments for tests of the rules, over a small shop in a real snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.policy import Moment, Rule, Slate, Verdict
from engine.schema import LANES, NO_ITEM
from engine.snapshot import Candidates, Seen, Snapshot
from tests.snapshot_builder import candidate

NOW = 1_000_000
ALL = 2**63 - 1


def slate_of(items: Sequence[int], lane: str = "two_tower", basis: int | Sequence[int] = 0) -> Slate:
    """Candidates in this order, scores falling."""
    count = len(items)
    return Slate(
        item=np.array(items, np.int32),
        lane=np.full(count, LANES.index(lane), np.uint8),
        basis=np.array([basis] * count if isinstance(basis, int) else basis, np.uint64),
        score=np.arange(count, 0, -1, dtype=np.float32),
        evidence=np.full(count, NO_ITEM, np.int32),
    )


def moment_of(shop: Snapshot, **changes: Any) -> Moment:
    """A request that restricts nothing, but for what is changed."""
    plain: dict[str, Any] = {
        "items": shop.items,
        "categories": shop.categories,
        "now_us": NOW,
        "surface": "home",
        "granted": ALL,
        "limit": 20,
    }
    return Moment(**plain | changes)


def candidates_of(*rows: tuple[int, Sequence[tuple[Any, ...]]]) -> Candidates:
    """Rows of (item, ways), each way (lane, basis, score[, evidence]), as a snapshot gives them."""
    made = [candidate(item, *ways) for item, ways in rows]
    return Candidates(
        np.array([row["item"] for row in made], np.int32).reshape(len(made)),
        np.array([row["lane"] for row in made], np.uint8).reshape(len(made), 3),
        np.array([row["basis"] for row in made], np.uint64).reshape(len(made), 3),
        np.array([row["score"] for row in made], np.float32).reshape(len(made), 3),
        np.array([row["evidence"] for row in made], np.int32).reshape(len(made), 3),
    )


def seen_of(items: Sequence[int], basis: int | Sequence[int] = 0) -> Seen:
    """What a person already has."""
    bases = [basis] * len(items) if isinstance(basis, int) else basis
    return Seen(np.array(items, np.int32), np.array(bases, np.uint64))


def judged(rule: Rule, slate: Slate, moment: Moment) -> tuple[list[int], dict[str, int]]:
    """Items kept, and what was removed; holds the rule to what every rule promises."""
    verdict = rule(slate, moment)
    honest(verdict, len(slate))
    again = rule(slate, moment)
    assert again.kept.tolist() == verdict.kept.tolist()
    assert again.removed == verdict.removed
    return slate.item[verdict.kept].tolist(), {reason: count for reason, count in verdict.removed.items() if count}


def honest(verdict: Verdict, count: int) -> None:
    """Every candidate is kept once or removed with a reason."""
    kept = verdict.kept.tolist()
    assert len(set(kept)) == len(kept)
    assert all(0 <= position < count for position in kept)
    assert len(kept) + sum(verdict.removed.values()) == count
    assert all(removed >= 0 for removed in verdict.removed.values())
