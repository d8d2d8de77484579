"""The people: segment, group, consent, tastes that drift, sources, gift bursts, and what they buy again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.activity.simulator.draws import Bools, Floats, Ints, Stream, generator, pick, serial_names, unit
from engine.activity.simulator.groups import ADULT, ALL_LEFT, SOURCE_LEFT, STEADY, divide
from engine.activity.simulator.items import PERIOD_OF, ROOT_OF, Items, evergreen_of
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import REGIONS, ROOTS, SHELVES, STYLES

NO_CONSENT, GIFT_BURST, NEWCOMER, REGULAR = range(4)
SEGMENTS = ("no_consent", "gift_burst", "newcomer", "regular")
NONE, SOME, ALL = range(3)
CONSENTS = ("none", "some", "all")
INTERESTS = 4
NEVER = -1
_LOUDNESS = np.array([1.0, 0.5, 0.3, 0.2])
_NEWCOMER_EVENTS = 3
_RATE_SPREAD = 1.0  # sigma of the log-normal; at 1 a fifth of the people make 60 % of the visits
_BUSIEST = 40.0  # times the mean
_JITTER = 0.12  # of a period, from one purchase to the next


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """U people; rows are grouped by segment, ids are not."""

    ids: pa.Array
    segment: Ints
    group: Ints
    age: Ints
    consent: Ints  # at the end of the log
    allowed: Bools  # (U, S) sources that the person allows in the end
    wavering: Ints  # how the person changes their mind meanwhile
    doubted: Ints  # the source that it is about, where it is about one
    region: Ints
    rate: Floats  # visits a day
    taste: Floats  # (U, STYLES), rows of length 1
    interests: Ints  # (U, INTERESTS) shelves, -1 where there are fewer
    at_start: Floats  # (U, INTERESTS) how loud each is on the first day and the last; rows sum to 1
    at_end: Floats
    sources: Floats  # (U, S) preference, rows sum to 1
    arrival: Ints  # a newcomer's only day, or NEVER
    quota: Ints  # events that a newcomer leaves
    gift_root: Ints  # where the person buys for somebody else, or NEVER
    gift_from: Ints  # first day of the burst, and the day after its last
    gift_until: Ints

    def interest_at(self, progress: float) -> Floats:
        """(U, INTERESTS) how loud the interests are, at 0 (first day) to 1 (last)."""
        return np.asarray((1 - progress) * self.at_start + progress * self.at_end)


def gather(settings: ShopSettings, items: Items) -> People:
    """Draw the people of a shop."""
    rng, count, groups = generator(settings.seed, Stream.PEOPLE), settings.users, divide(settings)
    shares = np.cumsum(
        [settings.no_consent_share, settings.gift_burst_share, settings.newcomer_share, settings.partial_consent_share]
    )
    edges = np.minimum(np.round(shares * count).astype(np.int64), count)
    row = np.arange(count)
    segment = np.minimum(np.searchsorted(edges, row, "right"), REGULAR)
    granted = np.where(row < edges[0], NONE, np.where((row >= edges[2]) & (row < edges[3]), SOME, ALL))
    # A minor grants nothing. A guardian may, and then for every source.
    granted = np.where(groups.age == ADULT, granted, np.where(groups.guarded & (granted != NONE), ALL, NONE))
    steady = (granted != ALL) | (segment != REGULAR) | (groups.age != ADULT)
    wavering = np.where(steady, STEADY, groups.wavering)
    leaves_one = (wavering == SOURCE_LEFT) & (len(settings.sources) > 1)
    leaves_all = (wavering == ALL_LEFT) | ((wavering == SOURCE_LEFT) & ~leaves_one)
    consent = np.where(leaves_all, NONE, np.where(leaves_one, SOME, granted))

    loves = np.log(items.demand) + groups.shelves + rng.gumbel(size=(count, len(SHELVES)))
    interests = np.argsort(-loves, axis=1, kind="stable")[:, :INTERESTS]
    has = np.arange(INTERESTS) < rng.integers(1, INTERESTS + 1, count)[:, None]
    at_start = np.where(has, _LOUDNESS * rng.lognormal(0.0, 0.2, (count, INTERESTS)), 0.0)
    at_start = -np.sort(-at_start, axis=1)  # loudest first
    at_start /= at_start.sum(axis=1, keepdims=True)
    # At full drift the interests have swapped places: the quietest one is the loudest.
    place = np.where(has, has.sum(axis=1, keepdims=True) - 1 - np.arange(INTERESTS), np.arange(INTERESTS))
    moved = (settings.drift * rng.random(count))[:, None]
    at_end = (1 - moved) * at_start + moved * np.take_along_axis(at_start, place, axis=1)

    own_root = np.zeros((count, len(ROOTS)), bool)
    own_root[np.repeat(row, has.sum(axis=1)), ROOT_OF[interests[has]]] = True
    foreign = np.argmax(rng.random((count, len(ROOTS))) * ~own_root, axis=1)
    length = np.minimum(rng.integers(2, 6, count), settings.days)
    earliest = np.minimum(int(settings.days * 0.4), settings.days - length)
    gift_from = rng.integers(earliest, settings.days - length + 1)
    earliest_arrival = max(0, settings.days - settings.newcomer_days)
    bursts, new = segment == GIFT_BURST, segment == NEWCOMER

    source_count = len(settings.sources)
    allowed = np.broadcast_to(((consent == ALL) | leaves_one)[:, None], (count, source_count)).copy()
    allowed[leaves_one, groups.doubted[leaves_one]] = False
    partial = np.flatnonzero(granted == SOME)
    wishes = rng.random((len(partial), source_count))
    # At least one source and, where there are two or more, not all of them.
    cut = rng.integers(1, max(2, source_count), len(partial))[:, None]
    allowed[partial] = np.argsort(np.argsort(wishes, axis=1), axis=1) < cut

    spread = np.minimum(rng.lognormal(-(_RATE_SPREAD**2) / 2, _RATE_SPREAD, count), _BUSIEST)
    return People(
        ids=serial_names("user", rng.permutation(count)),
        segment=segment,
        group=groups.group,
        age=groups.age,
        consent=consent,
        allowed=allowed,
        wavering=wavering,
        doubted=groups.doubted,
        region=rng.integers(len(REGIONS), size=count),
        rate=np.where(new, 0.0, settings.sessions_per_day * spread * groups.activity),
        taste=unit(rng.standard_normal((count, STYLES)) + groups.style),
        interests=np.where(has, interests, -1),
        at_start=at_start,
        at_end=at_end,
        sources=_preferences(settings, rng),
        arrival=np.where(new, rng.integers(earliest_arrival, settings.days, count), NEVER),
        quota=np.where(new, rng.integers(0, _NEWCOMER_EVENTS + 1, count), NEVER),
        gift_root=np.where(bursts, foreign, NEVER),
        gift_from=np.where(bursts, gift_from, NEVER),
        gift_until=np.where(bursts, gift_from + length, NEVER),
    )


def _preferences(settings: ShopSettings, rng: np.random.Generator) -> Floats:
    shares = np.array(settings.source_shares) / sum(settings.source_shares)
    weights = rng.gamma(1.5 * len(shares) * shares, size=(settings.users, len(shares))) + 1e-3 * shares
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@dataclass(slots=True, eq=False)
class Needs:
    """N things that people run out of, and when next.

    A renewal process: the gaps between purchases are independent and alike. Source: Cox 1962, Renewal Theory, Methuen.
    """

    person: Ints
    item: Ints
    period: Floats  # mean days between purchases
    due: Floats  # day of the next purchase, with its fraction

    def fall_due(self, day: int, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
        """Who buys what on a day and at which fraction of it; sets the next time of each."""
        now = np.flatnonzero(self.due < day + 1)
        moments = self.due[now] - day
        gap = self.period[now] * (1 + _JITTER * rng.standard_normal(len(now)))
        self.due[now] += np.maximum(gap, 1.0)  # so that no need falls due twice in a day
        return self.person[now], self.item[now], moments


def find_needs(settings: ShopSettings, items: Items, people: People) -> Needs:
    """Draw what people buy again and again: one or two things, from shelves of their interest where those run out."""
    rng = generator(settings.seed, Stream.NEEDS)
    has = (rng.random(settings.users) < settings.repeat_share) & (people.segment != NEWCOMER)
    person = np.repeat(np.arange(settings.users), has * (1 + (rng.random(settings.users) < 0.35)))
    runs_out = np.append(PERIOD_OF > 0, False)  # the last answers for -1, no interest
    liked = runs_out[people.interests[person]].astype(np.float64)
    wanted = pick(np.where(liked.any(axis=1, keepdims=True), liked, 1.0), rng)
    other = np.flatnonzero(PERIOD_OF > 0)[rng.integers(int((PERIOD_OF > 0).sum()), size=len(person))]
    leaf = np.where(liked.any(axis=1), people.interests[person, wanted], other)
    item = evergreen_of(items, leaf, rng)
    _, kept = np.unique(person * settings.items + item, return_index=True)
    person, item, leaf = person[kept], item[kept], leaf[kept]
    period = PERIOD_OF[leaf] * rng.lognormal(0.0, 0.2, len(kept))
    return Needs(person, item, period, rng.random(len(kept)) * period)
