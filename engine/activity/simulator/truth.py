"""What only the simulator knows of people and items, as tables for checks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.activity.simulator.draws import Bools, Ints
from engine.activity.simulator.groups import AGES, GROUPS
from engine.activity.simulator.items import ROOT_OF, Items
from engine.activity.simulator.moods import Moods
from engine.activity.simulator.people import CONSENTS, NEVER, SEGMENTS, Needs, People
from engine.activity.simulator.seasons import PEAK, extremes
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import REGIONS, ROOTS, SHELVES

_LEAVES = [shelf.leaf for shelf in SHELVES]
_STRINGS = pa.list_(pa.string())
USERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("segment", pa.string()),
        ("group", pa.string()),  # groups differ in activity and taste; no log tells
        ("age", pa.string()),
        ("consent", pa.string()),  # to all, some or none of the sources, at the end of the log
        ("sources_granted", _STRINGS),
        ("region", pa.string()),
        ("visits_a_day", pa.float64()),  # mean of the browsing visits over the year, for a mood neither good nor bad
        ("interests", _STRINGS),  # shelves, loudest on the first day first
        ("arrived", pa.date32()),  # newcomers
        ("gift_from", pa.date32()),  # gift bursts: first day, and the day after the last
        ("gift_until", pa.date32()),
        ("gift_category", pa.string()),  # root category
        ("events", pa.int64()),  # that the log has under this id
        ("mood", pa.float64()),  # how satisfied of late, 0..1, at the end
        ("left", pa.date32()),  # the last day, of who will not come again
    ]
)
AFFINITY = pa.schema(
    [
        ("user_id", pa.string()),
        ("root", pa.string()),
        ("category", pa.string()),  # leaf; what is missing here is no interest
        ("at_start", pa.float64()),  # share of the person's browsing on the first day, and on the last; linear between
        ("at_end", pa.float64()),
    ]
)
REPEAT_NEEDS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("period_days", pa.float64())])


ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("category", pa.string()),
        ("popularity", pa.float64()),  # share of what is bought, were all on sale; sums to 1
        ("tail", pa.bool_()),  # the least popular items, which together make up a fifth
        ("clickbait", pa.bool_()),
        ("lure", pa.float64()),  # log-odds that the item adds to a click
        ("quality", pa.float64()),  # log-odds that it adds to satisfaction
        ("arrived", pa.date32()),  # of what came while the log ran
        ("ended", pa.date32()),  # the first day without it; for good
    ]
)
SEASONS = pa.schema(
    [
        ("category", pa.string()),
        ("peak", pa.int64()),  # day of the year
        ("at_peak", pa.float64()),  # demand on that day as a multiple of the year's mean
        ("at_trough", pa.float64()),  # and half a year away from it
    ]
)


def users_table(settings: ShopSettings, people: People, moods: Moods, events: Ints) -> pa.Table:
    """Everybody (USERS), by id."""
    has = people.interests >= 0
    columns = [
        people.ids,
        pa.array(SEGMENTS).take(pa.array(people.segment)),
        pa.array(GROUPS).take(pa.array(people.group)),
        pa.array(AGES).take(pa.array(people.age)),
        pa.array(CONSENTS).take(pa.array(people.consent)),
        _lists(people.allowed.sum(axis=1), pa.array(settings.sources).take(pa.array(np.nonzero(people.allowed)[1]))),
        pa.array(REGIONS).take(pa.array(people.region)),
        pa.array(people.rate),
        _lists(has.sum(axis=1), pa.array(_LEAVES).take(pa.array(people.interests[has]))),
        _date(settings, people.arrival),
        _date(settings, people.gift_from),
        _date(settings, people.gift_until),
        pa.array(ROOTS).take(pa.array(people.gift_root, mask=people.gift_root == NEVER)),
        pa.array(events),
        pa.array(moods.mood),
        _date(settings, moods.left),
    ]
    return pa.table(columns, schema=USERS).sort_by("user_id")


def affinity_table(people: People) -> pa.Table:
    """How much each person likes each shelf (AFFINITY), by id, loudest first."""
    person, place = np.nonzero(people.interests >= 0)
    leaf = people.interests[person, place]
    columns = [
        people.ids.take(pa.array(person)),
        pa.array(ROOTS).take(pa.array(ROOT_OF[leaf])),
        pa.array(_LEAVES).take(pa.array(leaf)),
        pa.array(people.at_start[person, place]),
        pa.array(people.at_end[person, place]),
    ]
    order = [("user_id", "ascending"), ("at_start", "descending"), ("category", "ascending")]
    return pa.table(columns, schema=AFFINITY).sort_by(order)


def needs_table(items: Items, people: People, needs: Needs) -> pa.Table:
    """What people buy again and again (REPEAT_NEEDS), by id."""
    columns = [people.ids.take(pa.array(needs.person)), items.ids.take(pa.array(needs.item)), pa.array(needs.period)]
    return pa.table(columns, schema=REPEAT_NEEDS).sort_by([("user_id", "ascending"), ("item_id", "ascending")])


def items_table(settings: ShopSettings, items: Items, tail: Bools) -> pa.Table:
    """What the items are worth (ITEMS), by id."""
    columns = [
        items.ids,
        pa.array(_LEAVES).take(pa.array(items.leaf)),
        pa.array(items.popularity),
        pa.array(tail),
        pa.array(items.clickbait),
        pa.array(items.lure),
        pa.array(items.quality),
        _date(settings, np.where(items.first_day > 0, items.first_day, NEVER)),
        _date(settings, np.where(items.ending, items.last_day, NEVER)),
    ]
    return pa.table(columns, schema=ITEMS).sort_by("item_id")


def seasons_table(settings: ShopSettings) -> pa.Table:
    """The year on each shelf (SEASONS)."""
    return pa.table(
        [pa.array(_LEAVES), pa.array(PEAK), *(pa.array(each) for each in extremes(settings))], schema=SEASONS
    )


def _lists(lengths: Ints, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values)


def _date(settings: ShopSettings, day: Ints) -> pa.Array:
    first = int(np.datetime64(settings.start, "D").astype(np.int64))
    return pa.array((first + day).astype(np.int32), mask=day == NEVER).cast(pa.date32())
