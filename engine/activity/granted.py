"""What a night may keep: the events for which people granted something, no more of each than the cap; compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from engine.activity.merge import Packed
from engine.schema import ACTIVITY, USER_KEY

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Granted:
    """schema.ACTIVITY by person, time, item, event, source and weight; and what was left out.

    no_grant, over: events left out. people: of whom something is kept. oldest: microseconds by event code of what is kept.
    """

    activity: pa.Table
    no_grant: int
    over: int
    people: int
    oldest: dict[int, int]


def granted_events(
    people: tuple[NDArray[np.bytes_], NDArray[np.uint64]],
    events: tuple[Packed, NDArray[np.int64]],
    sensitive: NDArray[np.bool_],
    masks: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    want: NDArray[np.float32],
    gift_weight: float,
    most: int,
) -> Granted:
    """Drop what nobody granted, then what is more than the latest `most` of a person.

    Args:
        people: (P,) keys, and what each granted.
        events: by person in settled order, and where those of each person end.
        sensitive: (I,) items whose events tell more than others.
        masks: by source, what a sensitive item needs besides, and the masks whose grant training and profiling need.
        want: (256,) by event code; wants and the rest are capped apart: no flood of dismissals pushes out what somebody bought.
    """
    keys, granted = people
    halves = np.frombuffer(keys.tobytes(), np.uint64).reshape(-1, 2)
    weights = np.stack([want, want * np.float32(gift_weight)])
    needed = np.full((3, 256), np.iinfo(np.uint64).max)
    needed[:, : len(masks[0])] = masks
    kinds = ((np.uint64, 2), np.int32, np.uint8, np.int64, np.float32, np.uint8, np.bool_, np.bool_)
    out = tuple(np.empty(len(events[0]), kind) for kind in kinds)
    facts, oldest = _kept((halves, granted), events, sensitive, needed, weights, most, out)
    spread, *rest = (column[facts[3] :] for column in out)
    arrays = [pa.FixedSizeBinaryArray.from_buffers(USER_KEY, len(spread), [None, pa.py_buffer(spread)])]
    arrays += [pa.array(column).cast(field.type) for field, column in zip(list(ACTIVITY)[1:], rest, strict=True)]
    met = {code: int(oldest[code]) for code in np.flatnonzero(oldest < _NEVER).tolist()}
    return Granted(pa.table(arrays, schema=ACTIVITY), int(facts[0]), int(facts[1]), int(facts[2]), met)


@njit(cache=True, nogil=True)
def _kept(
    people: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    given: tuple[Packed, NDArray[np.int64]],
    sensitive: NDArray[np.bool_],
    needed: NDArray[np.uint64],
    weights: NDArray[np.float32],
    most: int,
    out: tuple[Any, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    halves, granted = people
    events, ends = given
    total = len(events)
    out_key, out_item, out_event, out_ts, out_weight, out_source, out_train, out_profile = out
    oldest, facts = np.full(weights.shape[1], _NEVER), np.zeros(4, np.int64)
    into = total  # backwards, as the latest are those that are kept
    for person in range(len(ends) - 1, -1, -1):
        before, wants, others = into, 0, 0
        begin = ends[person - 1] if person else 0
        for at in range(ends[person] - 1, begin - 1, -1):
            event = events[at]
            more = needed[0, event.source] if sensitive[event.item] else np.uint64(0)
            train, profile = needed[1, event.source] | more, needed[2, event.source] | more
            trains, profiles = (granted[person] & train) == train, (granted[person] & profile) == profile
            if not (trains or profiles):
                facts[0] += 1
                continue
            wanted = weights[0, event.event] > 0
            if (wants if wanted else others) >= most:
                facts[1] += 1
                continue
            wants += wanted
            others += not wanted
            into -= 1
            out_key[into, 0], out_key[into, 1] = halves[person, 0], halves[person, 1]
            out_item[into], out_event[into], out_ts[into] = event.item, event.event, event.ts
            out_weight[into], out_source[into] = weights[np.int64(event.gift), event.event], event.source
            out_train[into], out_profile[into] = trains, profiles
            oldest[event.event] = min(oldest[event.event], event.ts)
        facts[2] += into < before
    facts[3] = into
    return facts, oldest
