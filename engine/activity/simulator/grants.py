"""What people allowed, as a team would hand it to the consent ledger, and how they change their minds.

Who never allowed anything is not in it. A minor grants nothing; a guardian may grant `profile` and `measure` for one, for
every source, and never the rest: nobody grants for a child that models learn from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.activity.simulator.draws import Bools, Ints, Stream, generator
from engine.activity.simulator.groups import (
    ADULT,
    ALL_LEFT,
    ALL_PAUSED,
    SOURCE_LEFT,
    SOURCE_PAUSED,
    STEADY,
    TRAIN_LEFT,
)
from engine.activity.simulator.people import ALL, NEWCOMER, SOME, People
from engine.activity.simulator.settings import ShopSettings
from engine.schema import GRANTS

# Of the people who grant anything, how many grant each purpose.
_PURPOSES = {"profile": 1.0, "train": 0.92, "measure": 0.85, "sensitive": 0.2, "location": 0.35, "cross_source": 0.6}
_FOR_A_CHILD = np.array([name in ("profile", "measure") for name in _PURPOSES])
_TRAIN = np.array([name == "train" for name in _PURPOSES])
_NOTICES = ("2026-01", "2026-02")  # who comes back agreed to the later one
_ACTORS = ("person", "guardian")
_WITHDRAWN_LATER = 0.5  # of those who granted some sources: they granted all of them first
_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Grants:
    """Every change of consent from before the log until its end (schema.GRANTS), rows shuffled."""

    table: pa.Table
    first: int  # midnight before the first day of the log, microseconds since the epoch

    def until(self, day: int) -> pa.Table:
        """What was decided by the end of a day."""
        return self.table.filter(pa.array(self._at() < self.first + (day + 1) * _DAY))

    def of(self, day: int) -> pa.Table:
        """What was decided on a day, in time; at one time grants before withdrawals."""
        at = self._at() - self.first
        chosen = self.table.filter(pa.array((day * _DAY <= at) & (at < (day + 1) * _DAY)))
        keys = [("occurred_at", "ascending"), ("granted", "descending"), ("user_id", "ascending")]
        return chosen.sort_by([*keys, ("purpose", "ascending"), ("source", "ascending")])

    def _at(self) -> Ints:
        return np.asarray(pc.cast(self.table["occurred_at"], pa.int64()).to_numpy())


def allow(settings: ShopSettings, people: People) -> Grants:
    """Everybody's grants and withdrawals. A withdrawal is always later than what it withdraws."""
    rng = generator(settings.seed, Stream.GRANTS)
    count = len(people.segment)
    everything = len(settings.sources)  # stands for source "", all of them
    purposes = rng.random((count, len(_PURPOSES))) < np.array(list(_PURPOSES.values()))
    # Who will give up training has granted it; a guardian grants what one may for a child.
    purposes |= _TRAIN & (people.wavering == TRAIN_LEFT)[:, None]
    purposes &= _FOR_A_CHILD | (people.age == ADULT)[:, None]
    first = int(np.datetime64(settings.start, "us").astype(np.int64))
    before = first - (rng.random(count) * 300 * _DAY).astype(np.int64)
    # Before the log begins, but newcomers at the start of their day.
    signed = np.where(people.segment == NEWCOMER, first + people.arrival * _DAY, before)
    last = first + settings.days * _DAY - 1
    changed = first + 1 + (rng.random(count) * (last - first - 1)).astype(np.int64)
    returned = changed + 1 + (rng.random(count) * (last - changed)).astype(np.int64)

    waver = people.wavering
    regrets = (people.consent == SOME) & (waver == STEADY) & (rng.random(count) < _WITHDRAWN_LATER)
    wide = (people.consent == ALL) | regrets | (waver != STEADY)
    one_by_one = (people.consent == SOME) & ~wide
    whole = np.ones((count, 1), bool)
    doubted = np.arange(everything) == people.doubted[:, None]
    alone = everything == 1  # who leaves the only source has left all of them

    def rows(who: Bools, sources: Bools, granted: bool, at: Ints, what: Bools = purposes) -> _Rows:
        return _rows(what & who[:, None], sources, everything if sources is whole else 0, granted, at)

    parts = [
        rows(wide, whole, True, signed),
        rows(one_by_one, people.allowed, True, signed),
        rows(regrets, ~people.allowed, False, changed),
        rows(np.isin(waver, [SOURCE_PAUSED, SOURCE_LEFT]), whole if alone else doubted, False, changed),
        rows(np.isin(waver, [ALL_PAUSED, ALL_LEFT]), whole, False, changed),
        rows(waver == TRAIN_LEFT, whole, False, changed, purposes & _TRAIN),
        rows(waver == SOURCE_PAUSED, whole if alone else doubted, True, returned),
        rows(waver == ALL_PAUSED, whole, True, returned),
    ]
    again = np.repeat([0, 1], [sum(len(part[0]) for part in parts[:-2]), sum(len(part[0]) for part in parts[-2:])])
    person, purpose, source, granted, at = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    table = pa.table(
        [
            people.ids.take(pa.array(person)),
            pa.array(list(_PURPOSES)).take(pa.array(purpose)),
            pa.array([*settings.sources, ""]).take(pa.array(source)),
            pa.array(granted),
            pa.array(_NOTICES).take(pa.array(again)),
            pa.array(_ACTORS).take(pa.array((people.age[person] != ADULT).astype(np.int64))),
            pa.array(at).cast(GRANTS.field("occurred_at").type),
        ],
        schema=GRANTS,
    )
    return Grants(table.take(pa.array(rng.permutation(len(person)))), first)


_Rows = tuple[Ints, Ints, Ints, Bools, Ints]


def _rows(purposes: Bools, sources: Bools, offset: int, granted: bool, at: Ints) -> _Rows:
    """One row for each person, purpose and source where both masks are set."""
    person, purpose, source = np.nonzero(purposes[:, :, None] & sources[:, None, :])
    return person, purpose, source + offset, np.full(len(person), granted), at[person]
