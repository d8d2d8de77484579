"""What a lane gives, and how lanes are found by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import SettingsError
from engine.ranking.people import People, Shop

_UNTOLD = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """F candidates of a block of people: owner (F,), item (F,), score (F,), basis (F,), evidence (F,; NO_ITEM: none).

    A score is the expected number of wants of the item within the horizon, on one scale for all lanes. without (F,): the score
    that would be left had the person never had to do with the evidence, 0 for not found; a lane that does not tell it has none of
    its evidence named.
    """

    owner: NDArray[np.int64]
    item: NDArray[np.int32]
    score: NDArray[np.float32]
    basis: NDArray[np.uint64]
    evidence: NDArray[np.int32]
    without: NDArray[np.float32] = field(default_factory=lambda: _UNTOLD)

    def __post_init__(self) -> None:
        if self.without is _UNTOLD:
            object.__setattr__(self, "without", self.score)

    @classmethod
    def nothing(cls) -> Found:
        """No candidate at all."""
        empty = np.empty(0, np.int32)
        return cls(empty.astype(np.int64), empty, empty.astype(np.float32), empty.astype(np.uint64), empty)

    @classmethod
    def together(cls, parts: list[Found]) -> Found:
        """All candidates of several."""
        return (
            cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))
            if parts
            else cls.nothing()
        )

    def distinct(self) -> Found:
        """Without what profiles that differ in what else they may read say alike: of each person, item and basis the first."""
        order = np.lexsort((self.basis, self.item, self.owner))
        same = np.zeros(len(order), bool)
        same[1:] = np.all([part[order][1:] == part[order][:-1] for part in (self.owner, self.item, self.basis)], 0)
        return self.take(np.sort(order[~same]))

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Found:
        """Some of them."""
        return Found(*(getattr(self, f.name)[rows] for f in fields(self)))


class Lane(Protocol):
    """A source of candidates. It is built with its parameters from conf/lanes and asked once for each block of people."""

    def find(self, people: People, shop: Shop) -> Found:
        """Candidates of everybody in the block."""
        ...


def lanes(parameters: dict[str, dict[str, Any]]) -> dict[str, Lane]:
    """The lanes that conf/lanes names, ours or a team's, built with their parameters.

    Raises:
        SettingsError: an unknown lane or parameter; names the nearest.
    """
    known = {point.name: point for point in entry_points(group="bodega.lanes")}
    built: dict[str, Lane] = {}
    for name, given in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise SettingsError(
                f"There is no lane '{name}'" + (f"; did you mean '{near[0]}'?" if near else "."),
                f"Use {', '.join(sorted(known))}, or register yours under the entry point group bodega.lanes.",
            )
        try:
            built[name] = known[name].load()(**given)
        except TypeError as error:
            raise SettingsError(f"lanes.{name}: {error}", "See the lane's docstring for its parameters.") from error
    return built
