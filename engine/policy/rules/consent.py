"""Consent: nothing is shown without every grant it relies on. What is unknown counts as not granted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.policy import compiled
from engine.policy.compiled import GRANTABLE
from engine.policy.slate import Alternatives, Moment, Slate, Verdict, everyone
from engine.schema import NEVER, TODAY

NOT_GRANTED = "not_granted"


def allowed(basis: NDArray[np.uint64], granted: int, granted_today: int = 0) -> NDArray[np.bool_]:
    """Which bases lie inside the grants; any shape. An unused alternative never does.

    Args:
        granted_today: what may be used of today's events besides: by bases with schema.TODAY alone.
    """
    inside: NDArray[np.bool_] = (basis & np.uint64(NEVER & ~(granted & GRANTABLE))) == 0
    if granted_today & GRANTABLE:
        of_today = (basis & np.uint64(TODAY)) != 0
        withheld = np.uint64(NEVER & ~((granted | granted_today) & GRANTABLE | TODAY))
        inside |= of_today & (basis != np.uint64(NEVER)) & ((basis & withheld) == 0)
    return inside


def resolve(candidates: Alternatives, granted: int, granted_today: int = 0) -> Slate:
    """Give each candidate the best way that the grants allow, and drop those that have none.

    Args:
        candidates: (n,) items with ways of (n, ways) or (n,).
        granted, granted_today: masks of what the person allows, after the dial.

    Returns:
        the candidates left, best score first; equal scores keep the order of the input. A score that is no number, or
        minus infinity, is none.

    Raises:
        ValueError: columns of different lengths.
    """
    item, basis, score = candidates.item, candidates.basis, candidates.score
    masks = granted & GRANTABLE, granted_today & GRANTABLE
    try:
        kept, way = compiled.resolve(item, basis, score, *masks)
    except TypeError:  # of another layout or kind than a snapshot's
        item, score = np.ascontiguousarray(item, np.int32), np.ascontiguousarray(score, np.float32)
        kept, way = compiled.resolve(item, np.ascontiguousarray(basis, np.uint64), score, *masks)
    return Slate.of_ways(candidates, kept, way)


@dataclass(frozen=True, slots=True)
class Consent:
    """Looks again at every basis. It stands last in every chain, so that no rule before it can cause a leak."""

    name: ClassVar[str] = "consent"

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what relies on a grant that is not given."""
        basis, granted, today = slate.basis, moment.granted, moment.granted_today
        if not compiled.outside(
            basis, granted & GRANTABLE, today & GRANTABLE
        ):  # as good as always: `resolve` came first
            return Verdict(everyone(len(basis)))
        return Verdict.keeping(allowed(basis, granted, today), NOT_GRANTED)
