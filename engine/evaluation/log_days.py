"""Days of the log that came empty or thin since the snapshot that serves was made."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_DAY = dt.timedelta(days=1)
# A day that is less than half over says nothing: how few events the small hours have differs from shop to shop.
_LEAST_ELAPSED = 0.5


@dataclass(frozen=True, slots=True)
class OddDays:
    """In words, a day each."""

    empty: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()


def odd_days(
    by_day: Mapping[str, int],
    since: dt.datetime,
    as_of: dt.datetime,
    fall: float,
    noise: float = 2.0,
    delivered: Iterable[dt.date] = (),
) -> OddDays:
    """Hold each new day of a log against the day before and the same day of the week before.

    Against both, because a shop that closes on Saturdays is no fault: a day is odd where it lies below the lesser of the two
    that had events. A day that is not over is held against that part of them; one that is less than half over is left for
    the next night.

    Args:
        by_day: sound rows by ISO date, UTC.
        since: up to when the log was read for the snapshot that serves.
        as_of: up to when it is read now.
        fall: below 1 - fall of what is expected a day is thin.
        noise: standard errors of a count by which the bound gives way.
        delivered: dates of the log's partitions; one past `as_of` came without any event.
    """
    rows = {dt.date.fromisoformat(day): count for day, count in by_day.items()}
    if not rows:
        return OddDays()
    first = min(rows)
    day = since.date() + _DAY if _elapsed(since.date(), since) >= _LEAST_ELAPSED else since.date()
    empty, thin = [], []
    days = [day + each * _DAY for each in range((as_of.date() - day).days + 1)]
    beyond = sorted({each for each in delivered if each > max(as_of.date(), since.date())})
    for day in [*days, *beyond]:
        share = 1.0 if day in beyond else _elapsed(day, as_of)
        found, before, week_before = rows.get(day, 0), rows.get(day - _DAY, 0), rows.get(day - 7 * _DAY, 0)
        closed = day - 7 * _DAY >= first and not week_before
        expected = share * min((each for each in (before, week_before) if each), default=0)
        if share < _LEAST_ELAPSED or closed or not expected:
            continue
        if not found:
            empty.append(f"{day} is empty")
            continue
        bound = (1 - fall) * expected
        if found < bound - noise * math.sqrt(bound):
            thin.append(f"{day} has {found} rows where {expected:.0f} are usual")
    return OddDays(tuple(empty), tuple(thin))


def _elapsed(day: dt.date, moment: dt.datetime) -> float:
    """How much of a day had passed at a moment, 0..1."""
    midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
    return min(max((moment - midnight) / _DAY, 0.0), 1.0)
