"""What the caps share: no value takes more than its share of a list, while there is anything else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import PolicyError
from engine.policy import compiled
from engine.policy.slate import Moment, Slate, Verdict


def capped(slate: Slate, moment: Moment, values: NDArray[np.int32], share: float, reason: str) -> Verdict:
    """Keep the first few of each value, at least one; those of none (negative) are not capped.

    What is over the cap comes back, last, only where the list would otherwise be shorter than asked for. Elsewhere the cap
    holds for the whole slate, so it still holds when a later rule reorders or removes.

    Args:
        values: (I,) of the catalogue. share: of the list that one value may take.
        reason: of what is over the cap and not needed.
    """
    most = max(1, int(share * moment.limit + 1e-9))  # 0.29 * 100 is a little less than 29
    kept = compiled.beyond(slate.item, values, most, moment.limit)
    return Verdict(kept, {reason: len(slate.item) - len(kept)})


def check_share(rule: str, share: float) -> None:
    """Raises:
    PolicyError: the share is not one of a list.
    """
    if not 0 < share <= 1:
        raise PolicyError(f"{rule}: share is {share}.", "Choose it over 0 and up to 1.")
