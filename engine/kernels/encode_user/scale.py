"""What a night knew when it scored its candidates, and a snapshot passes on so that the server scores on the same scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.kernels.encode_user.reference import MICROSECONDS_A_DAY
from engine.schema import EVENTS

# Lanes that the tower alone decides; the second looks at the tail alone.
OVER_ALL, OVER_TAIL = "two_tower", "discovery"
_SHAPES = {"moment": (2,), "fresh_rate": (1,), "mass_decay": (1,)}
_LANE = "lane."
_WEIGHTS, _GIFT, _HIDES, _SIMILAR = "event_weights", "gift_weight", "hides_days", "lane.similar"
_KEEPS = -1.0  # days, in hides_days: the event hides nothing


class Similar(NamedTuple):
    """How the night's lane `similar` looked for what goes with something: keep items a profile, trust, half_life in days, and the
    latest items of each group of events.
    """

    keep: int
    trust: float
    half_life: float
    latest: int


@dataclass(frozen=True, slots=True)
class Scale:
    """moment: of the night, microseconds since the epoch. fresh_rate: new wants per square root of mass. decay: of the tower's,
    by which mass fades. lanes: keep and trust of OVER_ALL and OVER_TAIL, as far as the night asked them.

    event_weights: by code of schema.EVENTS, what an event says of interest; times gift_weight where it was a gift. hides: by
    code, days for which an event hides its item from every lane but `usual`; 0: for ever. similar: None where the night did not
    ask that lane. Snapshots from before these were thought of weigh no event, and hide nothing by it.
    """

    moment: int
    fresh_rate: float
    decay: int
    lanes: Mapping[str, tuple[int, float]]
    event_weights: tuple[float, ...] = (0.0,) * len(EVENTS)
    gift_weight: float = 0.0
    hides: Mapping[int, float] = field(default_factory=dict)
    similar: Similar | None = None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Small float32 arrays by name, to lie beside the tower's parameters; the moment is kept to the hundredth of a second."""
        days, rest = divmod(self.moment, MICROSECONDS_A_DAY)
        numbers: dict[str, tuple[float, ...]] = {
            "moment": (days, rest / 1e6),
            "fresh_rate": (self.fresh_rate,),
            "mass_decay": (self.decay,),
        }
        numbers |= {_LANE + name: both for name, both in self.lanes.items()}
        if any(self.event_weights):
            numbers |= {_WEIGHTS: self.event_weights, _GIFT: (self.gift_weight,)}
        if self.hides:
            numbers[_HIDES] = tuple(self.hides.get(code, _KEEPS) for code in range(len(EVENTS)))
        if self.similar is not None:
            numbers[_SIMILAR] = self.similar
        return {name: np.array(value, np.float32) for name, value in numbers.items()}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Scale | None:
        """What `arrays` gave; None where it is not all there, or no lane was asked."""
        lanes = {name: _LANE + name for name in (OVER_ALL, OVER_TAIL) if _LANE + name in arrays}
        wanted = _SHAPES | dict.fromkeys(lanes.values(), (2,))
        if not lanes or any(name not in arrays or arrays[name].shape != shape for name, shape in wanted.items()):
            return None
        days, seconds = arrays["moment"].tolist()
        weights, gift = _by_event(arrays, _WEIGHTS, 0.0), _numbers(arrays, _GIFT, 1)
        similar = _numbers(arrays, _SIMILAR, len(Similar._fields))
        return cls(
            int(days) * MICROSECONDS_A_DAY + round(seconds * 1e6),
            float(arrays["fresh_rate"][0]),
            int(arrays["mass_decay"][0]),
            {name: (int(arrays[label][0]), float(arrays[label][1])) for name, label in lanes.items()},
            weights,
            gift[0] if gift else 0.0,
            {code: days for code, days in enumerate(_by_event(arrays, _HIDES, _KEEPS)) if days >= 0},
            Similar(int(similar[0]), similar[1], similar[2], int(similar[3])) if similar else None,
        )


def _numbers(arrays: Mapping[str, NDArray[np.float32]], name: str, count: int) -> list[float]:
    """The numbers of an array; none where it is not there or something else."""
    array = arrays.get(name)
    return array.tolist() if array is not None and array.shape == (count,) else []


def _by_event(arrays: Mapping[str, NDArray[np.float32]], name: str, absent: float) -> tuple[float, ...]:
    """(len(EVENTS),) numbers by event; of events that the snapshot did not know yet, or has no array for, `absent`."""
    array = arrays.get(name)
    told = array.tolist()[: len(EVENTS)] if array is not None and array.ndim == 1 else []
    return (*told, *[absent] * (len(EVENTS) - len(told)))
