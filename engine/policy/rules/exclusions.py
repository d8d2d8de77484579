"""Exclusions: what the caller does not want in this list, and what the person already has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.policy.rules.consent import allowed
from engine.policy.slate import Moment, Slate, Verdict
from engine.schema import LANES
from engine.snapshot import ItemTable, Seen

_USUAL = LANES.index("usual")  # this lane is about buying again


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Removes excluded items, other categories than those asked for, and what was bought before.

    Args:
        hide_bought: whether what was bought goes; the lane `usual` always stays.
    """

    name: ClassVar[str] = "exclusions"
    hide_bought: bool = True

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove for the first reason that applies."""
        left = np.ones(len(slate), np.bool_)
        removed: dict[str, int] = {}
        if moment.exclude:
            codes = np.fromiter(moment.exclude, np.int32, len(moment.exclude))
            removed["excluded"] = _remove(left, _among(slate.item, codes))
        if moment.only_categories:
            wanted = _in_categories(slate.item, moment.items, moment.categories, moment.only_categories)
            removed["other_category"] = _remove(left, ~wanted)
        if self.hide_bought and moment.seen is not None and len(moment.seen):
            again = _among(slate.item, _known(moment.seen, moment.granted)) & (slate.lane != _USUAL)
            removed["bought"] = _remove(left, again)
        return Verdict(np.flatnonzero(left), removed)


def _remove(left: NDArray[np.bool_], unwanted: NDArray[np.bool_]) -> int:
    gone = left & unwanted
    left ^= gone
    return int(np.count_nonzero(gone))


def _known(seen: Seen, granted: int) -> NDArray[np.int32]:
    # Hiding an item says that it was bought: that is profiling too, and needs the same grants.
    return seen.item[allowed(seen.basis, granted)]


def _among(items: NDArray[np.int32], codes: NDArray[np.integer]) -> NDArray[np.bool_]:
    if not len(codes):
        return np.zeros(len(items), np.bool_)
    codes = np.sort(codes)
    nearest = np.minimum(np.searchsorted(codes, items), len(codes) - 1)
    found: NDArray[np.bool_] = codes[nearest] == items
    return found


def _in_categories(
    codes: NDArray[np.int32], items: ItemTable, categories: tuple[str, ...], wanted: Collection[str]
) -> NDArray[np.bool_]:
    # Roots are compared as numbers, for all at once; only other items have their whole path read.
    roots = np.array([row for row, name in enumerate(categories) if name in wanted], np.int32)
    found = _among(items.root_category[codes], roots)
    wanted = frozenset(wanted)
    rest = np.flatnonzero(~found)
    found[rest] = [not wanted.isdisjoint(items.category_path(code)) for code in codes[rest].tolist()]
    return found
