"""What the live rules work on: candidates in an order, the moment of a request, and what a rule says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.schema import NO_ITEM, NOBODY
from engine.snapshot import ItemTable, Seen

Positions = NDArray[np.integer]


class Alternatives(Protocol):
    """Candidates before consent: one row an item, one column a way in which it may be justified.

    `snapshot.Candidates` is one; so is a `Slate`, where each candidate has a single way.
    """

    @property
    def item(self) -> NDArray[np.int32]:
        """(n,) item codes, none twice."""

    @property
    def lane(self) -> NDArray[np.uint8]:
        """(n, ways) or (n,) codes of schema.LANES."""

    @property
    def basis(self) -> NDArray[np.uint64]:
        """(n, ways) or (n,) grants relied on; schema.NEVER marks an unused way."""

    @property
    def score(self) -> NDArray[np.float32]:
        """(n, ways) or (n,) finite; higher is better."""

    @property
    def evidence(self) -> NDArray[np.int32]:
        """(n, ways) or (n,) item codes, or NO_ITEM."""


@dataclass(frozen=True, slots=True, eq=False)
class Slate:
    """Candidates in an order, each with the one way in which it is justified. Columns of (n,)."""

    item: NDArray[np.int32]
    lane: NDArray[np.uint8]
    basis: NDArray[np.uint64]
    score: NDArray[np.float32]
    evidence: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.item)

    def take(self, positions: Positions) -> Slate:
        """The candidates at these positions, in that order."""
        return Slate(
            self.item.take(positions),
            self.lane.take(positions),
            self.basis.take(positions),
            self.score.take(positions),
            self.evidence.take(positions),
        )

    def then(self, other: Slate) -> Slate:
        """This one's candidates, and after them the other's."""
        return Slate(*(np.concatenate([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)))

    @classmethod
    def of_anyone(cls, items: NDArray[np.int32], scores: NDArray[np.float32], lane: int) -> Slate:
        """A list that relies on nobody's grants, such as a fallback.

        Args:
            items: (n,) item codes.
            scores: (n,) higher is better.
            lane: code of schema.LANES.
        """
        count = len(items)
        return cls(
            np.asarray(items, np.int32),
            np.full(count, lane, np.uint8),
            np.full(count, NOBODY, np.uint64),
            np.asarray(scores, np.float32),
            np.full(count, NO_ITEM, np.int32),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moment:
    """What rules may look at.

    Args:
        items: of the snapshot that the candidates come from.
        categories: names of the root categories, by `items.root_category`.
        now_us: microseconds since the epoch.
        surface: where the list will be shown.
        region: ISO 3166-2 or a prefix of it; '' is unknown.
        granted: what the person allows, after the dial.
        limit: length of the list, at least 1.
        exclude: item codes that the caller does not want.
        only_categories: names; empty means all.
        diversity: 0..1 in place of the surface's own strength; None leaves that.
        seen: what the person already has; None when nothing may be known.
    """

    items: ItemTable
    categories: tuple[str, ...]
    now_us: int
    surface: str
    granted: int
    limit: int
    region: str = ""
    exclude: frozenset[int] = frozenset()
    only_categories: frozenset[str] = frozenset()
    diversity: float | None = None
    seen: Seen | None = None


@dataclass(slots=True, eq=False)
class Verdict:
    """What one rule says of a slate. The type checker keeps the fields from being set: `frozen=True` takes twice as long.

    Args:
        kept: positions into the slate, none twice, in the new order.
        removed: how many went, by reason; with `kept` they add up to the slate.
    """

    kept: Final[Positions]
    removed: Final[Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def keeping(cls, wanted: NDArray[np.bool_], reason: str) -> Verdict:
        """Keep the order, remove what is not wanted for one reason."""
        kept = np.flatnonzero(wanted)
        return cls(kept, {reason: len(wanted) - len(kept)})


class Rule(Protocol):
    """A live rule: a frozen dataclass whose fields are its parameters, registered as an entry point of bodega.rules."""

    name: ClassVar[str]  # as registered; stands in policies, effects and replies

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Say what stays, in which order, and why the rest goes; the same input gives the same answer."""
