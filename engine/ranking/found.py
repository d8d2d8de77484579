"""What a lane gives, and how lanes are found by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import SettingsError
from engine.ranking.people import People, Shop


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """F candidates of a block of people: owner (F,), item (F,), score (F,), basis (F,), evidence (F,; NO_ITEM: none).

    A score is the expected number of wants of the item within the horizon, on one scale for all lanes.
    """

    owner: NDArray[np.int64]
    item: NDArray[np.int32]
    score: NDArray[np.float32]
    basis: NDArray[np.uint64]
    evidence: NDArray[np.int32]

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
