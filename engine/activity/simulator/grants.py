"""What people allowed, as a team would hand it to the consent ledger. Who allowed nothing is not in it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.activity.simulator.draws import Bools, Ints, Stream, generator
from engine.activity.simulator.people import ALL, NEWCOMER, SOME, People
from engine.activity.simulator.settings import ShopSettings
from engine.schema import GRANTS

# Of the people who grant anything, how many grant each purpose.
_PURPOSES = {"profile": 1.0, "train": 0.92, "measure": 0.85, "sensitive": 0.2, "location": 0.35, "cross_source": 0.6}
_NOTICE = "2026-01"
_WITHDRAWN_LATER = 0.5  # of those who granted some sources: they granted all of them first
_DAY = 86_400_000_000


def allow(settings: ShopSettings, people: People) -> pa.Table:
    """The grants of everybody (schema.GRANTS), rows shuffled. A withdrawal is always later than what it withdraws."""
    rng = generator(settings.seed, Stream.GRANTS)
    count = len(people.segment)
    everything = len(settings.sources)  # stands for source "", all of them
    purposes = rng.random((count, len(_PURPOSES))) < np.array(list(_PURPOSES.values()))
    first = np.datetime64(settings.start, "us").astype(np.int64)
    before = first - (rng.random(count) * 300 * _DAY).astype(np.int64)
    # Before the log begins, but newcomers at the start of their day.
    signed = np.where(people.segment == NEWCOMER, first + people.arrival * _DAY, before)
    changed = first + (rng.random(count) * settings.days * _DAY).astype(np.int64)
    regrets = (people.consent == SOME) & (rng.random(count) < _WITHDRAWN_LATER)
    wide = (people.consent == ALL) | regrets
    one_by_one = (people.consent == SOME) & ~regrets

    parts = [
        _rows(purposes & wide[:, None], np.ones((count, 1), bool), everything, True, signed),
        _rows(purposes & one_by_one[:, None], people.allowed, 0, True, signed),
        _rows(purposes & regrets[:, None], ~people.allowed, 0, False, changed),
    ]
    person, purpose, source, granted, at = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    one = pa.array(np.zeros(len(person), np.int64))
    table = pa.table(
        [
            people.ids.take(pa.array(person)),
            pa.array(list(_PURPOSES)).take(pa.array(purpose)),
            pa.array([*settings.sources, ""]).take(pa.array(source)),
            pa.array(granted),
            pa.array([_NOTICE]).take(one),
            pa.array(["person"]).take(one),
            pa.array(at).cast(GRANTS.field("occurred_at").type),
        ],
        schema=GRANTS,
    )
    return table.take(pa.array(rng.permutation(len(person))))


def _rows(
    purposes: Bools, sources: Bools, offset: int, granted: bool, at: Ints
) -> tuple[Ints, Ints, Ints, Bools, Ints]:
    """One row for each person, purpose and source where both masks are set."""
    person, purpose, source = np.nonzero(purposes[:, :, None] & sources[:, None, :])
    return person, purpose, source + offset, np.full(len(person), granted), at[person]
