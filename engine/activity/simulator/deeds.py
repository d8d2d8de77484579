"""From visits to events: what people look at, click, put into the cart, buy, like and dismiss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.clicks import look
from engine.activity.simulator.draws import Bools, Floats, Ints, ranks, sigmoid
from engine.activity.simulator.items import Items
from engine.activity.simulator.pages import Cupboards, lay_out
from engine.activity.simulator.people import NEWCOMER, People
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import STYLES
from engine.activity.simulator.visits import GIFT, REPEAT, SECOND, Visits
from engine.schema import EVENTS

IMPRESSION, VIEW, CLICK, CART, PURCHASE, LIKE, DISMISS = (
    EVENTS.index(name) for name in ("impression", "view", "click", "cart", "purchase", "like", "dismiss")
)
_STORE = "store"  # a till sees purchases alone
_LONGEST = 3599 * SECOND
# Log-odds: of a click on an item of neutral style, and what style, a foreign shelf, a mission and curiosity add.
_CLICK, _CLICK_STYLE, _CLICK_FOREIGN, _CLICK_GIFT, _CLICK_NEW = -1.6, 1.0, -1.2, 1.0, 1.5
_SATISFIED, _SATISFIED_STYLE = -0.3, 0.8
_CART, _CART_STYLE, _CART_GIFT, _CART_STORE = -1.1, 0.7, 1.2, 1.5
_PAY_AFTER_CART = 0.7
_LIKE, _LIKE_STYLE = -2.6, 0.9
_DISMISS, _DISMISS_STYLE = -4.6, -0.9
_VIEW_AFTER_CLICK = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Deeds:
    """E events of one day, in no order that matters."""

    visit: Ints  # row of the day's visits
    item: Ints
    event: Ints  # code of EVENTS
    time: Ints  # microseconds since midnight

    def only(self, rows: Bools | Ints) -> Deeds:
        """Some of the events."""
        return Deeds(self.visit[rows], self.item[rows], self.event[rows], self.time[rows])


def act(
    settings: ShopSettings,
    items: Items,
    people: People,
    cupboards: Cupboards,
    visits: Visits,
    day: int,
    rng: np.random.Generator,
) -> Deeds:
    """Let the visitors of a day act."""
    shopping = int(np.count_nonzero(visits.reason != REPEAT))  # those come first
    parts = _shop(settings, items, people, cupboards, _first(visits, shopping), day, rng) + _repeat(
        visits, shopping, rng
    )
    deeds = Deeds(*(np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True)))
    deeds = deeds.only(~_at_till(settings, visits)[deeds.visit] | (deeds.event == PURCHASE))
    deeds = _cut_to_quota(deeds, people, visits)
    bought = deeds.only((deeds.event == PURCHASE) & (visits.reason[deeds.visit] != GIFT))
    cupboards.put(visits.person[bought.visit], bought.item)
    return deeds


Part = tuple[Ints, Ints, Ints, Ints]


def _first(visits: Visits, count: int) -> Visits:
    return Visits(*(getattr(visits, name)[:count] for name in Visits.__slots__))


def _shop(
    settings: ShopSettings,
    items: Items,
    people: People,
    cupboards: Cupboards,
    visits: Visits,
    day: int,
    rng: np.random.Generator,
) -> list[Part]:
    page = lay_out(items, people, cupboards, visits, day, settings.page, rng)
    gift = (visits.reason == GIFT)[:, None]
    match = _match(items, people, visits, page.item)
    foreign = (people.interests[visits.person][:, :, None] != items.leaf[page.item][:, None, :]).all(axis=1) & ~gift
    at_till = _at_till(settings, visits)[:, None]

    new = (people.segment[visits.person] == NEWCOMER)[:, None]
    odds = _CLICK + _CLICK_STYLE * match + _CLICK_FOREIGN * foreign + _CLICK_GIFT * gift + _CLICK_NEW * new
    looks = look(page.shown, sigmoid(odds), sigmoid(_SATISFIED + _SATISFIED_STYLE * match), rng)
    luck = rng.random((5, *match.shape))
    viewed = looks.clicked & (luck[0] < _VIEW_AFTER_CLICK)
    cart = viewed & (luck[1] < sigmoid(_CART + _CART_STYLE * match + _CART_GIFT * gift + _CART_STORE * at_till))
    bought = cart & (luck[2] < _PAY_AFTER_CART)
    liked = viewed & ~gift & (luck[3] < sigmoid(_LIKE + _LIKE_STYLE * match))
    dismissed = looks.examined & ~looks.clicked & (luck[4] < sigmoid(_DISMISS + _DISMISS_STYLE * match))

    pause = 2 + rng.exponential(5.0, match.shape)
    dwell = np.where(looks.clicked, 5 + rng.exponential(35.0, match.shape), 0.0)
    seen_at = np.cumsum(pause + dwell, axis=1) - dwell
    seconds = {
        IMPRESSION: seen_at, CLICK: seen_at + 1, VIEW: seen_at + 1.3, LIKE: seen_at + 1.5 + 0.5 * dwell,
        CART: seen_at + 1.5 + 0.8 * dwell, PURCHASE: seen_at + 3 + dwell, DISMISS: seen_at + 1,
    }  # fmt: skip
    done = {
        IMPRESSION: looks.examined, CLICK: looks.clicked, VIEW: viewed, LIKE: liked, CART: cart, PURCHASE: bought,
        DISMISS: dismissed,
    }  # fmt: skip
    return [_part(visits, page.item, event, done[event], seconds[event]) for event in done]


def _at_till(settings: ShopSettings, visits: Visits) -> Bools:
    return np.isin(visits.source, [code for code, name in enumerate(settings.sources) if name == _STORE])


def _match(items: Items, people: People, visits: Visits, item: Ints) -> Floats:
    """(V, P) how well items suit the taste they are bought for, about standard normal."""
    receiver = np.roll(people.taste, 1, axis=0)  # a gift suits somebody else
    taste = np.where((visits.reason == GIFT)[:, None], receiver[visits.person], people.taste[visits.person])
    return np.asarray(np.einsum("vd,vpd->vp", taste, items.style[item]) * np.sqrt(STYLES))


def _part(visits: Visits, item: Ints, event: int, done: Bools, seconds: Floats) -> Part:
    visit, slot = np.nonzero(done)
    offset = np.minimum(seconds[visit, slot] * SECOND, _LONGEST).astype(np.int64)
    return visit, item[visit, slot], np.full(len(visit), event), visits.start[visit] + offset


def _repeat(visits: Visits, first: int, rng: np.random.Generator) -> list[Part]:
    """Straight to the item: mostly a look and the cart, always a purchase."""
    visit = np.arange(first, len(visits.person))
    likely = ((VIEW, 0.6, 2), (CART, 0.9, 20), (PURCHASE, 1.0, 60))
    kept = [(visit[rng.random(len(visit)) < share], event, seconds) for event, share, seconds in likely]
    return [
        (rows, visits.item[rows], np.full(len(rows), event), visits.start[rows] + seconds * SECOND)
        for rows, event, seconds in kept
    ]


def _cut_to_quota(deeds: Deeds, people: People, visits: Visits) -> Deeds:
    """Newcomers browsed unknown before they signed up: no impressions, and only their first few events."""
    person = visits.person[deeds.visit]
    new = people.segment[person] == NEWCOMER
    kept = ~new
    rows = np.flatnonzero(new & (deeds.event != IMPRESSION))
    order = np.lexsort((deeds.event[rows], deeds.item[rows], deeds.time[rows], person[rows]))
    kept[rows] = ranks(person[rows], order) < people.quota[person[rows]]
    return deeds.only(kept)
