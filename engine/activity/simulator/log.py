"""From a day's deeds to the rows of the log, and to the truth about them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.activity.simulator.deeds import CART, PURCHASE, Deeds
from engine.activity.simulator.draws import Stream, generator, opaque_names
from engine.activity.simulator.items import Items
from engine.activity.simulator.people import People
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.visits import BROWSE, GIFT, REASONS, Visits
from engine.schema import EVENTS, TIME

# The raw activity log, as a team hands it in.
LOG = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),  # null: anonymous
        ("item_id", pa.string()),
        ("event", pa.string()),
        ("ts", TIME),
        ("value", pa.float64()),  # price of what went into the cart or was bought
        ("source", pa.string()),
        ("session_id", pa.string()),
        ("flags", pa.list_(pa.string())),
    ]
)
# Columns of the log that are worth a dictionary; an event_id is like no other, and hardly a ts is.
FEW_VALUES = ["user_id", "item_id", "event", "value", "source", "session_id", "flags.list.element"]
EVENT_TRUTH = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),  # who it was, signed in or not
        ("reason", pa.string()),  # gift or repeat; what is missing here was browsed
    ]
)
SATISFACTION = pa.schema(
    [
        ("event_id", pa.string()),  # of a click or a purchase
        ("satisfied", pa.bool_()),  # what was clicked or bought kept its promise
    ]
)
_DAY_BITS = 40  # more rows than a day can have


def write_down(
    settings: ShopSettings,
    items: Items,
    people: People,
    visits: Visits,
    deeds: Deeds,
    day: int,
    rng: np.random.Generator,
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The rows of a day, shuffled (LOG), why those happened that were not plain browsing (EVENT_TRUTH), and what people
    thought of what they clicked and bought (SATISFACTION).
    """
    deeds = deeds.only(rng.permutation(len(deeds.visit)))
    count = len(deeds.visit)
    event_key, session_key = (int(key) for key in generator(settings.seed, Stream.NAMES).integers(2**63, size=2))
    person, reason = visits.person[deeds.visit], visits.reason[deeds.visit]
    midnight = np.datetime64(settings.start, "us").astype(np.int64) + day * 86_400_000_000
    priced = (deeds.event == PURCHASE) | (deeds.event == CART)
    flagged = (reason == GIFT) & priced & (rng.random(count) < settings.gift_flag_share)
    event_ids = opaque_names((day << _DAY_BITS) + np.arange(count), event_key)
    flag = pa.array(["gift"]).take(pa.array(np.zeros(int(flagged.sum()), np.int64)))
    log = pa.table(
        [
            event_ids,
            people.ids.take(pa.array(person, mask=visits.anonymous[deeds.visit])),
            items.ids.take(pa.array(deeds.item)),
            pa.array(EVENTS).take(pa.array(deeds.event)),
            pa.array(midnight + deeds.time).cast(TIME),
            pa.array(items.price[deeds.item], mask=~priced),
            pa.array(settings.sources).take(pa.array(visits.source[deeds.visit])),
            opaque_names((day << _DAY_BITS) + deeds.visit, session_key),
            pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(flagged)]).astype(np.int32), flag),
        ],
        schema=LOG,
    )
    meant = pa.array(np.flatnonzero(reason != BROWSE))
    truth = [event_ids, people.ids.take(pa.array(person)), pa.array(REASONS).take(pa.array(reason))]
    why = pa.table([column.take(meant) for column in truth], schema=EVENT_TRUTH)
    judged = np.flatnonzero(deeds.satisfied >= 0)
    verdicts = [event_ids.take(pa.array(judged)), pa.array(deeds.satisfied[judged] == 1)]
    return log, why, pa.table(verdicts, schema=SATISFACTION)
