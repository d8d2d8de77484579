"""The shop as it lives, a day at a time: the place to try a policy out before people have to.

    shop = LiveShop(ShopSettings(seed=7, days=74, churn=0.05, returning=0.7), Path("shop"))
    for day in range(60):
        shop.step(day)                      # pages by popularity, as `simulate` would have it
    for day in range(60, 74):
        report = shop.step(day, lists)      # home pages show what lists(visitors, day) gives

Everybody reacts by the click model, is satisfied or not, and comes more often, less often or never again. After each day the
folder is what `simulate` would have left that evening, so that a night can run on it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.activity.simulator.deeds import Deeds, act, shopping_visits
from engine.activity.simulator.draws import Ints, Stream, generator
from engine.activity.simulator.grants import Grants, allow
from engine.activity.simulator.groups import ADULT
from engine.activity.simulator.items import Items, stock
from engine.activity.simulator.log import FEW_VALUES, write_down
from engine.activity.simulator.moods import Moods
from engine.activity.simulator.pages import Cupboards, Pages, hang_up, lay_out
from engine.activity.simulator.people import People, find_needs, gather
from engine.activity.simulator.report import DayReport, Slots, is_new, tail_of, tell_day
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import REGIONS
from engine.activity.simulator.truth import affinity_table, items_table, needs_table, seasons_table, users_table
from engine.activity.simulator.visits import Visits, at_till, visit
from engine.errors import DataError, SettingsError


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody at the home page, as the shop knows them."""

    user_id: str
    region: str
    minor: bool


# Item ids for each visitor of a day, best first; what exceeds the page is not shown. Fewer is no error.
Lists = Callable[[Sequence[Visitor], int], Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True, eq=False)
class Day:
    """What a day left, as the code of the simulator speaks of it."""

    visits: Visits
    deeds: Deeds
    log: pa.Table
    report: DayReport


