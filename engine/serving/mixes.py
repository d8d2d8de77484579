"""What a person's interest is made of at this moment: the night's mix with today's events in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.policy import allowed
from engine.schema import NOBODY
from engine.serving.todays import Todays
from engine.snapshot import Mix


def mix_of(stored: Mix | None, todays: Todays | None, granted: int, root: NDArray[np.int32], mass: float) -> Mix | None:
    """Shares of categories, of what may be used; None where there is nothing.

    Args:
        granted: mask, of what is stored. root: (I,) category of each item; -1: none. mass: of the person's stored wants, all of
            them, in the weights of today's.
    """
    category, amount = np.empty(0, np.int32), np.empty(0, np.float64)
    if stored is not None:
        usable = allowed(stored.basis, granted) & (stored.share > 0)
        category, amount = stored.category[usable], stored.share[usable].astype(np.float64) * mass
    if todays is not None and len(todays.item):
        category = np.concatenate([category, root[todays.item]])
        amount = np.concatenate([amount, todays.weight])
    known = category >= 0
    every, place = np.unique(category[known], return_inverse=True)
    total = np.bincount(place, amount[known], len(every))
    if not total.sum() > 0:
        return None
    basis = np.full(len(every), NOBODY, np.uint64)  # what may not be used is left out already
    return Mix(every.astype(np.int32), (total / total.sum()).astype(np.float32), basis)
