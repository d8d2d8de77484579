"""Blocks: what the shop does not show for now, whatever anybody would like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import PolicyError
from engine.policy.derived import OncePerTable
from engine.policy.paths import within
from engine.policy.positions import unmarked_of
from engine.policy.rules.terms import Terms, checked
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.snapshot import ItemTable


@dataclass(frozen=True, slots=True)
class Blocks:
    """Removes single items and whole categories until a day.

    Args:
        blocks: each {item or category, until: 2026-12-31, reason: what for}; it holds through that day, in UTC.
    """

    name: ClassVar[str] = "blocks"
    blocks: tuple[Mapping[str, Any], ...] = ()
    _terms: Terms = field(init=False, repr=False, compare=False)
    _blocked: OncePerTable[dict[int, NDArray[np.bool_]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = checked("blocks", self.blocks, ("until", "reason"), ("item", "category"))
        for term in terms:
            if bool(term.get("item")) == bool(term.get("category")):
                raise PolicyError("blocks: an entry names not just one of item and category.", "Give one of the two.")
        object.__setattr__(self, "blocks", terms)  # settings hand over lists
        object.__setattr__(self, "_terms", Terms("blocks", terms))
        object.__setattr__(self, "_blocked", OncePerTable(_nothing_yet))

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what is blocked at this moment."""
        count, over = len(slate.item), self._terms.over(moment.now_us)
        if over == len(self.blocks):
            return Verdict(everyone(count))
        by_over = self._blocked(moment.items)
        blocked = by_over.get(over)
        if blocked is None:
            blocked = by_over[over] = self._flags(moment.items, over)
        kept = unmarked_of(slate.item, blocked)
        return Verdict(kept, {"blocked": count - len(kept)}) if len(kept) < count else Verdict(everyone(count))

    def _flags(self, items: ItemTable, over: int) -> NDArray[np.bool_]:
        """(I,) what is blocked when so many terms are over."""
        terms, paths = self._terms.left(over), items.paths
        named = [paths.by_name.get(str(term["category"])) for term in terms if term.get("category")]
        wanted = np.array([code for code in named if code is not None], np.int32)
        flags: NDArray[np.bool_] = within(
            np.arange(items.count, dtype=np.int32), paths.offsets, paths.codes, wanted, len(paths.names)
        )
        codes = np.array([items.code_of(str(term["item"])) for term in terms if term.get("item")], np.int32)
        flags[codes[codes >= 0]] = True
        return flags


def _nothing_yet(_: ItemTable) -> dict[int, NDArray[np.bool_]]:
    return {}