class LiveShop:
    """A shop in a folder of its own. The same settings and the same lists write the same bytes.

    Memory grows with people and items and with the events of one day, not with the days.

    Args:
        settings: the shop; `days` is how many there can be.
        folder: where to; missing or empty.

    Raises:
        SettingsError: the folder holds something.
    """

    def __init__(self, settings: ShopSettings, folder: Path) -> None:
        self.settings, self.folder = settings, Path(folder)
        check_empty(self.folder)
        self.items: Items = stock(settings)
        self.people: People = gather(settings, self.items)
        self.grants: Grants = allow(settings, self.people)
        self.moods = Moods(settings)
        self.day = 0  # the next one
        self._needs = find_needs(settings, self.items, self.people)
        self._cupboards = Cupboards(settings.users, self.items)
        self._events = np.zeros(settings.users, np.int64)
        self._tail = tail_of(self.items.popularity)
        self._write_opening()

    def step(self, day: int, lists: Lists | None = None) -> DayReport:
        """Live through the next day, and write it down.

        Args:
            day: counted from 0; the days come one after another.
            lists: what the home pages of signed-in visitors show; asked once, with each visitor once, by user id.
                None: these pages are laid out by popularity, as all others are.

        Raises:
            SettingsError: it is not that day's turn.
            DataError: `lists` gave too few lists, an item that is not in the shop, or one twice.
        """
        lived = self.live(day, lists)
        self.write_books()
        return lived.report

    def live(self, day: int, lists: Lists | None = None) -> Day:
        """As `step`, without the catalogue, the grants and the truth of people, which `write_books` writes."""
        if day != self.day or day >= self.settings.days:
            raise SettingsError(
                f"Day {day} cannot be lived now: {self.day} of {self.settings.days} days are over.",
                f"Ask for day {self.day}, or open the shop for more days.",
            )
        settings, items, people = self.settings, self.items, self.people
        rng = generator(settings.seed, Stream.DAY, day)
        visits = visit(settings, items, people, self._needs, self.moods, day, rng)
        shopping = shopping_visits(visits)
        pages = lay_out(settings, items, people, self._cupboards, shopping, day, rng)
        slots = Slots()
        if lists is not None:
            pages, slots = self._hang_up(lists, pages, shopping, day)
        deeds, looks = act(settings, items, people, self._cupboards, visits, pages, rng)
        worth = np.bincount(deeds.visit[deeds.satisfied == 1], minlength=len(visits.person)) > 0
        # A till where nothing was bought is no visit that anybody could have made better.
        felt = np.flatnonzero(~at_till(settings, visits.source) | worth)
        moods_rng = generator(settings.seed, Stream.MOODS, day)
        left = self.moods.learn(visits.person[felt], worth[felt], day, moods_rng)

        log, why, verdicts = write_down(settings, items, people, visits, deeds, day, rng)
        date = settings.start + dt.timedelta(days=day)
        part = Path(f"date={date}") / "part-00000.parquet"
        write(self.folder / "log" / part, log, FEW_VALUES)
        write(self.folder / "truth" / "events" / part, why)
        write(self.folder / "truth" / "satisfaction" / part, verdicts, ["satisfied"])
        known = ~visits.anonymous[deeds.visit]
        np.add.at(self._events, visits.person[deeds.visit][known], 1)
        self.day += 1
        report = tell_day(day, date, people, visits, pages, looks, deeds, worth, left, slots)
        return Day(visits, deeds, log, report)

    def write_books(self) -> None:
        """Write what the shop knows at the end of the last day: catalogue, grants, and the truth of people."""
        last = self.day - 1
        write(self.folder / "catalogue.parquet", self.items.catalogue(last))
        write(self.folder / "grants.parquet", self.grants.until(last))
        users = users_table(self.settings, self.people, self.moods, self._events)
        write(self.folder / "truth" / "users.parquet", users)

    @property
    def events_by_person(self) -> Ints:
        """(U,) events in the log so far, signed in."""
        return self._events

    def _hang_up(self, lists: Lists, pages: Pages, visits: Visits, day: int) -> tuple[Pages, Slots]:
        rows = np.flatnonzero(visits.home)
        people, items = self.people, self.items
        persons = np.unique(visits.person[rows])
        names = people.ids.take(pa.array(persons)).to_pylist()
        order = np.argsort(names)
        asked = [
            Visitor(names[place], REGIONS[people.region[persons[place]]], bool(people.age[persons[place]] != ADULT))
            for place in order
        ]
        given = lists(asked, day)
        if len(given) != len(asked):
            raise DataError(f"{len(asked)} lists were asked for, {len(given)} came.", "Give one for each visitor.")
        codes = np.full((len(persons), self.settings.page), -1)
        codes[order] = self._codes(given)
        codes = codes[np.searchsorted(persons, visits.person[rows])]
        hung = hang_up(codes, rows, pages, items, people, self._cupboards, visits, day)
        there = codes >= 0
        slots = Slots(
            total=int(there.sum()),
            tail=int((self._tail[codes] & there).sum()),
            new=int((is_new(items.first_day, day)[codes] & there).sum()),
            owned=int(hung.owned[rows].sum()),
            dead=int((there & ~hung.shown[rows]).sum()),
        )
        return hung, slots

    def _codes(self, lists: Sequence[Sequence[str]]) -> Ints:
        """(N, P) rows of the items, -1 where a list is shorter than the page."""
        page = self.settings.page
        codes = np.full((len(lists), page), -1)
        lengths = np.array([min(len(each), page) for each in lists], np.int64)
        names = pa.array([name for each in lists for name in each[:page]], pa.string())
        found = pc.index_in(names, value_set=self.items.ids)
        if found.null_count:
            unknown = names.filter(pc.is_null(found))[0].as_py()
            raise DataError(f"A list names the item {unknown!r}, which the shop does not have.", "Correct the lists.")
        codes[np.arange(page) < lengths[:, None]] = found.to_numpy()
        ordered = np.sort(codes, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise DataError("A list names an item twice.", "Correct the lists.")
        return codes

    def _write_opening(self) -> None:
        truth = self.folder / "truth"
        write(truth / "affinity.parquet", affinity_table(self.people))
        write(truth / "repeat_needs.parquet", needs_table(self.items, self.people, self._needs))
        write(truth / "items.parquet", items_table(self.settings, self.items, self._tail))
        write(truth / "seasons.parquet", seasons_table(self.settings))
        chosen = asdict(self.settings) | {"start": self.settings.start.isoformat()}
        (truth / "settings.json").write_text(json.dumps(chosen, indent=2) + "\n")


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        SettingsError: it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"The shop's folder {folder} is not empty.", "Name another folder, or remove this one.")


def write(path: Path, table: pa.Table, dictionary: bool | list[str] = True) -> None:
    """Write a Parquet file with a checksum a page; it appears whole, over an older one too.

    Args:
        dictionary: the columns to encode by dictionary; True: all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f".{path.name}.part")
    pq.write_table(table, growing, compression="zstd", use_dictionary=dictionary, write_page_checksum=True)
    growing.rename(path)
