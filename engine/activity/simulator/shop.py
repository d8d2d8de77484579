"""A shop from its first day to its last, at once."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.activity.simulator.draws import Ints
from engine.activity.simulator.live import LiveShop, check_empty
from engine.activity.simulator.people import ALL, NONE, SEGMENTS, People
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.visits import GIFT, REPEAT
from engine.schema import EVENTS


@dataclass(frozen=True, slots=True)
class ShopReport:
    """What was written.

    Args:
        cast: for each segment that has people, the id of one to show: the busiest who granted every source, or none for
            no_consent.
    """

    folder: Path
    people: int
    items: int
    days: int
    events: Mapping[str, int]  # by name
    anonymous: int  # events without a user
    gifts: int  # events of gift bursts, and how many of them the log marks
    gifts_flagged: int
    repeats: int  # events of repeat needs
    grants: int
    left: int  # people who will not come again
    cast: Mapping[str, str]

    @property
    def total(self) -> int:
        """Events in the log."""
        return sum(self.events.values())


def simulate(settings: ShopSettings, folder: Path) -> ShopReport:
    """Write the log, catalogue, grants and truth of a shop; the same settings write the same bytes.

    Memory grows with people and items and with the events of one day, not with the days. The folder appears whole or
    not at all.

    Args:
        settings: the shop.
        folder: where to; missing or empty.

    Raises:
        SettingsError: the folder holds something.
    """
    folder = Path(folder)
    check_empty(folder)
    by_event, gifts, flagged, repeats, left = np.zeros(len(EVENTS), np.int64), 0, 0, 0, 0
    with _appearing(folder) as place:
        shop = LiveShop(settings, place)
        for day in range(settings.days):
            lived = shop.live(day)
            reason = lived.visits.reason[lived.deeds.visit]
            by_event += np.bincount(lived.deeds.event, minlength=len(EVENTS))
            gifts += int(np.count_nonzero(reason == GIFT))
            flagged += len(lived.log["flags"].combine_chunks().flatten())
            repeats += int(np.count_nonzero(reason == REPEAT))
            left += lived.report.everything.left
        shop.write_books()
    by_person = shop.events_by_person
    return ShopReport(
        folder=folder,
        people=settings.users,
        items=settings.items,
        days=settings.days,
        events={name: int(count) for name, count in zip(EVENTS, by_event, strict=True) if count},
        anonymous=int(by_event.sum() - by_person.sum()),
        gifts=gifts,
        gifts_flagged=flagged,
        repeats=repeats,
        grants=shop.grants.table.num_rows,
        left=left,
        cast=_cast(shop.people, by_person),
    )


def _cast(people: People, events: Ints) -> dict[str, str]:
    consent = np.where(people.segment == SEGMENTS.index("no_consent"), NONE, ALL)
    fitting = np.where(people.consent == consent, events, -1)
    cast = {}
    for code, segment in enumerate(SEGMENTS):
        rows = np.flatnonzero((people.segment == code) & (fitting >= 0))
        if len(rows):
            cast[segment] = people.ids[int(rows[np.argmax(fitting[rows])])].as_py()
    return cast


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name when it is whole, and vanishes when it is not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    place.mkdir()
    try:
        yield place
        place.rename(folder)  # over an empty folder too
    finally:
        shutil.rmtree(place, ignore_errors=True)
