"""Nights of the past, one for each day: what was known at its end, by the rules of today.

    python -m jobs.backfill data=shop data.path=DIR out=OUT backfill.since=2026-01-20 backfill.until=2026-01-31

Each day is a run named backfill-DATE; the log is read once for all of them, and days that are done are skipped. Nothing is
published: a snapshot of the past is not to serve today.
"""

from __future__ import annotations

import copy
import datetime as dt

from engine.errors import SettingsError
from jobs.cluster import connected
from jobs.launch import recipe
from jobs.night import night
from jobs.nightly import STEPS
from jobs.progress import say
from jobs.publish import publish
from jobs.settings import BackfillSettings

_STEPS = {step.__name__: step for step in STEPS if step is not publish}


@recipe("backfill", BackfillSettings)
def main(settings: BackfillSettings) -> None:
    """The command."""
    choice = settings.backfill
    if choice.upto not in _STEPS:
        raise SettingsError(f"backfill.upto is '{choice.upto}'.", f"Use one of {', '.join(_STEPS)}.")
    steps = list(_STEPS.values())[: list(_STEPS).index(choice.upto) + 1]
    with connected(settings.cluster):
        for day in days(choice.since, choice.until):
            of_day = copy.deepcopy(settings)
            of_day.run = f"backfill-{day}"
            of_day.data.as_of = dt.datetime.combine(day, dt.time.max, dt.UTC).isoformat()
            with night(of_day) as (this, cluster):
                for step in steps:
                    step(this, cluster)
            say(f"backfill: {day} is done up to {choice.upto}")


def days(since: str, until: str) -> list[dt.date]:
    """The days from one date to another, both included.

    Raises:
        SettingsError: one is no date, or they are the wrong way round.
    """
    try:
        first, last = dt.date.fromisoformat(since), dt.date.fromisoformat(until)
    except ValueError as error:
        raise SettingsError(
            f"backfill.since is '{since}', backfill.until '{until}'.", "Write both as 2026-01-31."
        ) from error
    if last < first:
        raise SettingsError(f"backfill.until {until} is before backfill.since {since}.", "Swap them.")
    return [first + dt.timedelta(days=number) for number in range((last - first).days + 1)]


if __name__ == "__main__":
    main()
