"""Thirty days of lists under several policies: the same simulated people, real nights, a real server, events told as they happen.

python -m tests.benchmarks.thirty_days --json
python -m tests.benchmarks.thirty_days --seeds 1 --days 9 --every 4 --users 400 --items 200        a quick look
python -m tests.benchmarks.thirty_days --arms relevance,default --svg curve.svg                     needs the extra `bench`

Arms: `relevance`, the best scores in their order, of what may be shown; `default`, conf/policy/default.yaml; `x0.5`, `x2` ...,
the default with the strengths of diversity and calibration times that; `+calibration`, relevance and that rule; `-spacing`, the
default without it; `-calibration:strength=0.5;pool=60`, the default with that rule so (several: joined by &); `none`, `session`,
`purchases`, the default at that step of the dial. After the warm-up and one night, each arm goes its own way: every day the
server is told who changed their mind, asked for the list of everybody who comes, and told what they then did; every so many days
comes a night.

Intervals are the middle 95 % over people drawn anew, the same people in both arms (paired bootstrap, Efron 1979,
doi:10.1214/aos/1176344552), of the arm over `relevance` less one. Only the simulator's truth judges: taste, needs, satisfaction.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from bodega.client import Client, recommend_request
from rich.console import Console
from rich.table import Table

from engine.activity.simulator import LiveShop, ShopSettings, Visitor
from engine.activity.simulator.deeds import CLICK, PURCHASE, shopping_visits
from engine.activity.simulator.report import tail_of
from engine.serving.settings import load
from jobs.lists import tell_consent, tell_events
from jobs.processes import run_night, wait_for_snapshot
from tests.benchmarks.thirty_days_figures import Course, interval
from tests.nights import command
from tests.serving.shop import Process

BASE = "relevance"
PLAIN = ("availability", "exclusions", "dismissed", "consent")
DIALS = ("none", "session", "purchases")
SHOWN = (
    "clicks_a_visit", "early_clicks_a_visit", "satisfaction", "late_satisfaction", "satisfied_visits", "late_satisfied_visits",
    "visits", "intra_list_distance", "miscalibration", "tail_share", "bubble",
)  # fmt: skip
_BATCH = 100
_PAGE = 12


@dataclass(frozen=True)
class Choice:
    """What is tried. warm_up: days before the first night. every: days between two nights."""

    days: int
    warm_up: int
    every: int
    users: int
    items: int
    night: tuple[str, ...]


def rules_of(arm: str) -> list[dict[str, Any]]:
    """The home page's rules under an arm."""
    rules = [dict(rule) for rule in load(["out=."]).policy["home"]["rules"]]
    if arm == BASE:
        return [rule for rule in rules if rule["name"] in PLAIN]
    if arm[0] in "+-":
        names = [name.partition(":")[0] for name in arm[1:].split("&")]
        changed = dict(name.split(":", 1) for name in arm[1:].split("&") if ":" in name)
        for rule in rules:
            for setting in changed.get(rule["name"], "").split(";"):
                if setting:
                    key, value = setting.split("=")
                    rule[key] = type(rule.get(key, 0.0))(float(value))
        # A name with settings after it is changed, not taken away.
        gone = [name for name in names if name not in changed]
        if arm[0] == "+":
            return [rule for rule in rules if rule["name"] in (*PLAIN, *names)]
        return [rule for rule in rules if rule["name"] not in gone]
    if arm.startswith("x"):
        for rule in rules:
            if rule["name"] in ("diversity", "calibration"):
                rule["strength"] = min(1.0, rule["strength"] * float(arm[1:]))
    return rules


