"""From visits to events: what people look at, click, put into the cart, buy, like and dismiss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.clicks import Looks, look
from engine.activity.simulator.draws import Bools, Floats, Ints, ranks, sigmoid
from engine.activity.simulator.items import Items
from engine.activity.simulator.pages import Cupboards, Pages
from engine.activity.simulator.people import NEWCOMER, People
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import STYLES
from engine.activity.simulator.visits import GIFT, REPEAT, SECOND, Visits, at_till
from engine.schema import EVENTS

IMPRESSION, VIEW, CLICK, CART, PURCHASE, LIKE, DISMISS = (
    EVENTS.index(name) for name in ("impression", "view", "click", "cart", "purchase", "like", "dismiss")
)
_LONGEST = 3599 * SECOND
# Log-odds: of a click on an item of neutral style, and what style, a foreign shelf, a mission and curiosity add.
_CLICK, _CLICK_STYLE, _CLICK_FOREIGN, _CLICK_GIFT, _CLICK_NEW = -1.6, 1.0, -1.2, 1.0, 1.5
# On a list of one's own: what one has already, and the shelf that one came for.
_CLICK_OWNED, _CLICK_WANTED = -4.0, 0.8
_SATISFIED, _SATISFIED_STYLE = -0.3, 0.8
_PLEASED, _PLEASED_AGAIN = 0.6, 0.95  # by what was bought: log-odds, and the chance where it is the usual
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
    satisfied: Ints  # clicks and purchases: 1 where the item kept its promise, 0 where not; -1: no such event

    def only(self, rows: Bools | Ints) -> Deeds:
        """Some of the events."""
        return Deeds(self.visit[rows], self.item[rows], self.event[rows], self.time[rows], self.satisfied[rows])


def act(
    settings: ShopSettings,
    items: Items,
    people: People,
    cupboards: Cupboards,
    visits: Visits,
    pages: Pages,
    rng: np.random.Generator,
) -> tuple[Deeds, Looks]:
    """Let the visitors of a day act.

    Args:
        pages: of the visits that do not go straight to their item, which come first.

    Returns:
        The events, and how the pages were looked at.
    """
    shopping = len(pages.item)
    shopped, looks = _shop(settings, items, people, _first(visits, shopping), pages, rng)
    parts = shopped + _repeat(visits, shopping, rng)
    deeds = Deeds(*(np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True)))
    deeds = deeds.only(~at_till(settings, visits.source)[deeds.visit] | (deeds.event == PURCHASE))
    deeds = _cut_to_quota(deeds, people, visits)
    bought = deeds.only((deeds.event == PURCHASE) & (visits.reason[deeds.visit] != GIFT))
    cupboards.put(visits.person[bought.visit], bought.item)
    return deeds, looks


def shopping_visits(visits: Visits) -> Visits:
    """Those that see a page; the repeat purchases come after them."""
    return _first(visits, int(np.count_nonzero(visits.reason != REPEAT)))


Part = tuple[Ints, Ints, Ints, Ints, Ints]


def _first(visits: Visits, count: int) -> Visits:
    return Visits(*(getattr(visits, name)[:count] for name in Visits.__slots__))


def _shop(
    settings: ShopSettings, items: Items, people: People, visits: Visits, page: Pages, rng: np.random.Generator
) -> tuple[list[Part], Looks]:
    gift = (visits.reason == GIFT)[:, None]
    match = _match(items, people, visits, page.item)
    leaf = items.leaf[page.item]
    foreign = (people.interests[visits.person][:, :, None] != leaf[:, None, :]).all(axis=1) & ~gift
    till = at_till(settings, visits.source)[:, None]

    new = (people.segment[visits.person] == NEWCOMER)[:, None]
    odds = _CLICK + _CLICK_STYLE * match + _CLICK_FOREIGN * foreign + _CLICK_GIFT * gift + _CLICK_NEW * new
    odds += items.lure[page.item] + _CLICK_OWNED * page.owned
    odds += _CLICK_WANTED * (page.listed[:, None] & (leaf == visits.leaf[:, None]))
    content = _SATISFIED_STYLE * match + items.quality[page.item]
    looks = look(page.shown, sigmoid(odds), sigmoid(_SATISFIED + content), rng)
    luck = rng.random((6, *match.shape))
    viewed = looks.clicked & (luck[0] < _VIEW_AFTER_CLICK)
    cart = viewed & (luck[1] < sigmoid(_CART + _CART_STYLE * match + _CART_GIFT * gift + _CART_STORE * till))
    bought = cart & (luck[2] < _PAY_AFTER_CART)
    liked = viewed & ~gift & (luck[3] < sigmoid(_LIKE + _LIKE_STYLE * match))
    dismissed = looks.examined & ~looks.clicked & (luck[4] < sigmoid(_DISMISS + _DISMISS_STYLE * match))
    pleased = luck[5] < sigmoid(_PLEASED + content)

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
    worth = {CLICK: looks.satisfied, PURCHASE: pleased}
    return [_part(visits, page.item, event, done[event], seconds[event], worth.get(event)) for event in done], looks


def _match(items: Items, people: People, visits: Visits, item: Ints) -> Floats:
    """(V, P) how well items suit the taste they are bought for, about standard normal."""
    receiver = np.roll(people.taste, 1, axis=0)  # a gift suits somebody else
    taste = np.where((visits.reason == GIFT)[:, None], receiver[visits.person], people.taste[visits.person])
    return np.asarray(np.einsum("vd,vpd->vp", taste, items.style[item]) * np.sqrt(STYLES))


def _part(visits: Visits, item: Ints, event: int, done: Bools, seconds: Floats, worth: Bools | None) -> Part:
    visit, slot = np.nonzero(done)
    offset = np.minimum(seconds[visit, slot] * SECOND, _LONGEST).astype(np.int64)
    satisfied = np.full(len(visit), -1) if worth is None else worth[visit, slot].astype(np.int64)
    return visit, item[visit, slot], np.full(len(visit), event), visits.start[visit] + offset, satisfied


def _repeat(visits: Visits, first: int, rng: np.random.Generator) -> list[Part]:
    """Straight to the item: mostly a look and the cart, always a purchase."""
    visit = np.arange(first, len(visits.person))
    likely = ((VIEW, 0.6, 2), (CART, 0.9, 20), (PURCHASE, 1.0, 60))
    kept = [(visit[rng.random(len(visit)) < share], event, seconds) for event, share, seconds in likely]
    pleased = (rng.random(len(visit)) < _PLEASED_AGAIN).astype(np.int64)
    return [
        (
            rows,
            visits.item[rows],
            np.full(len(rows), event),
            visits.start[rows] + seconds * SECOND,
            pleased[rows - first] if event == PURCHASE else np.full(len(rows), -1),
        )
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
