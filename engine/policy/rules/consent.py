"""Consent: nothing is shown without every grant it relies on. What is unknown counts as not granted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.consent.vocabulary import MAX_BITS
from engine.policy.slate import Alternatives, Moment, Slate, Verdict
from engine.schema import NEVER

NOT_GRANTED = "not_granted"
# No vocabulary reaches past these bits. Masking to them keeps schema.NEVER out whatever a caller passes as granted.
_GRANTABLE = (1 << MAX_BITS) - 1


def allowed(basis: NDArray[np.uint64], granted: int) -> NDArray[np.bool_]:
    """Which bases lie inside the grants; any shape. An unused alternative never does."""
    withheld = np.uint64(NEVER & ~(granted & _GRANTABLE))
    inside: NDArray[np.bool_] = (basis & withheld) == 0
    return inside


def resolve(candidates: Alternatives, granted: int) -> Slate:
    """Give each candidate the best way that the grants allow, and drop those that have none.

    Args:
        candidates: (n,) items with ways of (n, ways) or (n,).
        granted: mask of what the person allows, after the dial.

    Returns:
        the candidates left, best score first; equal scores keep the order of the input.
    """
    ways = candidates.basis.shape[1] if candidates.basis.ndim == 2 else 1
    basis = candidates.basis.reshape(-1)
    scores = np.where(allowed(basis, granted), candidates.score.reshape(-1), np.float32(-np.inf))
    chosen = scores.reshape(-1, ways).argmax(axis=1) + np.arange(0, len(basis), ways)
    # argmax answers even where nothing is allowed, so what it chose is asked again.
    usable = np.flatnonzero(allowed(basis[chosen], granted))
    usable = usable[np.argsort(-scores[chosen[usable]], kind="stable")]
    chosen = chosen[usable]
    return Slate(
        candidates.item[usable],
        candidates.lane.reshape(-1)[chosen],
        basis[chosen],
        scores[chosen],
        candidates.evidence.reshape(-1)[chosen],
    )


@dataclass(frozen=True, slots=True)
class Consent:
    """Looks again at every basis. It stands last in every chain, so that no rule before it can cause a leak."""

    name: ClassVar[str] = "consent"

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what relies on a grant that is not given."""
        return Verdict.keeping(allowed(slate.basis, moment.granted), NOT_GRANTED)
