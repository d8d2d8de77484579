"""What may be chosen about ranking; apart from it, so that a job that only passes it on need not load torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class RankSettings:
    """How candidates are found and merged.

    candidates: kept per person. least_each: of these, how many are kept for each lane and basis, so that a withdrawal leaves a
    list. reasoned: of how many of a person's first candidates the evidence is kept where their rank rests on it, so that a reason
    may name it: 20 are promised, and live rules bring up others from below. seen: days for which an event hides its item from
    every lane but `usual`, by event; 0: for ever. horizon_days: what a score counts wants within. mass_days: half-life of a
    person's wants. lanes: parameters by lane name.
    """

    candidates: int = 300
    least_each: int = 40
    reasoned: int = 40
    seen: dict[str, float] = field(default_factory=lambda: {"purchase": 0.0, "dismiss": 0.0, "like": 0.0})
    horizon_days: float = 7.0
    mass_days: float = 120.0
    lanes: dict[str, dict[str, Any]] = field(default_factory=dict)
