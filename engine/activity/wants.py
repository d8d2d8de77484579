"""How popular each item is: what people want of it, faded by time; compiled, for it looks at every event."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.activity.columns import DAY
from engine.activity.merge import Packed

_MOST_HALVES = 1000.0  # a float holds about as many


def popular(
    events: Packed,
    ends: NDArray[np.int64],
    strangers: Packed,
    want: NDArray[np.float32],
    when: tuple[int, tuple[int, ...], float],
    items: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """By moment and item, what is wanted. Each person counts once an item, by what is strongest of their wants then; each
    anonymous event counts alone.

    Args:
        events: by person, with where those of each person end. strangers: the anonymous ones.
        want: (256,) by event code. when: the night's time, the moments, microseconds since the epoch, and days that halve a want.

    Returns:
        (M, items) weights; (M, items) people; (M, items) where anybody wanted anything.
    """
    as_of, moments, half_life = when
    scale = DAY * half_life
    weight, many = _of_people(events, ends, want.astype(np.float64), (float(as_of), scale), np.array(moments), items)
    there = many > 0
    alone = strangers[want[strangers["event"]] > 0]
    strength = want[alone["event"]].astype(np.float64) * np.exp2(-(as_of - alone["ts"]) / scale)
    for number, moment in enumerate(moments):
        by_then = alone["ts"] <= moment
        item = alone["item"][by_then]
        weight[number] += np.bincount(item, strength[by_then], items)
        there[number, item] = True
        weight[number] *= np.exp2(min((as_of - moment) / scale, _MOST_HALVES))
    return weight, many, there


@njit(cache=True, nogil=True)
def _of_people(
    events: Packed,
    ends: NDArray[np.int64],
    want: NDArray[np.float64],
    fading: tuple[float, float],
    moments: NDArray[np.int64],
    items: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    as_of, scale = fading
    many = len(moments)
    weight, people = np.zeros((many, items)), np.zeros((many, items), np.int64)
    # Whose want of an item was met last, so that nothing is cleared between two people.
    owner, strongest = np.full((many, items), -1, np.int32), np.empty((many, items))
    begin = 0
    for person in range(len(ends)):
        for at in range(begin, ends[person]):
            event = events[at]
            if want[event.event] <= 0:
                continue
            strength, place = want[event.event] * np.exp2(-(as_of - event.ts) / scale), event.item
            for moment in range(many):
                if event.ts <= moments[moment]:
                    if owner[moment, place] != person:
                        owner[moment, place], strongest[moment, place] = person, strength
                    elif strength > strongest[moment, place]:
                        strongest[moment, place] = strength
        for at in range(begin, ends[person]):
            place = events[at].item
            for moment in range(many):
                if owner[moment, place] == person:
                    owner[moment, place] = -1
                    weight[moment, place] += strongest[moment, place]
                    people[moment, place] += 1
        begin = ends[person]
    return weight, people
