"""Calibration: the list's mix of categories follows the person's own, the quiet interests included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.errors import PolicyError
from engine.kernels.rerank import cpu
from engine.policy import compiled
from engine.policy.compiled import GRANTABLE
from engine.policy.positions import falling, foremost
from engine.policy.slate import Moment, Slate, Verdict, everyone


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fills the list by calibrated relevance (Steck 2018, doi:10.1145/3240323.3240372) over root categories; the other
    candidates follow in their order. Without a mix the order stays.

    Args:
        strength: 0 leaves the order, 1 looks at the mix alone.
        bound: divergence (KL, in nats) within which relevance alone decides.
        pool: how many of the first candidates may enter the list.
        burst: the share beyond which a category counts no further: a week of one thing is not all that somebody is.
    """

    name: ClassVar[str] = "calibration"
    strength: float = 0.3
    bound: float = 0.1
    pool: int = 100
    burst: float = 0.6

    def __post_init__(self) -> None:
        for name in ("strength", "burst"):
            if not 0 <= getattr(self, name) <= 1:
                raise PolicyError(f"calibration: {name} is {getattr(self, name)}.", "Choose it from 0 to 1.")
        if not self.burst:
            raise PolicyError("calibration: burst is 0.", "Choose it over 0: 1 guards against nothing.")
        if not self.bound >= 0 or self.pool < 1:
            raise PolicyError(
                f"calibration: bound={self.bound}, pool={self.pool}.",
                "Choose 0 or more, and at least 1; five lists long is usual.",
            )

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Reorder; removes nothing."""
        count = len(slate)
        pool = min(self.pool, count)
        if self.strength == 0 or pool < 2 or moment.mix is None:
            return Verdict(everyone(count))
        mix, granted, today = moment.mix, moment.granted & GRANTABLE, moment.granted_today & GRANTABLE
        kinds, target = compiled.targets(
            slate.item[:pool],
            moment.items.root_category,
            mix.category,
            mix.share,
            mix.basis,
            granted,
            today,
            self.burst,
        )
        if not len(target):
            return Verdict(everyone(count))
        first = cpu.calibrate(falling(pool), kinds, target, min(moment.limit, pool), self.strength, self.bound)
        return Verdict(foremost(first, count))