def hydra(value: Any) -> str:
    """Plain settings in the grammar of an override."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(hydra(each) for each in value) + "]"
    return str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)


class Arm:
    """One policy, and the days that people live under it."""

    def __init__(self, name: str, base: Path, folder: Path, shop: LiveShop, choice: Choice) -> None:
        self.name, self._folder, self._choice = name, folder, choice
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("runs", "live", "events", "cache"))
        self._shop = copy.copy(shop)
        for part in ("moods", "_needs", "_cupboards", "_events"):
            setattr(self._shop, part, copy.deepcopy(getattr(shop, part)))
        self._shop.folder = folder / "shop"
        last = choice.warm_up + choice.days
        catalogue = shop.items.everything
        makers = catalogue["creator"].combine_chunks().dictionary_encode()
        creators = pc.fill_null(makers.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        self.course = Course(
            shop.people, shop.items, last, creators, tail_of(shop.items.popularity), start=choice.warm_up
        )
        self._rules = hydra(rules_of(name))  # here, for Hydra composes for one thread at a time
        self._row = {name: row for row, name in enumerate(shop.items.ids.to_pylist())}
        self._person = {name: row for row, name in enumerate(shop.people.ids.to_pylist())}
        self.bought: dict[tuple[int, int], list[int]] = {}

    def live(self) -> None:
        """All its days."""
        overrides = [
            f"out={self._folder}",
            "port=0",
            "log.format=json",
            f"policy.home.rules={self._rules}",
        ]
        overrides += ["live.oldest_days=36500", "live.ship_seconds=86400"]
        server = Process(overrides)
        try:
            with Client(server.address, timeout=30) as client:
                wait_for_snapshot(client)
                for day in self._days():
                    tell_consent(client, self._shop.grants.of(day))
                    lived = self._shop.live(day, lambda visitors, on: self._ask(client, visitors, on))
                    tell_events(client, lived.log)
                    self._count(day, lived)
                    if (day + 1 - self._choice.warm_up) % self._choice.every == 0 and day + 1 < self.course.days:
                        self._shop.write_books()
                        night = run_night(self._folder, self._choice.night)
                        wait_for_snapshot(client, str(night["snapshot"]))
        finally:
            server.kill()

    def _days(self) -> Iterator[int]:
        yield from range(self._choice.warm_up, self.course.days)

    def _ask(self, client: Client, visitors: Sequence[Visitor], day: int) -> list[list[str]]:
        level = self.name if self.name in DIALS else None
        given: list[list[str]] = []
        for first in range(0, len(visitors), _BATCH):
            part = visitors[first : first + _BATCH]
            requests = [
                recommend_request(
                    each.user_id, surface="home", limit=_PAGE, region=each.region, minor=each.minor, level=level,
                    visit_id=hashlib.blake2b(f"{day} {each.user_id}".encode(), digest_size=12).hexdigest(),
                )
                for each in part
            ]  # fmt: skip
            for each, result in zip(part, client.batch_recommend(requests, timeout=60), strict=True):
                if result.HasField("problem"):
                    raise RuntimeError(result.problem.message)
                given.append([item.item_id for item in result.response.items])
                for item in result.response.items:
                    if item.lane == "usual":
                        self.course.promised(self._person[each.user_id], self._row[item.item_id], day)
        persons = np.array([self._person[each.user_id] for each in visitors], np.int64)
        rows = [np.array([self._row[item] for item in each], np.int64) for each in given]
        self.course.lists(day, persons, rows)
        return given

    def _count(self, day: int, lived: Any) -> None:
        visits, deeds = lived.visits, lived.deeds
        home = np.flatnonzero(shopping_visits(visits).home)
        clicks = np.bincount(deeds.visit[deeds.event == CLICK], minlength=len(visits.person))
        worth = np.bincount(deeds.visit[deeds.satisfied == 1], minlength=len(visits.person)) > 0
        self.course.visited(day, visits.person[home], clicks[home], worth[home])
        rows = np.flatnonzero(deeds.event == PURCHASE)
        for person, item in zip(visits.person[deeds.visit[rows]].tolist(), deeds.item[rows].tolist(), strict=True):
            self.bought.setdefault((person, item), []).append(day)


def run(
    arms: Sequence[str], seeds: int, first: int, choice: Choice, folder: Path, at_once: int
) -> dict[str, list[Arm]]:
    """Every arm on every seed, from `first` on."""
    lived: dict[str, list[Arm]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        base = folder / f"seed-{seed}"
        settings = ShopSettings(
            seed=first + seed, days=choice.warm_up + choice.days, users=choice.users, items=choice.items, page=_PAGE,
            newcomer_days=choice.days, returning=1.0, churn=0.05, sessions_per_day=0.4,
        )  # fmt: skip
        shop = LiveShop(settings, base / "shop")
        for day in range(choice.warm_up):
            shop.live(day)
        shop.write_books()
        imported = command("jobs.import_consent", f"out={base}", f"file={base / 'shop' / 'grants.parquet'}")
        if imported.code:
            raise RuntimeError(imported.err)
        run_night(base, choice.night)
        made = [Arm(arm, base, folder / f"seed-{seed}-{place}", shop, choice) for place, arm in enumerate(arms)]
        with ThreadPoolExecutor(at_once) as pool:
            for place, arm in enumerate(pool.map(lambda each: (each.live(), each)[1], made)):
                lived[arm.name].append(arm)
                shutil.rmtree(folder / f"seed-{seed}-{place}", ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)
    return lived


def told(lived: dict[str, list[Arm]], draws: int) -> dict[str, dict[str, Any]]:
    """By arm, each figure with its interval against the base."""
    found: dict[str, dict[str, Any]] = {}
    for name, arms in lived.items():
        courses = [arm.course for arm in arms]
        figures: dict[str, Any] = {
            figure: float(np.mean([each.ratios()[figure] for each in courses])) for figure in SHOWN
        }
        wide = [each.shop_wide() for each in courses]
        figures |= {figure: float(np.mean([each[figure] for each in wide])) for figure in wide[0]}
        offers = [arm.course.kept(arm.bought, within=10) for arm in arms]
        figures["repeat_offers"] = sum(each[0] for each in offers)
        figures["repeat_reliability"] = sum(each[1] for each in offers) / max(1, figures["repeat_offers"])
        if BASE in lived and name != BASE:
            theirs = [arm.course for arm in lived[BASE]]
            figures["against_relevance"] = {
                figure: interval(courses, theirs, figure, draws) for figure in SHOWN if figure != "bubble"
            }
        groups = np.unique(courses[0].people.group)
        figures["by_group"] = {
            str(group): courses[0].ratios(np.flatnonzero(courses[0].people.group == group)) for group in groups.tolist()
        }
        found[name] = figures
    return found


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Figures by arm, with intervals below."""
    shown = Table(title="Thirty days")
    shown.add_column("")
    for name in found:
        shown.add_column(name, justify="right")
    for figure in (*SHOWN, "coverage", "creator_gini", "repeat_offers", "repeat_reliability"):
        cells = []
        for each in found.values():
            low, high = each.get("against_relevance", {}).get(figure, (0.0, 0.0))
            more = f"\n{low:+.1%} .. {high:+.1%}" if (low, high) != (0.0, 0.0) else ""
            cells.append(f"{each[figure]:.4g}{more}")
        shown.add_row(figure, *cells)
    groups = sorted({group for each in found.values() for group in each["by_group"]})
    for figure in ("satisfaction", "clicks_a_visit", "miscalibration"):
        for group in groups:
            cells = [
                f"{each['by_group'][group][figure]:.4g}" if group in each["by_group"] else "" for each in found.values()
            ]
            shown.add_row(f"{figure}, group {group}", *cells)
    return shown


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Satisfaction and clicks over the strength of the policy, as SVG."""
    from matplotlib.figure import Figure

    strengths = {BASE: 0.0, "default": 1.0} | {name: float(name[1:]) for name in found if name.startswith("x")}
    names = sorted((name for name in found if name in strengths), key=lambda name: strengths[name])
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for kind in ("satisfied_visits", "late_satisfied_visits", "early_clicks_a_visit"):
        base = found[BASE][kind]
        at = [strengths[name] for name in names]
        middle = [found[name][kind] / base - 1 for name in names]
        bars = [found[name].get("against_relevance", {}).get(kind, (0.0, 0.0)) for name in names]
        axes.errorbar(
            at, middle, capsize=3, label=kind.replace("_", " "), marker="o",
            yerr=[[max(0.0, m - low) for m, (low, _) in zip(middle, bars, strict=True)],
                  [max(0.0, high - m) for m, (_, high) in zip(middle, bars, strict=True)]],
        )  # fmt: skip
    axes.axhline(0, linewidth=0.8, color="black")
    axes.set_xlabel("strength of the policy (1: as in conf/policy/default.yaml)")
    axes.set_ylabel("against pure relevance")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="relevance,default,x0.5,x2,none,session,purchases")
    for name, value in (
        ("seeds", 2),
        ("first-seed", 1),
        ("days", 30),
        ("warm-up", 45),
        ("every", 10),
        ("users", 1500),
        ("items", 900),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--at-once", type=int, default=2, help="arms that live side by side")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument(
        "--night", nargs="*", default=["train.epochs=4", "cluster.cpus=1", "gates.beat_popularity=false"]
    )
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    choice = Choice(given.days, given.warm_up, given.every, given.users, given.items, tuple(given.night))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lived = run(given.arms.split(","), given.seeds, given.first_seed, choice, Path(folder), given.at_once)
    found = told(lived, given.draws)
    if given.svg:
        draw(found, given.svg)
    if given.json:
        sys.stdout.write(json.dumps({"arms": found, "seconds": round(time.monotonic() - began, 1)}) + "\n")
    else:
        Console(width=160).print(table(found))


if __name__ == "__main__":
    main()
