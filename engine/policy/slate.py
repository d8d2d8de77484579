"""What the live rules work on: candidates in an order, the moment of a request, and what a rule says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.schema import NO_ITEM, NOBODY
from engine.snapshot import ItemTable, Mix, Seen

Positions = NDArray[np.integer]
_NO_CODES: Final = np.empty(0, np.int32)
_NO_CODES.flags.writeable = False
_WHOLE: dict[int, Positions] = {}  # by length: the very object that `everyone` gave means that all stay where they are
_LARGEST = 2048  # with it all of them together take 16 MiB


def _no_codes() -> NDArray[np.int32]:
    return _NO_CODES


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


class Slate:
    """Candidates in an order, each with the one way in which it is justified. Columns of (n,).

    What `take` gives reads its columns, but for the items, when they are first asked for: most rules look at the items alone.
    """

    __slots__ = ("_at", "_basis", "_evidence", "_lane", "_of", "_score", "item")

    def __init__(
        self,
        item: NDArray[np.int32],
        lane: NDArray[np.uint8],
        basis: NDArray[np.uint64],
        score: NDArray[np.float32],
        evidence: NDArray[np.int32],
    ) -> None:
        self.item = item
        self._lane: NDArray[np.uint8] | None = lane
        self._basis: NDArray[np.uint64] | None = basis
        self._score: NDArray[np.float32] | None = score
        self._evidence: NDArray[np.int32] | None = evidence
        self._of: Alternatives | None = None  # and `_at`: whose columns, and where in them
        self._at: Positions | None = None

    @classmethod
    def of_ways(cls, candidates: Alternatives, item: NDArray[np.int32], way: Positions) -> Slate:
        """Candidates in one of their ways.

        Args:
            item: (n,) item codes. way: (n,) where each one's way is in the flattened columns.
        """
        made = cls.__new__(cls)
        made.item = item
        made._lane = made._basis = made._score = made._evidence = None
        made._of = candidates
        made._at = way
        return made

    def __len__(self) -> int:
        return len(self.item)

    @property
    def lane(self) -> NDArray[np.uint8]:
        """(n,) codes of schema.LANES."""
        if (column := self._lane) is None:
            column = self._lane = self._of.lane.take(self._at)  # type: ignore[union-attr, arg-type]
        return column

    @property
    def basis(self) -> NDArray[np.uint64]:
        """(n,) grants relied on."""
        if (column := self._basis) is None:
            column = self._basis = self._of.basis.take(self._at)  # type: ignore[union-attr, arg-type]
        return column

    @property
    def score(self) -> NDArray[np.float32]:
        """(n,) higher is better."""
        if (column := self._score) is None:
            column = self._score = self._of.score.take(self._at)  # type: ignore[union-attr, arg-type]
        return column

    @property
    def evidence(self) -> NDArray[np.int32]:
        """(n,) item codes, or NO_ITEM."""
        if (column := self._evidence) is None:
            column = self._evidence = self._of.evidence.take(self._at)  # type: ignore[union-attr, arg-type]
        return column

    def take(self, positions: Positions) -> Slate:
        """The candidates at these positions, in that order."""
        if positions is _WHOLE.get(len(self.item)):
            return self
        if self._of is None or self._at is None:
            return Slate.of_ways(self, self.item.take(positions), positions)
        return Slate.of_ways(self._of, self.item.take(positions), self._at.take(positions))

    def whole(self) -> Slate:
        """The same with columns of its own: nothing of what it was taken from is kept."""
        return Slate(self.item, self.lane, self.basis, self.score, self.evidence)

    def then(self, other: Slate) -> Slate:
        """This one's candidates, and after them the other's."""
        return Slate(
            np.concatenate([self.item, other.item]),
            np.concatenate([self.lane, other.lane]),
            np.concatenate([self.basis, other.basis]),
            np.concatenate([self.score, other.score]),
            np.concatenate([self.evidence, other.evidence]),
        )

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


def everyone(count: int) -> Positions:
    """0..count-1, read-only: what a rule keeps that removes nothing and leaves the order. A slate gives itself for it."""
    found = _WHOLE.get(count)
    if found is None:
        found = np.arange(count)
        found.flags.writeable = False
        if count <= _LARGEST:
            _WHOLE[count] = found
    return found


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
        granted_today: what may be used of today's events: bases with schema.TODAY lie inside it and `granted` together.
        hidden: (h,) item codes, ascending, that today's events take away from every lane.
        dismissed: (c,) codes of `items.paths.names` of which the person wants nothing.
        mix: how the person's interest spreads over categories, as far as it may be used; None: unknown.
        shown, times: (s,) item codes, ascending, and how often each was shown lately and not opened.
        seed: of what is drawn; 0: nothing is.
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
    granted_today: int = 0
    hidden: NDArray[np.int32] = field(default_factory=_no_codes)
    dismissed: NDArray[np.int32] = field(default_factory=_no_codes)
    mix: Mix | None = None
    shown: NDArray[np.int32] = field(default_factory=_no_codes)
    times: NDArray[np.int32] = field(default_factory=_no_codes)
    seed: int = 0


@dataclass(slots=True, eq=False)
class Verdict:
    """What one rule says of a slate. The type checker keeps the fields from being set: `frozen=True` takes twice as long.

    Args:
        kept: positions into the slate, none twice, in the new order.
        removed: how many went, by reason; with `kept` they add up to the slate.
        propensity: (len(kept),) float32, the chance that each stood where it now stands, over all seeds; None: the rule drew
            nothing.
    """

    kept: Final[Positions]
    removed: Final[Mapping[str, int]] = field(default_factory=dict)
    propensity: Final[NDArray[np.float32] | None] = None

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
