"""Take back what was cancelled, by person and item: the latest first, as off a stack."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.activity.columns import UNDO
from engine.activity.order import Events

_ROUNDING = 1e-6  # a share of a value that is left by sums of fractions, not by anybody's wish


def standing(events: Events, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) which events still hold after those that take something back; these themselves never do.

    Events put their `value` on top, undoing events take theirs off the top, and an event of which nothing is left goes.
    Where a value of the stack is missing or 0, each counts as one: one undoing event takes back one event.

    Args:
        events: in settled order. known: (N,) of a person; of nobody, nothing can be taken back.
    """
    takes = events.event >= UNDO
    stands = ~takes
    if not (takes & known).any():
        return stands
    pair = (events.person.astype(np.int64) << 32) | events.item
    touched = np.flatnonzero(known & np.isin(pair, np.unique(pair[takes & known])))
    stack = ["pair", "of"]
    amount = pl.col("value").abs()
    counted = (amount.fill_nan(0).fill_null(0) == 0).any().over(stack)
    walk = pl.col("step").cum_sum().over(stack)
    height = pl.col("walk") - pl.min_horizontal(pl.col("walk").cum_min().over(stack), 0.0)  # an empty stack stays empty
    lowest_after = pl.col("height").cum_min(reverse=True).over(stack)
    left = (
        pl.DataFrame(
            {
                "row": touched,
                "pair": pair[touched],
                "of": events.event[touched] % UNDO,
                "takes": takes[touched],
                **{name: getattr(events, name)[touched] for name in ("ts", "event", "value", "source", "gift")},
            }
        )
        .sort(*stack, "ts", "event", "value", "source", "gift")
        .with_columns(size=pl.when(counted).then(1.0).otherwise(amount))
        .with_columns(step=pl.when(pl.col("takes")).then(-pl.col("size")).otherwise(pl.col("size")))
        .with_columns(walk=walk)
        .with_columns(height=height)
        .with_columns(left=lowest_after - (pl.col("height") - pl.col("size")))
        .filter((pl.col("takes").any().over(stack)) & ~pl.col("takes"))
        .filter(pl.col("left") <= _ROUNDING * pl.col("size"))
    )
    stands[left["row"].to_numpy()] = False
    return stands
