"""Which evidence is a cause: without it the candidate would stand lower, or would not be there.

What a way would score had the person never had to do with its evidence, its lane tells. That score is put in the place of the
way's own, all else in the list as it stands: the evidence is kept where a candidate that now stands below would pass, or where
nothing would be left; a reason that named anything else would claim what is not so. Of what may pass, the evidence itself is
left out, and whatever rests on it too.

The best way of a candidate is checked in the list of everything granted; each other in the list of what its own grants justify,
where it is the best: that is where it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.ranking.found import Found
from engine.schema import NEVER, NO_ITEM

if TYPE_CHECKING:
    from engine.ranking.merge import Merged


def causes(listed: Merged, ways: Found, pair: NDArray[np.int64], first: int) -> NDArray[np.int32]:
    """(C, 3) the evidence of the first candidates of each person where it is a cause, else NO_ITEM.

    Args:
        ways: all that the lanes found for these candidates and others, also what was not kept of it.
        pair: of each of them, the row of its candidate in `listed`, or -1.
        first: how many candidates of a person are checked.
    """
    begins = np.searchsorted(listed.owner, listed.owner)
    ends = np.searchsorted(listed.owner, listed.owner, side="right")
    asked = (np.arange(len(listed.owner)) - begins < first)[:, None] & (listed.evidence != NO_ITEM)
    row, way = np.nonzero(asked)
    left = _left(listed, ways, pair, row, way)
    caused = left <= 0
    for best in (True, False):
        some = np.flatnonzero(~caused & ((way == 0) == best))
        # Best first, nothing above can pass the best way.
        start = row[some] + 1 if best else begins[row[some]]
        caused[some] = _passed(listed, row[some], way[some], left[some], start, ends[row[some]])
    named = np.full(listed.evidence.shape, NO_ITEM, np.int32)
    named[row[caused], way[caused]] = listed.evidence[row[caused], way[caused]]
    return named


def _left(
    listed: Merged, ways: Found, pair: NDArray[np.int64], row: NDArray[np.int64], way: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n,) what some candidates would score without the evidence of one of their ways: the most of what is left in any way."""
    place = np.full(len(listed.owner) + 1, -1)
    wanted = np.unique(row)
    place[wanted] = np.arange(len(wanted))
    mine = np.flatnonzero(place[pair] >= 0)
    mine = mine[np.argsort(pair[mine], kind="stable")]
    starts = np.searchsorted(pair[mine], row)
    sizes = np.searchsorted(pair[mine], row, side="right") - starts
    claim = np.repeat(np.arange(len(row)), sizes)
    at = mine[np.arange(len(claim)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + starts[claim]]
    rests = ways.evidence[at] == listed.evidence[row, way][claim]
    score = np.where(rests, ways.without[at], ways.score[at])
    score[(ways.basis[at] & ~_world(listed, row, way)[claim]) != 0] = 0
    left = np.zeros(len(row), np.float32)
    np.maximum.at(left, claim, score)
    return left


def _passed(
    listed: Merged,
    row: NDArray[np.int64],
    way: NDArray[np.int64],
    left: NDArray[np.float32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """(n,) whether among the rows start..end of the list there is one that stands below a claim's candidate, and would pass it.

    One step looks at one row for each claim that is still open; most are settled by the first few.
    """
    passed = np.zeros(len(row), bool)
    open_ = np.flatnonzero(start < end)
    world, step = _world(listed, row, way), 0
    while len(open_):
        mine, other = row[open_], start[open_] + step
        proof = listed.evidence[mine, way[open_]]
        inside = (listed.basis[other] & ~world[open_, None]) == 0
        best = inside.argmax(1)  # ways lie best first
        score = np.where(inside.any(1), listed.score[other, best], -np.inf)
        now, then = listed.score[mine, way[open_]], left[open_]
        earlier = listed.item[other] < listed.item[mine]  # of equal scores, it stands above
        below = (score < now) | ((score == now) & ~earlier)
        above = (score > then) | ((score == then) & earlier)
        rests = (listed.evidence[other, best] == proof) | (listed.item[other] == proof)
        found = below & above & ~rests & (other != mine)
        passed[open_[found]] = True
        step += 1
        # What is further down scores no better, whatever is granted: where that is too little, nothing more can pass.
        hopeful = ~found & (other + 1 < end[open_])
        hopeful[hopeful] = listed.score[other[hopeful] + 1, 0] >= then[hopeful]
        open_ = open_[hopeful]
    return passed


def _world(listed: Merged, row: NDArray[np.int64], way: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n,) the grants under which a way is the best of its candidate: of the first way all, of others those it relies on."""
    return np.where(way == 0, np.uint64(NEVER), listed.basis[row, way])
