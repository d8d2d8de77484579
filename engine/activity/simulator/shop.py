"""The recipe: stock the shop, gather the people, live through the days, write it all down."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.activity.simulator.deeds import act
from engine.activity.simulator.draws import Ints, Stream, generator
from engine.activity.simulator.grants import allow
from engine.activity.simulator.items import stock
from engine.activity.simulator.log import EVENT_TRUTH, write_down
from engine.activity.simulator.pages import Cupboards
from engine.activity.simulator.people import ALL, NONE, SEGMENTS, People, find_needs, gather
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.truth import affinity_table, needs_table, users_table
from engine.activity.simulator.visits import GIFT, REPEAT, visit
from engine.errors import SettingsError
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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"The shop's folder {folder} is not empty.", "Name another folder, or remove this one.")
    with _appearing(folder) as place:
        items = stock(settings)
        people = gather(settings, items)
        needs = find_needs(settings, items, people)
        cupboards = Cupboards(settings.users, items)
        tally = _Tally(np.zeros(len(EVENTS), np.int64), np.zeros(settings.users, np.int64))
        grants = allow(settings, people)
        _write(place / "catalogue.parquet", items.catalogue)
        _write(place / "grants.parquet", grants)
        _write(place / "truth" / "affinity.parquet", affinity_table(people))
        _write(place / "truth" / "repeat_needs.parquet", needs_table(items, people, needs))
        with pq.ParquetWriter(place / "truth" / "events.parquet", EVENT_TRUTH, compression="zstd") as truth:
            for day in range(settings.days):
                rng = generator(settings.seed, Stream.DAY, day)
                visits = visit(settings, items, people, needs, day, rng)
                deeds = act(settings, items, people, cupboards, visits, day, rng)
                log, why = write_down(settings, items, people, visits, deeds, day, rng)
                date = settings.start + dt.timedelta(days=day)
                _write(place / "log" / f"date={date}" / "part-00000.parquet", log)
                truth.write_table(why)
                known = ~visits.anonymous[deeds.visit]
                tally.add(deeds.event, visits.person[deeds.visit][known], visits.reason[deeds.visit], log)
        _write(place / "truth" / "users.parquet", users_table(settings, people, tally.by_person))
        chosen = dataclasses.asdict(settings) | {"start": settings.start.isoformat()}
        (place / "truth" / "settings.json").write_text(json.dumps(chosen, indent=2) + "\n")
    counts = {name: int(count) for name, count in zip(EVENTS, tally.by_event, strict=True) if count}
    return ShopReport(
        folder=folder,
        people=settings.users,
        items=settings.items,
        days=settings.days,
        events=counts,
        anonymous=int(tally.by_event.sum() - tally.by_person.sum()),
        gifts=tally.gifts,
        gifts_flagged=tally.flagged,
        repeats=tally.repeats,
        grants=grants.num_rows,
        cast=_cast(people, tally.by_person),
    )


@dataclass(slots=True)
class _Tally:
    by_event: Ints
    by_person: Ints
    gifts: int = 0
    flagged: int = 0
    repeats: int = 0

    def add(self, event: Ints, known: Ints, reason: Ints, log: pa.Table) -> None:
        self.by_event += np.bincount(event, minlength=len(self.by_event))
        np.add.at(self.by_person, known, 1)
        self.gifts += int(np.count_nonzero(reason == GIFT))
        self.flagged += len(log["flags"].combine_chunks().flatten())
        self.repeats += int(np.count_nonzero(reason == REPEAT))


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
    (place / "truth").mkdir(parents=True)
    try:
        yield place
        place.rename(folder)  # over an empty folder too
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
