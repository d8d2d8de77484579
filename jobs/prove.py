"""Try a policy on people who react: a simulated shop, nights over its log, a server, and days on which its lists are seen.

    python -m jobs.prove out=OUT prove.days=14
    python -m jobs.prove out=OTHER prove.days=14 prove.lists=popular       the same people; to all of them what sells best

The warm-up days show pages by popularity. Then comes a night, and with each day the server is told who changed their mind
about consent, and asked for the lists of those who come; they look, click, buy, are pleased or not, and come again or never.
One line a day; the last line on stdout is JSON, with what the days came to.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bodega.client import Client

from engine.activity.simulator import Course, DayReport, LiveShop, Tally
from engine.errors import GateBlocked, SettingsError
from jobs.import_consent import import_file
from jobs.launch import recipe
from jobs.lists import BestSellers, ServerLists, tell_consent, tell_events
from jobs.processes import run_night, server, wait_for_snapshot
from jobs.progress import say
from jobs.settings import ProveSettings
from jobs.simulate import shop_settings

HEAD = "date        visits  lists  clicks/list  satisfied  bought   tail    new  personal   left"


@recipe("prove", ProveSettings)
def main(settings: ProveSettings) -> None:
    """The command."""
    began = time.monotonic()
    check(settings)
    out, choice = Path(settings.out).resolve(), settings.prove
    chosen = shop_settings(settings.shop, days=choice.warm_up + choice.days)
    last = chosen.start + dt.timedelta(days=chosen.days)
    if last > dt.datetime.now(dt.UTC).date():
        raise SettingsError(f"The trial would end on {last}, which is to come.", "Set shop.start to an earlier day.")
    shop = LiveShop(chosen, out / "shop")
    for day in range(choice.warm_up):
        shop.live(day)
    shop.write_books()
    say(f"warm-up: {choice.warm_up} days, {int(shop.events_by_person.sum())} events of {chosen.users} people")
    trial = Trial(settings, out, shop, until=began + choice.minutes * 60)
    for line in trial.days():
        print(line, flush=True)
    print(json.dumps(trial.totals() | {"seconds": round(time.monotonic() - began, 1)}))


def check(settings: ProveSettings) -> None:
    """Refuse what cannot be meant.

    Raises:
        SettingsError: names the setting.
    """
    choice = settings.prove
    if choice.lists not in ("server", "popular"):
        raise SettingsError(f"prove.lists is '{choice.lists}'.", "Use server or popular.")
    for name in ("warm_up", "days", "every"):
        if getattr(choice, name) < 1:
            raise SettingsError(f"prove.{name} is {getattr(choice, name)}.", "Give a number of 1 or more.")
    if not choice.minutes > 0:
        raise SettingsError(f"prove.minutes is {choice.minutes}.", "Give a number above 0.")


# Days of the simulator lie in the past; and the shop writes its log by itself, with the same events in it.
_SIMULATED = ("live.oldest_days=36500", "live.ship_seconds=86400")


class Trial:
    """The days on which lists are seen, and what they came to."""

    def __init__(self, settings: ProveSettings, out: Path, shop: LiveShop, until: float) -> None:
        self._settings, self._out, self._shop, self._until = settings, out, shop, until
        self._course = Course(shop.people)
        self._snapshots: list[str] = []
        self._days = 0
        self._profiled = self._asked = 0

    def days(self) -> Iterator[str]:
        """Live through them; a line for each, under a head."""
        choice, shop = self._settings.prove, self._shop
        client: Client | None = None
        lists: ServerLists | BestSellers = BestSellers(shop.folder, shop.settings)
        with ExitStack() as stack:
            if choice.lists == "server":
                done = import_file(self._settings, str(shop.folder / "grants.parquet"))
                say(f"consent: {done.people} people, {done.changes} changes imported")
                night = self._night()
                client = stack.enter_context(Client(stack.enter_context(server(self._out, *_SIMULATED)), timeout=10.0))
                wait_for_snapshot(client, night)
                lists = ServerLists(client, shop.settings.page)
            yield HEAD
            for day in range(choice.warm_up, shop.settings.days):
                if time.monotonic() > self._until:
                    say(f"prove.minutes={choice.minutes:g} are over: {self._days} of {choice.days} days were lived")
                    break
                if client is not None:
                    tell_consent(client, shop.grants.of(day))
                lived = shop.live(day, lists)
                shop.write_books()
                if client is not None:
                    tell_events(client, lived.log)
                report = lived.report
                self._course.add(report)
                self._days += 1
                self._profiled, self._asked = lists.profiled, lists.asked
                yield self._line(report, lists.share_today)
                due = choice.nightly and self._days % choice.every == 0 and day + 1 < shop.settings.days
                if client is not None and due:
                    wait_for_snapshot(client, self._night())

    def totals(self) -> dict[str, Any]:
        """What the last line says. Figures of lists are of the visits that began with one."""
        course = self._course
        everything = _figures(course.listed) | {
            "lists": self._settings.prove.lists,
            "days": self._days,
            "visits": course.everything.visits,
            "list_visits": course.listed.visits,
            "return_rate": round(course.return_rate(), 4),
            "return_days": course.window,
            "personal_share": round(self._profiled / max(1, self._asked), 4),
        }
        everything |= {f"{kind}_share": round(course.slots.share(kind), 4) for kind in ("tail", "new", "owned", "dead")}
        everything["by_group"] = {
            name: _figures(tally) | {"return_rate": round(course.return_rate(name), 4)}
            for name, tally in course.by_group.items()
        }
        everything["by_segment"] = {name: _figures(tally) for name, tally in course.by_segment.items()}
        return everything | {"snapshots": self._snapshots}

    def _night(self) -> str:
        """Run one, and name the snapshot that serves after it."""
        ours = ("out=", "data.path=", "prove.", "shop.")
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
        try:
            night = run_night(self._out, arguments, timeout=max(60.0, self._until - time.monotonic()))
        except GateBlocked:
            if not self._snapshots:
                raise
            say("a gate kept the snapshot of the night before")
            return self._snapshots[-1]
        self._snapshots.append(str(night["snapshot"]))
        return self._snapshots[-1]

    @staticmethod
    def _line(report: DayReport, personal: float) -> str:
        listed, slots = report.listed, report.slots
        return (
            f"{report.date}  {report.everything.visits:>6} {listed.visits:>6}  {listed.clicks_a_visit:>11.2f}"
            f"  {listed.satisfaction:>9.1%}  {listed.purchases:>6}  {slots.share('tail'):>5.1%}"
            f"  {slots.share('new'):>5.1%}  {personal:>8.1%}  {report.everything.left:>5}"
        )


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "visits": tally.visits,
        "clicks_per_visit": round(tally.clicks_a_visit, 4),
        "satisfaction": round(tally.satisfaction, 4),
        "purchases": tally.purchases,
        "left": tally.left,
    }


if __name__ == "__main__":
    main()
