"""What a visitor is shown: a page drawn by popularity, mostly from the shelf asked for. No ranker is at work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.activity.simulator.draws import Bools, Ints, pick_within
from engine.activity.simulator.items import PERIOD_OF, Items
from engine.activity.simulator.people import People
from engine.activity.simulator.visits import Visits

_ELSEWHERE = 0.15  # slots filled from the whole shop
_REMEMBERED = 16  # purchases that a person does not repeat


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """V pages of P slots."""

    item: Ints  # (V, P)
    shown: Bools  # (V, P) false: the slot is empty


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
    items: Items, people: People, cupboards: Cupboards, visits: Visits, day: int, slots: int, rng: np.random.Generator
) -> Pages:
    """Fill a page for each visit: no item twice, none that is not sold that day in the visitor's region."""
    on_sale = items.on_sale(day)
    shape = (len(visits.person), slots)
    leaf = np.broadcast_to(visits.leaf[:, None], shape)
    anywhere = rng.random(shape) < _ELSEWHERE
    starts = np.where(anywhere, 0, items.starts[leaf])
    ends = np.where(anywhere, len(items.leaf), items.starts[leaf + 1])
    item = np.sort(pick_within(items.popularity * on_sale, starts, ends, rng), axis=1)

    shown = on_sale[item] & items.sold_in[item, people.region[visits.person][:, None]]
    shown[:, 1:] &= item[:, 1:] != item[:, :-1]
    shown &= ~cupboards.hold(visits.person, item)
    # Popular items tend to stand further up, as in real shops, which is what makes position bias hard to undo.
    height = np.where(shown, np.log(items.popularity[item]) + 1.5 * rng.standard_normal(shape), -np.inf)
    order = np.argsort(-height, axis=1, kind="stable")
    return Pages(np.take_along_axis(item, order, axis=1), np.take_along_axis(shown, order, axis=1))
