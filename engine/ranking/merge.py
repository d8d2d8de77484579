"""All lanes' candidates into one list a person: each item once, with the ways in which it may be justified."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.ranking.causes import causes
from engine.ranking.found import Found
from engine.schema import ALTERNATIVES, LANES, NEVER, NO_ITEM, NO_LANE, OTHER_LANE


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """C candidates, by person and best first: owner (C,), item (C,), and (C, 3) lane, basis, score, evidence: what the
    rank rests on, or NO_ITEM.
    """

    owner: NDArray[np.int64]
    item: NDArray[np.int32]
    lane: NDArray[np.uint8]
    basis: NDArray[np.uint64]
    score: NDArray[np.float32]
    evidence: NDArray[np.int32]


def merge(found: dict[str, Found], keep: int, least_each: int, reasoned: int = 40) -> Merged:
    """Merge lanes.

    Of the ways to justify one item, those are dropped that ask for more grants and score no better than another; then the two
    best scored stay and the one that asks for the fewest grants, so that a withdrawal falls back instead of falling silent.

    Args:
        found: candidates by lane name; within a lane a pair of person and basis names an item once.
        keep: candidates a person.
        least_each: candidates kept for each person, lane and basis, whatever the others score.
        reasoned: of how many of a person's first candidates the evidence is kept where it is a cause (engine/ranking/causes.py).
    """
    every = Found.together(list(found.values()))
    codes = np.array([LANES.index(name) if name in LANES else OTHER_LANE for name in found], np.uint8)
    lane = np.repeat(codes, [len(part.owner) for part in found.values()])
    real = every.score > 0
    every, lane = every.take(real), lane[real]
    nth = _place((every.owner, lane, every.basis), -every.score, every.item)
    strong = nth < least_each
    # Of equal scores the one that asks for less comes first, and rules the other out.
    grants = np.bitwise_count(every.basis)
    order = np.lexsort((every.basis, lane, grants, -every.score, every.item, every.owner))
    every, lane, strong = every.take(order), lane[order], strong[order]
    edge = np.ones(len(lane), bool)
    edge[1:] = (every.owner[1:] != every.owner[:-1]) | (every.item[1:] != every.item[:-1])
    starts = np.flatnonzero(edge)
    pair = np.cumsum(edge) - 1
    ways, pairs = every, pair
    nth = np.arange(len(lane)) - starts[pair] if len(lane) else np.empty(0, np.int64)
    kept = ~_dominated(pair, nth, every.basis, len(starts))
    every, lane, strong, pair = every.take(kept), lane[kept], strong[kept], pair[kept]
    fewest = _place((pair,), np.bitwise_count(every.basis), np.arange(len(pair))) == 0
    nth = np.arange(len(pair)) - np.searchsorted(pair, pair)
    chosen = (nth < ALTERNATIVES - 1) | fewest
    third = (
        ~chosen & (nth == ALTERNATIVES - 1) & (np.bincount(pair[chosen], minlength=len(starts))[pair] < ALTERNATIVES)
    )
    chosen |= third
    every, lane, strong, pair = every.take(chosen), lane[chosen], strong[chosen], pair[chosen]
    slot = np.arange(len(pair)) - np.searchsorted(pair, pair)
    shape = (len(starts), ALTERNATIVES)
    basis, score = np.full(shape, NEVER, np.uint64), np.zeros(shape, np.float32)
    lanes, evidence = np.full(shape, NO_LANE, np.uint8), np.full(shape, NO_ITEM, np.int32)
    basis[pair, slot], score[pair, slot] = every.basis, every.score
    lanes[pair, slot], evidence[pair, slot] = lane, every.evidence
    first = slot == 0
    owner, item = every.owner[first], every.item[first]
    wanted = np.bincount(pair, strong, len(starts)) > 0
    place = _place((owner,), -score[:, 0], item)
    rows = np.flatnonzero((place < keep) | wanted)
    rows = rows[np.lexsort((item[rows], -score[rows, 0], owner[rows]))]
    merged = Merged(owner[rows], item[rows], lanes[rows], basis[rows], score[rows], evidence[rows])
    kept_at = np.full(len(starts), -1)
    kept_at[rows] = np.arange(len(rows))
    return replace(merged, evidence=causes(merged, ways, kept_at[pairs], reasoned))


def _place(
    group: tuple[NDArray[np.generic], ...], key: NDArray[np.generic], tie: NDArray[np.generic]
) -> NDArray[np.int64]:
    """Each row's place within its group when sorted by key, then by tie."""
    order = np.lexsort((tie, key, *group[::-1]))
    edge = np.zeros(len(order), bool)
    edge[:1] = True
    for column in group:
        ordered = column[order]
        edge[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(edge)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - starts[np.cumsum(edge) - 1] if len(order) else 0
    return place


def _dominated(
    pair: NDArray[np.int64], nth: NDArray[np.int64], basis: NDArray[np.uint64], pairs: int
) -> NDArray[np.bool_]:
    """Rows that a better scored row of the same pair justifies with no more grants. Rows of a pair lie best first."""
    width = int(nth.max(initial=-1)) + 1
    table = np.full((pairs, max(width, 1)), NEVER, np.uint64)
    table[pair, nth] = basis
    covered = np.zeros((pairs, max(width, 1)), bool)
    for better in range(width):
        for worse in range(better + 1, width):
            covered[:, worse] |= (table[:, better] & ~table[:, worse]) == 0
    return covered[pair, nth]
