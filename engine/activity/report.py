"""What an ingest saw: rows by source, event and day, what was refused and why, how far each source has come, odd days."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.activity.columns import DAY, event_name
from engine.activity.parts import About
from engine.errors import DataError, QuarantineError

_DAY_ZERO = dt.date(1970, 1, 1)
_NAMED = 5  # files that an error names


@dataclass(slots=True)
class Reading:
    """What all partitions of a log came to, before a night looks at them.

    counts: rows not taken, by reason; reasons that begin with - are no fault. refused: file -> what is wrong with it. bad:
    rows quarantined, by file. by_source, by_event, by_day: sound rows. watermarks: by source, the time of the latest event,
    microseconds since the epoch.
    """

    files: int = 0
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    by_source: Counter[str] = field(default_factory=Counter)
    by_event: Counter[str] = field(default_factory=Counter)
    by_day: Counter[str] = field(default_factory=Counter)
    watermarks: dict[str, int] = field(default_factory=dict)

    @property
    def latest(self) -> int | None:
        """The time of the latest event, microseconds since the epoch."""
        return max(self.watermarks.values(), default=None)


def summed(parts: Iterable[About], files: int, sources: Sequence[str]) -> Reading:
    """The parts of a log together."""
    reading = Reading(files)
    by_day: Counter[int] = Counter()
    for part in parts:
        reading.rows += part.rows
        reading.counts.update(part.counts)
        reading.refused |= part.refused
        reading.bad |= part.bad
        reading.near |= part.near
        for day, source, event, rows in part.tally:
            reading.by_source[sources[source]] += rows
            reading.by_event[event_name(event)] += rows
            by_day[day] += rows
        for code, moment in part.latest.items():
            name = sources[int(code)]
            reading.watermarks[name] = max(moment, reading.watermarks.get(name, moment))
    reading.by_day = Counter({_date(day).isoformat(): rows for day, rows in sorted(by_day.items())})
    return reading


def _date(day: int) -> dt.date:
    return _DAY_ZERO + dt.timedelta(days=day)


def warnings(reading: Reading) -> list[str]:
    """Days without an event, or with less than half of the day before; sources that lag a day or more behind the others."""
    found = []
    days = {dt.date.fromisoformat(day): rows for day, rows in reading.by_day.items()}
    for day in sorted(days)[:-1]:
        next_day = day + dt.timedelta(days=1)
        rows = days.get(next_day, 0)
        if not rows:
            found.append(f"{next_day} is empty.")
        elif 2 * rows < days[day]:
            found.append(f"{next_day} has {rows} rows, less than half of the {days[day]} of the day before.")
    for source, moment in sorted(reading.watermarks.items()):
        behind = ((reading.latest or moment) - moment) / DAY
        if behind >= 1:
            found.append(f"'{source}' has arrived up to {behind:.1f} days before the latest event alone.")
    return found


def check_share(reading: Reading, counts: Mapping[str, int], rows_allowed: float, files_allowed: float) -> None:
    """Refuse a log of which too much is bad.

    Args:
        counts: rows by reason, with what a night found besides.
        rows_allowed, files_allowed: shares, 0..1.

    Raises:
        DataError: there is no row. QuarantineError: names files with what was expected and found, or the counts by
            reason with the near misses.
    """
    remedy = (
        "The run's ingest/quarantine has file, line and reason. Correct log or conf/data, or raise data.bad_{}_allowed."
    )
    if len(reading.refused) > files_allowed * reading.files:
        first = [told["message"] for told in list(reading.refused.values())[:_NAMED]]
        more = f" And {len(reading.refused) - _NAMED} more." if len(reading.refused) > _NAMED else ""
        raise QuarantineError(
            f"{len(reading.refused)} of {reading.files} files cannot be used; allowed is a share of {files_allowed}. "
            + " ".join(first)
            + more,
            remedy.format("files"),
        )
    if not reading.rows:
        raise DataError("The log holds no row at all.", "Check data.path and data.log; an empty day publishes nothing.")
    bad = {reason: count for reason, count in counts.items() if not reason.startswith("-") and count}
    if sum(bad.values()) > rows_allowed * reading.rows:
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(bad.items(), key=lambda pair: -pair[1]))
        meant = "".join(f" Did you mean '{known}' by '{name}'?" for name, known in sorted(reading.near.items()))
        raise QuarantineError(
            f"{sum(bad.values())} of {reading.rows} rows are bad ({listed}); allowed is a share of {rows_allowed}.{meant}",
            remedy.format("rows"),
        )


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, summed."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def facts(reading: Reading) -> dict[str, Any]:
    """What a manifest keeps of it."""
    return {
        "files": reading.files,
        "rows": reading.rows,
        "refused": reading.refused,
        "bad_rows": reading.bad,
        "by_source": dict(reading.by_source),
        "by_event": dict(reading.by_event),
        "by_day": dict(sorted(reading.by_day.items())),
        "watermarks": reading.watermarks,
    }
