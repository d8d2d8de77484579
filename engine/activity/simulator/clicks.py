"""What people do with a page: the dynamic Bayesian network click model.

A person looks at the page from the top. A look turns into a click by the item's attraction, and a click ends the search
by the satisfaction that the item gives, which is another thing than its attraction; otherwise the person goes on to the
next item with a fixed patience. Source: Chapelle & Zhang 2009, doi:10.1145/1526709.1526711.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.draws import Bools, Floats

PATIENCE = 0.86


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """(S, P) masks over the slots of S pages."""

    examined: Bools
    clicked: Bools
    satisfied: Bools


def look(shown: Bools, attraction: Floats, satisfaction: Floats, rng: np.random.Generator) -> Looks:
    """Walk down S pages of P slots at once.

    Args:
        shown: (S, P) slots that hold an item; the others are skipped as if they were not there.
        attraction: (S, P) probability of a click when looked at.
        satisfaction: (S, P) probability that a click ends the search.
    """
    would_click = rng.random(shown.shape) < attraction
    would_satisfy = rng.random(shown.shape) < satisfaction
    gives_up = rng.random(shown.shape) >= PATIENCE
    ends = shown & (gives_up | (would_click & would_satisfy))
    # Who ends at a slot has still seen it, so the end counts from the next slot on.
    before = np.zeros_like(ends)
    before[:, 1:] = np.logical_or.accumulate(ends, axis=1)[:, :-1]
    examined = shown & ~before
    clicked = examined & would_click
    return Looks(examined, clicked, clicked & would_satisfy)
