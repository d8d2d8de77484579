"""What may be chosen about towers and training; apart from them, so that a job that only passes it on need not load torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TowerSettings:
    """Shape of both towers. width: D; half_lives: days, one per decay; gap_minutes: how long before a want the history ends."""

    name: str = "decayed_pooling"
    width: int = 64
    hashed: int = 32_768
    half_lives: list[float] = field(default_factory=lambda: [3.0, 30.0, 300.0])
    dropout: float = 0.3
    id_dropout: float = 0.1
    gap_minutes: float = 60.0


@dataclass(slots=True)
class TrainSettings:
    """How to fit. wanted: least interest weight of a target; fresh_only: only a first want of an item is a target."""

    epochs: int = 4
    events: int = 2048  # a batch, about
    window: int = 64
    rate: float = 2e-3
    decay: float = 0.01
    smoothing: float = 0.1
    wanted: float = 1.0
    fresh_only: bool = True
    full_up_to: int = 20_000  # items; past that, a sample of negatives
    negatives: int = 4096
    workers: int = 1
    seed: int = 7
