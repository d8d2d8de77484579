"""Who people are, which no log tells: groups that differ in activity and taste, age, and how they waver in consent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.draws import Bools, Floats, Ints, Stream, generator, unit
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import SHELVES, STYLES

# The large group is the measure: what is popular is what it likes.
GROUPS = ("large", "middle", "small")
_SHARES = np.array([0.6, 0.28, 0.12])
_LESS_ACTIVE = np.array([0.0, 0.35, 0.6])  # at full contrast
_OTHER_SHELVES = 1.0  # spread of the log-odds by which a group prefers a shelf
_OTHER_STYLE = 1.5  # against tastes of length 1 or so
ADULT, YOUTH, CHILD = range(3)
AGES = ("18+", "16-17", "13-15")
_GUARDED = 0.25  # minors for whom a guardian granted something

# What those do who change their mind: leave a source or training for good or everything, or come back to it later.
STEADY, SOURCE_PAUSED, ALL_PAUSED, SOURCE_LEFT, ALL_LEFT, TRAIN_LEFT = range(6)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """U people."""

    group: Ints  # code of GROUPS
    activity: Floats  # times the mean
    shelves: Floats  # (U, L) log-odds that the group adds to an interest
    style: Floats  # (U, STYLES) what the group adds to the taste
    age: Ints  # code of AGES
    guarded: Bools  # a minor for whom a guardian granted
    wavering: Ints  # what an adult would do who granted everything
    doubted: Ints  # the source that somebody leaves who leaves one


def divide(settings: ShopSettings) -> Groups:
    """Draw the groups of a shop's people. They know nothing of segment, region or id."""
    rng, count = generator(settings.seed, Stream.GROUPS), settings.users
    group = np.searchsorted(np.cumsum(_SHARES), rng.random(count), "right").clip(max=len(GROUPS) - 1)
    others = np.array([0.0, 1.0, 1.0])[:, None] * settings.group_contrast
    activity = 1 - settings.group_contrast * _LESS_ACTIVE
    shelves = others * _OTHER_SHELVES * rng.standard_normal((len(GROUPS), len(SHELVES)))
    style = others * _OTHER_STYLE * unit(rng.standard_normal((len(GROUPS), STYLES)))
    minor = rng.random(count) < settings.minor_share
    wavers = rng.random(count) < settings.wavering_share
    return Groups(
        group=group,
        activity=(activity / (activity @ _SHARES))[group],
        shelves=shelves[group],
        style=style[group],
        age=np.where(minor, rng.integers(YOUTH, CHILD + 1, count), ADULT),
        guarded=minor & (rng.random(count) < _GUARDED),
        wavering=np.where(wavers, rng.integers(SOURCE_PAUSED, TRAIN_LEFT + 1, count), STEADY),
        doubted=rng.integers(len(settings.sources), size=count),
    )
