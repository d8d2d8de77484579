"""What only the simulator knows of people, as tables for checks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.activity.simulator.draws import Ints
from engine.activity.simulator.items import ROOT_OF, Items
from engine.activity.simulator.people import CONSENTS, NEVER, SEGMENTS, Needs, People
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import REGIONS, ROOTS, SHELVES

_LEAVES = [shelf.leaf for shelf in SHELVES]
_STRINGS = pa.list_(pa.string())
USERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("segment", pa.string()),
        ("consent", pa.string()),  # all, some or none of the sources
        ("sources_granted", _STRINGS),
        ("region", pa.string()),
        ("visits_a_day", pa.float64()),  # mean of the browsing visits
        ("interests", _STRINGS),  # shelves, loudest on the first day first
        ("arrived", pa.date32()),  # newcomers
        ("gift_from", pa.date32()),  # gift bursts: first day, and the day after the last
        ("gift_until", pa.date32()),
        ("gift_category", pa.string()),  # root category
        ("events", pa.int64()),  # that the log has under this id
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


def users_table(settings: ShopSettings, people: People, events: Ints) -> pa.Table:
    """Everybody (USERS), by id."""
    has = people.interests >= 0
    columns = [
        people.ids,
        pa.array(SEGMENTS).take(pa.array(people.segment)),
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


def _lists(lengths: Ints, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values)


def _date(settings: ShopSettings, day: Ints) -> pa.Array:
    first = int(np.datetime64(settings.start, "D").astype(np.int64))
    return pa.array((first + day).astype(np.int32), mask=day == NEVER).cast(pa.date32())
