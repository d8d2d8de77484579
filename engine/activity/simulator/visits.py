"""Who visits the shop on a day, why, on which shelf and through which source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.draws import Bools, Ints, pick, pick_within
from engine.activity.simulator.items import ROOT_OF, Items, any_shelf
from engine.activity.simulator.moods import Moods
from engine.activity.simulator.people import NEWCOMER, Needs, People
from engine.activity.simulator.seasons import factors
from engine.activity.simulator.settings import ShopSettings

BROWSE, REPEAT, GIFT = range(3)
REASONS = ("browse", "repeat", "gift")
STORE = "store"  # a till sees purchases alone, and shows no page
_EXPLORE = 0.08  # visits to a shelf that is no interest
_HOME = 0.5  # visits that begin at the home page, where somebody may hang up lists
_GIFT_VISITS = (2, 1.5)  # a day of a burst: at least, and the mean of what comes on top
_WEEK = np.array([0.90, 0.88, 0.92, 0.97, 1.08, 1.22, 1.03])  # Monday first; mean 1
_HOURS = np.array([1, 0.5, 0.3, 0.2, 0.3, 0.8, 2, 3.5, 4.5, 5, 5.5, 5.5, 6, 5.5, 5, 5, 5.5, 6.5, 7.5, 8.5, 9, 8, 6])
SECOND = 1_000_000
LAST_START = len(_HOURS) * 3600 * SECOND  # an hour before midnight: a visit ends on the day on which it starts


@dataclass(frozen=True, slots=True, eq=False)
class Visits:
    """V visits of one day."""

    person: Ints
    reason: Ints  # code of REASONS
    leaf: Ints  # shelf looked at; -1: a repeat purchase goes straight to its item
    item: Ints  # the item of a repeat purchase, or -1
    start: Ints  # microseconds since midnight
    source: Ints
    anonymous: Bools
    home: Bools  # begins at the home page, signed in: may be shown a list of one's own


def visit(
    settings: ShopSettings, items: Items, people: People, needs: Needs, moods: Moods, day: int, rng: np.random.Generator
) -> Visits:
    """Draw the visits of a day, and let the needs that fall due become purchases."""
    season = factors(settings, day)
    demand = items.demand * season
    loudness = people.interest_at(day / max(1, settings.days - 1))
    loudness *= np.append(season, 0.0)[people.interests]  # the last answers for -1, no interest
    # What a season adds to a shelf are visits that would else not be made.
    wanting, curious = (1 - _EXPLORE) * loudness.sum(axis=1), _EXPLORE * demand.sum()
    week = _WEEK[(settings.start.weekday() + day) % 7]
    often = rng.poisson(people.rate * moods.eagerness() * (wanting + curious) * week)
    often[people.arrival == day] = 1
    often[moods.gone] = 0
    browsing = np.repeat(np.arange(settings.users), often)
    giving = np.flatnonzero((people.gift_from <= day) & (day < people.gift_until) & ~moods.gone)
    giving = np.repeat(giving, _GIFT_VISITS[0] + rng.poisson(_GIFT_VISITS[1], len(giving)))
    repeating, item, moment = needs.fall_due(day, rng)
    stay = ~moods.gone[repeating]
    repeating, item, moment = repeating[stay], item[stay], moment[stay]

    wanted = people.interests[browsing, pick(loudness[browsing], rng)]
    explores = rng.random(len(browsing)) * (wanting[browsing] + curious) < curious
    wanted = np.where(explores, any_shelf(demand, len(browsing), rng), wanted)
    root = people.gift_root[giving]
    first, last = np.searchsorted(ROOT_OF, root), np.searchsorted(ROOT_OF, root, "right")
    leaves = (wanted, pick_within(demand, first, last, rng))
    person = np.concatenate([browsing, giving, repeating])
    shopping = len(browsing) + len(giving)
    start = _opening(shopping, rng)
    # Who just came signed up to be known.
    anonymous = (rng.random(len(person)) < settings.anonymous_share) & (people.segment[person] != NEWCOMER)
    reason = np.repeat([BROWSE, GIFT, REPEAT], [len(browsing), len(giving), len(repeating)])
    source = pick(people.sources[person], rng)
    home = (reason == BROWSE) & ~anonymous & (rng.random(len(person)) < _HOME)
    return Visits(
        person=person,
        reason=reason,
        leaf=np.concatenate([*leaves, np.full(len(repeating), -1)]),
        item=np.concatenate([np.full(shopping, -1), item]),
        start=np.concatenate([start, np.minimum(moment * 86_400 * SECOND, LAST_START).astype(np.int64)]),
        source=source,
        anonymous=anonymous,
        home=home & ~at_till(settings, source),
    )


def at_till(settings: ShopSettings, source: Ints) -> Bools:
    """(V,) which visits are to a till."""
    return np.isin(source, [code for code, name in enumerate(settings.sources) if name == STORE])


def _opening(count: int, rng: np.random.Generator) -> Ints:
    hour = pick(np.broadcast_to(_HOURS, (count, len(_HOURS))), rng)
    return np.asarray(((hour + rng.random(count)) * 3600 * SECOND).astype(np.int64))
