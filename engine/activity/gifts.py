"""That was a gift: said afterwards, it counts for the purchase as the flag on the purchase does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.activity.merge import Packed
from engine.schema import EVENTS, PURCHASE

_GIFT = EVENTS.index("gift")


def mark_gifts(events: Packed, ends: NDArray[np.int64]) -> None:
    """Flag, for each event `gift`, its person's latest purchase of the item before it, and no other; in place.

    Said twice of one purchase, it is still that one. Like a cancellation it counts whichever source it came by: it takes away
    from what may be made of a purchase, and adds nothing.

    Args:
        events: by person in settled order, without what was taken back, and where those of each person end.
    """
    gifts = np.flatnonzero(events["event"] == _GIFT)
    if not len(gifts):
        return
    bought = np.flatnonzero(events["event"] == PURCHASE)
    pairs, given = np.unique(_pairs(events, ends, gifts), return_inverse=True)
    theirs = _pairs(events, ends, bought)
    place = np.minimum(np.searchsorted(pairs, theirs), len(pairs) - 1)
    there = pairs[place] == theirs
    bought, place = bought[there], place[there]
    order = np.lexsort((bought, place))
    bought, spans = bought[order], place[order] * len(events) + bought[order]
    latest = np.searchsorted(spans, given * len(events) + gifts) - 1
    found = latest >= 0
    found[found] = spans[latest[found]] // len(events) == given[found]
    events["gift"][bought[latest[found]]] = True


def _pairs(events: Packed, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    person = np.searchsorted(ends, rows, side="right")
    pairs: NDArray[np.int64] = (person << 32) | events["item"][rows]
    return pairs
