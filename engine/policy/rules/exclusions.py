"""Exclusions: what the caller does not want in this list, and what the person already has or is done with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.policy import compiled
from engine.policy.compiled import GRANTABLE
from engine.policy.paths import within
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.snapshot import ItemTable

_NO_CODES = np.empty(0, np.int32)
_NO_BASIS = np.empty(0, np.uint64)
_ANY = np.empty(0, np.bool_)
_REASONS = ("excluded", "done_today", "other_category", "bought")


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Removes excluded items, what today is done with, other categories than those asked for, and what was bought before.

    Args:
        hide_bought: whether what was bought goes; the lane `usual` always stays.
    """

    name: ClassVar[str] = "exclusions"
    hide_bought: bool = True

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove for the first reason that applies."""
        seen = moment.seen if self.hide_bought else None
        if not (moment.exclude or moment.only_categories or len(moment.hidden) or (seen is not None and len(seen))):
            return Verdict(everyone(len(slate)))
        items = slate.item
        kept, counts = compiled.unwanted(
            items,
            slate.lane,
            np.fromiter(moment.exclude, np.int32, len(moment.exclude)) if moment.exclude else _NO_CODES,
            moment.hidden,
            _NO_CODES if seen is None else seen.item,
            _NO_BASIS if seen is None else seen.basis,
            moment.granted & GRANTABLE,
            _in_categories(items, moment.items, moment.only_categories) if moment.only_categories else _ANY,
        )
        if len(kept) == len(items):
            return Verdict(everyone(len(kept)))
        return Verdict(kept, dict(zip(_REASONS, counts.tolist()[1:], strict=True)))


def _in_categories(codes: NDArray[np.int32], items: ItemTable, wanted: Collection[str]) -> NDArray[np.bool_]:
    paths = items.paths
    known = [paths.by_name[name] for name in wanted if name in paths.by_name]
    found: NDArray[np.bool_] = within(codes, paths.offsets, paths.codes, np.array(known, np.int32), len(paths.names))
    return found
