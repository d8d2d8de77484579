"""Consent: nothing is shown without every grant it relies on. What is unknown counts as not granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.consent.vocabulary import MAX_BITS
from engine.policy.slate import Alternatives, Moment, Slate, Verdict
from engine.schema import NEVER

NOT_GRANTED = "not_granted"
# No vocabulary reaches past these bits. Masking to them keeps schema.NEVER out whatever a caller passes as granted.
_GRANTABLE = (1 << MAX_BITS) - 1
_OUT = np.float32(-np.inf)
_EVERY = np.arange(4096)
_EVERY.flags.writeable = False
_NOTHING: Mapping[str, int] = MappingProxyType({})


def allowed(basis: NDArray[np.uint64], granted: int) -> NDArray[np.bool_]:
    """Which bases lie inside the grants; any shape. An unused alternative never does."""
    inside: NDArray[np.bool_] = (basis & np.uint64(_withheld(granted))) == 0
    return inside


@njit("uint64(uint64[:])", cache=True)
def _relied_on(basis: NDArray[np.uint64]) -> np.uint64:
    """All bits of all bases: a quarter of what NumPy's reduction takes over 500."""
    relied_on = np.uint64(0)
    for each in basis:
        relied_on |= each
    return relied_on


def _withheld(granted: int) -> int:
    return NEVER & ~(granted & _GRANTABLE)


def resolve(candidates: Alternatives, granted: int) -> Slate:
    """Give each candidate the best way that the grants allow, and drop those that have none.

    Args:
        candidates: (n,) items with ways of (n, ways) or (n,).
        granted: mask of what the person allows, after the dial.

    Returns:
        the candidates left, best score first; equal scores keep the order of the input.
    """
    ways = candidates.basis.shape[1] if candidates.basis.ndim == 2 else 1
    scores = np.where(allowed(candidates.basis, granted), candidates.score, _OUT).reshape(-1)
    chosen = scores.reshape(-1, ways).argmax(axis=1) + np.arange(0, len(scores), ways)
    best = scores[chosen]
    # Where nothing is allowed argmax still answers; its score then is no score, as is that of a broken model.
    usable = np.flatnonzero(best > _OUT)
    usable = usable[np.argsort(-best[usable], kind="stable")]
    chosen = chosen[usable]
    return Slate(
        candidates.item.take(usable),
        candidates.lane.take(chosen),
        candidates.basis.take(chosen),
        best.take(usable),
        candidates.evidence.take(chosen),
    )


@dataclass(frozen=True, slots=True)
class Consent:
    """Looks again at every basis. It stands last in every chain, so that no rule before it can cause a leak."""

    name: ClassVar[str] = "consent"

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Remove what relies on a grant that is not given."""
        if not int(np.bitwise_or.reduce(slate.basis)) & _withheld(
            moment.granted
        ):  # as good as always: `resolve` came first
            return Verdict(_EVERY[: len(slate)] if len(slate) <= len(_EVERY) else np.arange(len(slate)))
        return Verdict.keeping(allowed(slate.basis, moment.granted), NOT_GRANTED)
