"""Whether a chance that is told is the share of times that it happens: the reliability curve (DeGroot & Fienberg 1983,
doi:10.2307/2987588) and its expected error (Naeini, Cooper & Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
F64 = NDArray[np.float64]


def tallies(
    chance: NDArray[np.floating], happened: NDArray[np.bool_], owner: NDArray[np.integer], people: int
) -> dict[str, F64]:
    """Sums by bin and person, whose means over any people give `curve` of all of them.

    Args:
        chance: (n,) told, 0..1. happened: (n,). owner: (n,) row of the person.

    Returns:
        by name, (people,) told, happened and counted in each bin.
    """
    place = np.clip(np.searchsorted(EDGES, chance, "right") - 1, 0, len(EDGES) - 2)
    sums: dict[str, F64] = {}
    for bin_ in range(len(EDGES) - 1):
        mine = place == bin_
        for kind, values in (("told", chance[mine]), ("happened", happened[mine]), ("counted", np.ones(mine.sum()))):
            sums[f"{bin_}.{kind}"] = np.bincount(owner[mine], values, people).astype(np.float64)
    return sums


def curve(means: Mapping[str, float]) -> dict[str, float]:
    """The mean chance told in each bin that has any, and the share of it that happened; and the expected error.

    Args:
        means: of `tallies`, over the same people.
    """
    figures: dict[str, float] = {}
    off = total = 0.0
    for bin_ in range(len(EDGES) - 1):
        told, happened, counted = (means.get(f"{bin_}.{kind}", 0.0) for kind in ("told", "happened", "counted"))
        if counted:
            name = f"{EDGES[bin_]:g}-{EDGES[bin_ + 1]:g}"
            figures |= {f"{name}.told": told / counted, f"{name}.happened": happened / counted}
            off, total = off + abs(told - happened), total + counted
    return figures | ({"error": off / total, "offers": total} if total else {})
