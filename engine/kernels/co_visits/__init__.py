"""Which items are wanted by the same people: counts, and each item's nearest by cosine.

codes, people = co_visits(starts, item, count)            # additive over shards: see `add`
near, likeness = neighbours(codes, people, count, keep=50)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import KernelError
from engine.kernels.co_visits import cpu
from engine.kernels.co_visits.cpu import add
from engine.schema import NO_ITEM

__all__ = ["add", "co_visits", "neighbours"]


def co_visits(
    starts: NDArray[np.int64], item: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count, for each pair of items, the people who wanted both.

    Args:
        starts: (U + 1,) where each person's items begin. item: (E,) item rows, distinct within a person.
        count: items of the catalogue.

    Returns:
        (P,) sorted codes i * count + j of the pairs that occur, both ways round and with itself; (P,) people.

    Raises:
        KernelError: an item row is out of range, or starts does not fit.
    """
    if len(starts) < 1 or starts[-1] != len(item):
        raise KernelError(f"starts ends at {starts[-1:]}, with {len(item)} items.", "Pass offsets of all items.")
    if len(item) and (item.min() < 0 or item.max() >= count):
        raise KernelError(f"Item row {item.max()} of {count}.", "Map items to rows of the catalogue.")
    return cpu.co_visits(starts, item, count)


def neighbours(
    codes: NDArray[np.int64], people: NDArray[np.float64], count: int, keep: int, least: int = 2
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Each item's nearest by cosine of who wanted them (Linden et al. 2003, doi:10.1109/MIC.2003.1167344).

    Args:
        codes, people: as `co_visits` gives them.
        keep: neighbours an item.
        least: people who must have wanted both; a pair of fewer is chance, and could point at somebody.

    Returns:
        (count, keep) item rows, nearest first, NO_ITEM where there are fewer; (count, keep) likeness, 0..1.
    """
    left, right = codes // count, codes % count
    own = np.zeros(count)
    own[left[left == right]] = people[left == right]
    real = (left != right) & (people >= least)
    left, right = left[real], right[real]
    likeness = (people[real] / np.sqrt(own[left] * own[right])).astype(np.float32)
    # Rows come by left, then right. One key sorts by left and falling likeness: the bits of positive floats rise with them.
    order = np.argsort((left << 32) | (0xFFFFFFFF - likeness.view(np.uint32).astype(np.int64)), kind="stable")
    left, right, likeness = left[order], right[order], likeness[order]
    place = np.arange(len(left)) - np.searchsorted(left, left)
    kept = place < keep
    near = np.full((count, keep), NO_ITEM, np.int32)
    value = np.zeros((count, keep), np.float32)
    near[left[kept], place[kept]] = right[kept]
    value[left[kept], place[kept]] = likeness[kept]
    return near, value
