"""What a visitor is shown: a page drawn by popularity, mostly from the shelf asked for, or a list that somebody hung up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.draws import Bools, Ints, pick_within
from engine.activity.simulator.items import PERIOD_OF, Items
from engine.activity.simulator.people import People
from engine.activity.simulator.seasons import factors
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.visits import Visits

_ELSEWHERE = 0.15  # slots filled from the whole shop
_REMEMBERED = 16  # purchases that a person does not repeat


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """V pages of P slots."""

    item: Ints  # (V, P)
    shown: Bools  # (V, P) false: the slot is empty
    listed: Bools  # (V,) the page is a list of the visitor's own
    owned: Bools  # (V, P) on such a page: the visitor has it and needs no other


class Cupboards:
    """What people bought lately and need not buy again; the last few alone, so that memory does not grow with days."""

    def __init__(self, users: int, items: Items) -> None:
        self._item = np.full((users, _REMEMBERED), -1, np.int32)
        self._count = np.zeros(users, np.int64)
        self._lasting = PERIOD_OF[items.leaf] == 0

    def hold(self, person: Ints, item: Ints) -> Bools:
        """(V, P) whether each person (V,) has each of the items (V, P), and will not need another."""
        held = np.zeros(item.shape, bool)
        for slot in range(_REMEMBERED):  # one slot at a time: (V, P, slots) at once would be the peak of the whole run
            held |= self._item[person, slot][:, None] == item
        return np.asarray(held & self._lasting[item])

    def put(self, person: Ints, item: Ints) -> None:
        """Remember purchases, over the oldest ones."""
        lasting = self._lasting[item]
        person, item = person[lasting], item[lasting]
        order = np.argsort(person, kind="stable")
        person, item = person[order], item[order]
        place = np.arange(len(person)) - np.searchsorted(person, person)
        self._item[person, (self._count[person] + place) % _REMEMBERED] = item
        np.add.at(self._count, person, 1)


def lay_out(
    settings: ShopSettings,
    items: Items,
    people: People,
    cupboards: Cupboards,
    visits: Visits,
    day: int,
    rng: np.random.Generator,
) -> Pages:
    """Fill a page for each visit: no item twice, none that is not sold that day in the visitor's region."""
    on_sale, slots = items.on_sale(day), settings.page
    wanted = items.popularity * on_sale * factors(settings, day)[items.leaf]
    shape = (len(visits.person), slots)
    leaf = np.broadcast_to(visits.leaf[:, None], shape)
    anywhere = rng.random(shape) < _ELSEWHERE
    starts = np.where(anywhere, 0, items.starts[leaf])
    ends = np.where(anywhere, len(items.leaf), items.starts[leaf + 1])
    item = np.sort(pick_within(wanted, starts, ends, rng), axis=1)

    shown = on_sale[item] & items.sold_in[item, people.region[visits.person][:, None]]
    shown[:, 1:] &= item[:, 1:] != item[:, :-1]
    shown &= ~cupboards.hold(visits.person, item)
    # Popular items tend to stand further up, as in real shops, which is what makes position bias hard to undo.
    height = np.where(shown, np.log(items.popularity[item]) + 1.5 * rng.standard_normal(shape), -np.inf)
    order = np.argsort(-height, axis=1, kind="stable")
    item, shown = np.take_along_axis(item, order, axis=1), np.take_along_axis(shown, order, axis=1)
    return Pages(item, shown, np.zeros(len(item), bool), np.zeros(shape, bool))


def hang_up(
    lists: Ints, rows: Ints, pages: Pages, items: Items, people: People, cupboards: Cupboards, visits: Visits, day: int
) -> Pages:
    """Put lists in the place of some pages. What cannot be bought that day, there, leaves its slot empty.

    Args:
        lists: (R, P) rows of `items`, best first, no item twice; -1: the list is shorter.
        rows: (R,) the visits whose pages they are.
    """
    item, shown, listed, owned = pages.item.copy(), pages.shown.copy(), pages.listed.copy(), pages.owned.copy()
    person = visits.person[rows]
    sold = items.on_sale(day)[lists] & items.sold_in[lists, people.region[person][:, None]]
    item[rows], shown[rows], listed[rows] = np.maximum(lists, 0), sold & (lists >= 0), True
    owned[rows] = cupboards.hold(person, lists) & (lists >= 0)
    return Pages(item, shown, listed, owned)
