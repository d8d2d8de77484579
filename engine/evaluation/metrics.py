"""How good lists are: full ranking over all items, never sampled negatives.

Recall and NDCG as usual (Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418); beside them what accuracy hides: coverage,
the tail's share, how unlike the items of a list are, and calibration (Steck 2018, doi:10.1145/3240323.3240372).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.schema import NO_ITEM

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]


def hits(lists: I32, starts: NDArray[np.int64], wanted: I32) -> NDArray[np.bool_]:
    """(U, L) which places of each list hold an item that its person wanted.

    Args:
        lists: (U, L) item rows, best first, NO_ITEM where a list ends early.
        starts: (U + 1,) where each person's part of `wanted` begins. wanted: item rows, ascending within a person.
    """
    span = int(max(lists.max(initial=0), wanted.max(initial=0))) + 2
    owner = np.repeat(np.arange(len(lists)), np.diff(starts))
    pairs = owner * span + wanted
    asked = np.arange(len(lists))[:, None] * span + lists
    place = np.minimum(np.searchsorted(pairs, asked), max(len(pairs) - 1, 0))
    found = pairs[place] == asked if len(pairs) else np.zeros(lists.shape, bool)
    result: NDArray[np.bool_] = found & (lists != NO_ITEM)
    return result


def recall(hit: NDArray[np.bool_], wanted: NDArray[np.int64], k: int) -> F64:
    """(U,) share of what each person wanted that stands among the first k; wanted (U,) counts, all above 0."""
    result: F64 = hit[:, :k].sum(1) / wanted
    return result


def ndcg(hit: NDArray[np.bool_], wanted: NDArray[np.int64], k: int) -> F64:
    """(U,) discounted gain of the first k places over the best that could be had."""
    discount = 1 / np.log2(np.arange(k) + 2)
    best = np.cumsum(discount)[np.minimum(wanted, k) - 1]
    part = hit[:, :k]
    result: F64 = (part * discount[: part.shape[1]]).sum(1) / best
    return result


def coverage(lists: I32, items: int) -> float:
    """Share of the catalogue that stands in some list."""
    return float(len(np.unique(lists[lists != NO_ITEM])) / max(items, 1))


def tail_share(lists: I32, tail: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the places that hold a tail item, and its standard error."""
    shown = lists != NO_ITEM
    return share((tail[lists] & shown).sum(1), shown.sum(1))


def share(held: NDArray[np.integer], places: NDArray[np.integer]) -> tuple[float, float]:
    """(U,) counts of each person -> the share of all places that are held, and its standard error.

    People are the units, as the places of one list are alike: the error of a ratio of means (Cochran 1977, Sampling
    Techniques, ch. 6). Both are 0 where there is no place, the error also with a single person.
    """
    total = int(places.sum())
    if not total:
        return 0.0, 0.0
    value = float(held.sum() / total)
    people = len(places)
    spread = float(((held - value * places) ** 2).sum())
    return value, (people / max(people - 1, 1) * spread) ** 0.5 / total if people > 1 else 0.0


def intra_list_distance(lists: I32, vectors: NDArray[np.float32]) -> F64:
    """(U,) one minus the mean cosine between the items of each list; 0 for a list of one (Ziegler et al. 2005,
    doi:10.1145/1060745.1060754).
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.concatenate([vectors / np.maximum(norms, 1e-12), np.zeros((1, vectors.shape[1]), np.float32)])
    held = (lists != NO_ITEM).sum(1)
    total = np.empty(len(lists))
    for first in range(0, len(lists), 1024):  # memory stays flat: (1024, L, D) at a time
        rows = unit[lists[first : first + 1024]]  # NO_ITEM picks the zero row
        total[first : first + 1024] = (rows.sum(1) ** 2).sum(1) - (rows**2).sum((1, 2))
    pairs = held * (held - 1)
    return np.where(pairs > 0, 1 - total / np.maximum(pairs, 1), 0.0)


def miscalibration(mix: F64, lists: I32, category: NDArray[np.int32]) -> F64:
    """(U,) Kullback-Leibler divergence of each list's category mix from the person's own, the list smoothed by 1 % of the
    person's (Steck 2018); NaN for someone without a mix.

    Args:
        mix: (U, C) shares of a person's wants, rows that add up to 1, or to 0 where unknown.
        lists: (U, L). category: (I,) category of each item, -1 for none.
    """
    count = mix.shape[1]
    shown = np.where(lists == NO_ITEM, -1, category[np.maximum(lists, 0)])
    owner, place = np.nonzero(shown >= 0)
    listed = np.bincount(owner * count + shown[owner, place], minlength=len(lists) * count).reshape(len(lists), count)
    share = 0.99 * listed / np.maximum(listed.sum(1, keepdims=True), 1) + 0.01 * mix
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(mix > 0, mix * np.log(mix / share), 0.0)
    return np.where(mix.sum(1) > 0, terms.sum(1), np.nan)
