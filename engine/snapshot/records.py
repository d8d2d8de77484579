"""What a snapshot holds about one person: views into the mapped files, in the columns that engine/schema.py names.

Every array is read-only and stays valid after the snapshot is closed or its folder deleted: it keeps the mapping alive.
The type checker keeps the fields from being set: `frozen=True` would double the time of a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Candidates:
    """Candidates of one person, in the order of the night. Columns of (n, 3) hold one value per alternative."""

    item: Final[NDArray[np.int32]]  # (n,)
    lane: Final[NDArray[np.uint8]]  # (n, 3) code of schema.LANES, or NO_LANE
    basis: Final[NDArray[np.uint64]]  # (n, 3) grants relied on, or NEVER
    score: Final[NDArray[np.float32]]  # (n, 3)
    evidence: Final[NDArray[np.int32]]  # (n, 3) item code, or NO_ITEM

    def __len__(self) -> int:
        return len(self.item)


@dataclass(slots=True, eq=False)
class Sums:
    """Decayed sums of one person, one row a group of events."""

    group: Final[NDArray[np.uint8]]  # (n,) bit of the consent vocabulary
    last: Final[NDArray[np.int64]]  # (n,) microseconds since the epoch
    weights: Final[NDArray[np.float32]]  # (n, decays)
    sums: Final[NDArray[np.float32]]  # (n, decays * width), decay by decay

    def __len__(self) -> int:
        return len(self.group)


@dataclass(slots=True, eq=False)
class Seen:
    """Items that one person need not be shown again."""

    item: Final[NDArray[np.int32]]  # (n,)
    basis: Final[NDArray[np.uint64]]  # (n,)

    def __len__(self) -> int:
        return len(self.item)


@dataclass(slots=True, eq=False)
class Mix:
    """How one person's interest spreads over categories."""

    category: Final[NDArray[np.int32]]  # (n,) row of the categories; -1: items without one
    share: Final[NDArray[np.float32]]  # (n,) 0..1
    basis: Final[NDArray[np.uint64]]  # (n,)

    def __len__(self) -> int:
        return len(self.category)


@dataclass(slots=True, eq=False)
class Cadence:
    """What one person buys again, and how often."""

    item: Final[NDArray[np.int32]]  # (n,)
    purchases: Final[NDArray[np.uint32]]  # (n,)
    gap_days: Final[NDArray[np.float32]]  # (n,) 0 with a single purchase
    last: Final[NDArray[np.int64]]  # (n,) microseconds since the epoch
    basis: Final[NDArray[np.uint64]]  # (n,)

    def __len__(self) -> int:
        return len(self.item)


class UserRecord:
    """Everything that a snapshot holds about one person. Each table is checked and cut out when it is asked for: ask once.

    Raises:
        SnapshotCorrupt: where a table is asked for that is not what was written.
    """

    __slots__ = ("_row", "_tables")

    def __init__(self, tables: Mapping[str, Callable[[int], Any]], row: int) -> None:
        """
        Args:
            tables: by name, what gives a row's part of the table.
            row: of the person in them.
        """
        self._tables = tables
        self._row = row

    @property
    def candidates(self) -> Candidates:
        """What may be shown."""
        part: Candidates = self._tables["candidates"](self._row)
        return part

    @property
    def sums(self) -> Sums:
        """What their vector is made of."""
        part: Sums = self._tables["sums"](self._row)
        return part

    @property
    def seen(self) -> Seen:
        """What need not be shown again."""
        part: Seen = self._tables["seen"](self._row)
        return part

    @property
    def mix(self) -> Mix:
        """Their interests."""
        part: Mix = self._tables["mix"](self._row)
        return part

    @property
    def cadence(self) -> Cadence:
        """What they buy again."""
        part: Cadence = self._tables["cadence"](self._row)
        return part
