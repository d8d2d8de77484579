"""Candidates as they are made by day: the stored ways of each, and beside them those that were found on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.policy import allowed
from engine.schema import NEVER, NO_ITEM, NO_LANE
from engine.snapshot import Candidates


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """Candidates of (n,) items with a column for each way in which they may be justified: policy.Alternatives."""

    item: NDArray[np.int32]
    lane: NDArray[np.uint8]
    basis: NDArray[np.uint64]
    score: NDArray[np.float32]
    evidence: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one lane found: item, score (n,); what an item relies on, and what a sensitive one does; evidence (n,) or None."""

    item: NDArray[np.int32]
    score: NDArray[np.float32]
    lane: int
    plain: np.uint64
    delicate: np.uint64
    evidence: NDArray[np.int32] | None = None


def joined(
    candidates: Candidates | None,
    parts: Sequence[Part],
    sensitive: NDArray[np.bool_],
    granted: int,
    granted_today: int = 0,
    instead_of: Sequence[int] = (),
) -> Ways:
    """Stored ways, and as one more column the best of the new ones of each item; by item, so that ties go to the lower.

    Args:
        candidates: as stored; None: nothing is.
        sensitive: (I,) of the catalogue.
        granted, granted_today: masks, after the dial.
        instead_of: lanes of which the stored ways are left out, for they were asked again.
    """
    item = np.concatenate([part.item for part in parts] or [np.empty(0, np.int32)])
    score = np.concatenate([part.score for part in parts] or [np.empty(0, np.float32)])
    sizes = [len(part.item) for part in parts]
    lane = np.repeat(np.array([part.lane for part in parts], np.uint8), sizes)
    plain = np.repeat(np.array([part.plain for part in parts], np.uint64), sizes)
    delicate = np.repeat(np.array([part.delicate for part in parts], np.uint64), sizes)
    evidence = np.full(len(item), NO_ITEM, np.int32)
    ends = np.cumsum([0, *sizes])
    for part, first, end in zip(parts, ends, ends[1:], strict=False):
        if part.evidence is not None:
            evidence[first:end] = part.evidence
    basis = np.where(sensitive[item], delicate, plain)
    # Of equal scores the way that asks for less, as the night has it.
    order = np.lexsort((np.bitwise_count(basis), -score, ~allowed(basis, granted, granted_today), item))
    order = order[score[order] > 0]
    first = np.ones(len(order), bool)
    first[1:] = item[order][1:] != item[order][:-1]
    order = order[first]
    stored_item = candidates.item if candidates is not None else np.empty(0, np.int32)
    every = np.union1d(stored_item, item[order]).astype(np.int32)
    new = np.searchsorted(every, item[order])
    columns = candidates.basis.shape[1] if candidates is not None else 0
    shape = (len(every), columns + 1)
    ways = Ways(
        every,
        np.full(shape, NO_LANE, np.uint8),
        np.full(shape, NEVER, np.uint64),
        np.full(shape, -np.inf, np.float32),
        np.full(shape, NO_ITEM, np.int32),
    )
    if candidates is not None:
        stored = np.searchsorted(every, stored_item)
        for name in ("lane", "basis", "score", "evidence"):
            getattr(ways, name)[stored, :-1] = getattr(candidates, name)
        if instead_of:
            ways.basis[:, :-1][np.isin(ways.lane[:, :-1], instead_of)] = NEVER
    ways.lane[new, -1], ways.basis[new, -1], ways.score[new, -1] = lane[order], basis[order], score[order]
    ways.evidence[new, -1] = evidence[order]
    return ways
