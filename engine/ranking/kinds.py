"""All categories of a catalogue, and those that people want nothing of until they buy or like such an item again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.activity.columns import AT_DEPTH, DEEPEST, DISMISSES
from engine.schema import EVENTS, PURCHASE
from engine.two_tower.histories import Histories

_LIKE = EVENTS.index("like")


@dataclass(frozen=True, slots=True, eq=False)
class Kinds:
    """names: of C categories, the roots first. starts (I + 1,), codes: those of item i, root to leaf, are
    codes[starts[i]..starts[i+1]].
    """

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, paths: Sequence[Sequence[str | None] | None], roots: Sequence[str]) -> Kinds:
        """Of each item's categories, root to leaf; `roots` keep their codes."""
        known = [[name for name in path or () if name is not None] for path in paths]
        others = sorted({name for path in known for name in path} - {*roots})
        names = (*roots, *others)
        place = {name: code for code, name in enumerate(names)}
        starts = np.concatenate([[0], np.cumsum([len(path) for path in known], dtype=np.int64)])
        return cls(names, starts, np.array([place[name] for path in known for name in path], np.int32))

    @classmethod
    def none(cls, items: int) -> Kinds:
        """Of a catalogue without categories."""
        return cls((), np.zeros(items + 1, np.int64), np.empty(0, np.int32))

    def of_items(self, items: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The categories of some items: the place of each among `items`, and its code."""
        sizes = np.diff(self.starts)[items]
        ends = np.cumsum(sizes)
        place = np.repeat(np.arange(len(items)), sizes)
        inside = np.arange(len(place)) - np.repeat(ends - sizes, sizes)
        return place, self.codes[np.repeat(self.starts[items], sizes) + inside]

    def items(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The items of each category, in whatever depth it is theirs: where they begin (C + 1,), and the items, ascending."""
        owner = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        code = np.unique(self.codes.astype(np.int64) * max(len(self.starts), 1) + owner)
        category, item = np.divmod(code, max(len(self.starts), 1))
        return np.searchsorted(category, np.arange(len(self.names) + 1)).astype(np.int64), item.astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Dismissed:
    """Rows by person, category and group, ascending: owner, category, group (n,). Several groups may say the same."""

    owner: NDArray[np.int64]
    category: NDArray[np.int32]
    group: NDArray[np.uint8]
    kinds: Kinds

    @classmethod
    def of(cls, histories: Histories, kinds: Kinds) -> Dismissed:
        """What still stands at the end of the histories.

        A purchase or a like of any source ends it for all of them, as a dismissal by any source counts for all lists: nobody
        should have to say it twice.
        """
        event = histories.event
        rows = np.flatnonzero((event == DISMISSES) | ((event > AT_DEPTH) & (event <= AT_DEPTH + DEEPEST)))
        if not len(rows):
            none = np.empty(0, np.int64)
            return cls(none, none.astype(np.int32), none.astype(np.uint8), kinds)
        begin, end = kinds.starts[histories.item[rows]], kinds.starts[histories.item[rows] + 1]
        place = np.where(event[rows] == DISMISSES, end - 1, begin + event[rows].astype(np.int64) - AT_DEPTH - 1)
        rows, place = rows[(place >= begin) & (place < end)], place[(place >= begin) & (place < end)]
        count = max(len(kinds.names), 1)
        owners = histories.owner
        pair = owners[rows] * count + kinds.codes[place]
        # Events lie in time's order, so the last row that wants a category again is later than a dismissal, or it is not.
        wants = np.flatnonzero(((event == PURCHASE) | (event == _LIKE)) & np.isin(owners, owners[rows]))
        of, code = kinds.of_items(histories.item[wants])
        wanted, last = owners[wants[of]] * count + code, wants[of]
        order = np.lexsort((last, wanted))
        wanted, last = wanted[order], last[order]
        at = np.searchsorted(wanted, pair, side="right") - 1
        again = at >= 0
        again[again] = (wanted[at[again]] == pair[again]) & (last[at[again]] > rows[again])
        stands = np.unique(pair[~again] * 256 + histories.group[rows[~again]])
        said, group = np.divmod(stands, 256)
        return cls(said // count, (said % count).astype(np.int32), group.astype(np.uint8), kinds)

    def refuses(self, owner: NDArray[np.integer], item: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which (person, item) pairs name an item with a category, at any depth, that the person dismissed."""
        refused = np.zeros(len(owner), bool)
        rows = np.flatnonzero(np.isin(owner, self.owner)) if len(self.owner) else np.empty(0, np.int64)
        if len(rows):
            place, category = self.kinds.of_items(item[rows])
            count = len(self.kinds.names)
            told = np.isin(owner[rows][place] * count + category, self.owner * count + self.category)
            refused[rows[place[told]]] = True
        return refused

    def hidden(self, people: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Every item that is refused: the place of its person among `people`, ascending, and the item; some may come twice."""
        wanted = np.isin(self.owner, people)
        pair = np.unique(self.owner[wanted] * max(len(self.kinds.names), 1) + self.category[wanted])
        owner, category = np.divmod(pair, max(len(self.kinds.names), 1))
        starts, items = self.kinds.items()
        sizes = np.diff(starts)[category]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return (
            np.repeat(np.searchsorted(people, owner), sizes),
            items[np.repeat(starts[category], sizes) + inside],
        )
