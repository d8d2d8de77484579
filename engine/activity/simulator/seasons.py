"""The year on the shelves: demand that rises and falls, and is the same every year."""

from __future__ import annotations

import datetime as dt

import numpy as np

from engine.activity.simulator.draws import Floats
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import SHELVES

# Shelf: day of the year on which it is asked for most, and demand on that day over demand half a year away from it.
# A shelf that is not here is asked for alike all year.
_YEAR = {
    "Bird Care": (5, 3.0), "Tea": (15, 2.0), "Remedies": (20, 2.0), "Seeds": (95, 5.0), "Garden Tools": (110, 3.5),
    "Pots & Planters": (125, 3.5), "Running": (130, 1.8), "Cycling": (160, 3.0), "Travel Books": (165, 2.0),
    "Climbing": (175, 2.0), "Skin Care": (180, 1.6), "Camping": (185, 5.0), "Bedding": (330, 1.6),
    "Candles": (340, 3.0), "Chocolate": (345, 2.5), "Picture Books": (345, 2.0), "Board Games": (345, 2.5),
    "Jigsaw Puzzles": (350, 2.0), "Wine": (350, 2.0),
}  # fmt: skip
_DAYS = 365.25
PEAK = np.array([_YEAR.get(shelf.leaf, (1, 1.0))[0] for shelf in SHELVES])
_SWING = np.array([_YEAR.get(shelf.leaf, (1, 1.0))[1] for shelf in SHELVES])


def factors(settings: ShopSettings, day: int) -> Floats:
    """(L,) the demand for each shelf on a day of the log, as a multiple of its mean over the year."""
    date = settings.start + dt.timedelta(days=day)
    return _demand(settings, np.cos(2 * np.pi * (date.timetuple().tm_yday - PEAK) / _DAYS))


def extremes(settings: ShopSettings) -> tuple[Floats, Floats]:
    """(L,) the factors on the day of the peak, and half a year away from it."""
    return _demand(settings, np.ones(len(SHELVES))), _demand(settings, -np.ones(len(SHELVES)))


def _demand(settings: ShopSettings, height: Floats) -> Floats:
    """height (L,): 1 at the peak, -1 in the trough."""
    strength = settings.seasons * np.log(_SWING) / 2
    # The mean of exp(a cos x) over a turn is the modified Bessel function I0(a).
    return np.asarray(np.exp(strength * height) / np.i0(strength))
