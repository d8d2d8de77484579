"""What a shop saw of its own days: one day's report, and the course of many."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from engine.activity.simulator.clicks import Looks
from engine.activity.simulator.deeds import PURCHASE, Deeds
from engine.activity.simulator.draws import Bools, Floats, Ints
from engine.activity.simulator.groups import GROUPS
from engine.activity.simulator.pages import Pages
from engine.activity.simulator.people import NEVER, SEGMENTS, People
from engine.activity.simulator.visits import Visits

_NEW_DAYS = 14
_TAIL = 0.2  # items that together have this share of the popularity are the tail
_RETURN_DAYS = 7


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened on some visits. `left`: people who will not come again."""

    visits: int = 0
    shown: int = 0  # items on the pages, and those that were looked at
    looked_at: int = 0
    clicks: int = 0
    purchases: int = 0
    satisfied: int = 0  # visits on which something clicked or bought kept its promise
    left: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def clicks_a_visit(self) -> float:
        """0 where there was no visit."""
        return self.clicks / max(1, self.visits)

    @property
    def satisfaction(self) -> float:
        """Share of the visits that were worth it."""
        return self.satisfied / max(1, self.visits)


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of the lists that were hung up, and what stood in them."""

    total: int = 0
    tail: int = 0
    new: int = 0  # added within the last two weeks
    owned: int = 0  # what the person has already and needs no other
    dead: int = 0  # not sold on that day, in that region: an empty slot

    def __add__(self, other: Slots) -> Slots:
        return Slots(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def share(self, kind: str) -> float:
        """Of tail, new, owned or dead slots."""
        return float(getattr(self, kind)) / max(1, self.total)


@dataclass(frozen=True, slots=True, eq=False)
class DayReport:
    """One day.

    Args:
        everything: all visits. listed: those whose page was a list of the visitor's own.
        by_group, by_segment: the listed visits, by what only the truth knows; `left` counts all who left.
        came: rows of the people who came signed in, ascending.
    """

    day: int
    date: dt.date
    everything: Tally
    listed: Tally
    slots: Slots
    by_group: Mapping[str, Tally]
    by_segment: Mapping[str, Tally]
    came: Ints


def tail_of(popularity: Floats) -> Bools:
    """(I,) the items that are bought least and together make up the tail."""
    rising = np.lexsort((np.arange(len(popularity)), popularity))
    tail = np.zeros(len(popularity), bool)
    tail[rising[np.cumsum(popularity[rising]) <= _TAIL * popularity.sum()]] = True
    return tail


def is_new(first_day: Ints, day: int) -> Bools:
    """(I,) the items that came within the last two weeks."""
    return np.asarray((first_day <= day) & (first_day > day - _NEW_DAYS))


def tell_day(
    day: int,
    date: dt.date,
    people: People,
    visits: Visits,
    pages: Pages,
    looks: Looks,
    deeds: Deeds,
    worth: Bools,
    left: Ints,
    slots: Slots,
) -> DayReport:
    """Add a day up.

    Args:
        worth: (V,) which visits were worth it.
        left: people who left for good.
    """
    bought = np.bincount(deeds.visit[deeds.event == PURCHASE], minlength=len(visits.person))
    paged = len(pages.item)

    def tally(rows: Ints, gone: int) -> Tally:
        seen = rows[rows < paged]
        return Tally(
            visits=len(rows),
            shown=int(pages.shown[seen].sum()),
            looked_at=int(looks.examined[seen].sum()),
            clicks=int(looks.clicked[seen].sum()),
            purchases=int(bought[rows].sum()),
            satisfied=int(worth[rows].sum()),
            left=gone,
        )

    listed = np.flatnonzero(pages.listed)

    def split(kind: Ints, names: tuple[str, ...]) -> dict[str, Tally]:
        of = kind[visits.person[listed]]
        return {name: tally(listed[of == code], int((kind[left] == code).sum())) for code, name in enumerate(names)}

    return DayReport(
        day=day,
        date=date,
        everything=tally(np.arange(len(visits.person)), len(left)),
        listed=tally(listed, len(left)),
        slots=slots,
        by_group=split(people.group, GROUPS),
        by_segment=split(people.segment, SEGMENTS),
        came=np.unique(visits.person[~visits.anonymous]),
    )


class Course:
    """The reports of many days, added up."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._first = np.full(len(people.group), NEVER)
        self._again = np.full(len(people.group), NEVER)
        self._days: list[int] = []
        self.everything, self.listed, self.slots = Tally(), Tally(), Slots()
        self.by_group = dict.fromkeys(GROUPS, Tally())
        self.by_segment = dict.fromkeys(SEGMENTS, Tally())

    def add(self, report: DayReport) -> None:
        """Take a day in; days come in their order."""
        self.everything += report.everything
        self.listed += report.listed
        self.slots += report.slots
        for mine, theirs in ((self.by_group, report.by_group), (self.by_segment, report.by_segment)):
            for name, tally in theirs.items():
                mine[name] += tally
        came = report.came
        back = came[(self._first[came] != NEVER) & (self._again[came] == NEVER)]
        self._again[back] = report.day
        self._first[came[self._first[came] == NEVER]] = report.day
        self._days.append(report.day)

    @property
    def window(self) -> int:
        """Days within which somebody is expected back; fewer where the course is short."""
        return min(_RETURN_DAYS, len(self._days) // 2)

    def return_rate(self, group: str = "") -> float:
        """Of the people whose first visit lies at least a window before the end, the share who came again within it."""
        if not self._days:
            return 0.0
        counted = (self._first != NEVER) & (self._first <= self._days[-1] - self.window)
        if group:
            counted &= self._people.group == GROUPS.index(group)
        back = counted & (self._again != NEVER) & (self._again - self._first <= self.window)
        return float(back.sum() / max(1, counted.sum()))
