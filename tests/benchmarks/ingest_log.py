"""The log that ingest and its peers read: a simulated shop, made as untidy as logs are, with its ledger and keys."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.activity.mapping import DataSettings
from engine.activity.simulator import ShopSettings, simulate
from jobs.import_consent import import_table
from jobs.night import opened_ledger
from jobs.settings import ConsentSettings, EvaluateSettings, Settings, StoreSettings
from tests.benchmarks.ingest_work import HALF_LIFE, HOLDOUT_DAYS, RETENTION, SOURCES, STANDINGS, WEIGHTS

DAYS = 91
# In step with one another: a log half as long has half the people, until there are as many as a large shop has.
_EVENTS_A_USER, _MOST_USERS, _FEWEST_USERS = 100, 200_000, 200
_TRIAL_USERS, _TRIAL = 20_000, (0.1, 0.4)  # at most; sessions a day of two such shops, which tell what a session brings
_LONGEST_DELAY = 14  # days after which a row may come again


@dataclass(frozen=True, slots=True)
class LogSettings:
    """A log of about `events` rows over 91 days, one folder a day, 20 to 250 events a person.

    repeated: share of rows that stand again, as they are, in the folder of a later day. strangers: share of rows with an
    event that nobody announced. gone: share of the items that the catalogue has lost. no_consent: people without a grant.
    """

    events: int
    seed: int = 7
    items: int = 20_000
    repeated: float = 0.02
    strangers: float = 0.001
    gone: float = 0.005
    no_consent: float = 0.12

    @property
    def users(self) -> int:
        """People of the shop, most of whom are seen in the log."""
        return max(_FEWEST_USERS, min(_MOST_USERS, self.events // _EVENTS_A_USER))

    def shop(self, users: int, sessions_per_day: float) -> ShopSettings:
        """A shop of this kind."""
        return ShopSettings(
            seed=self.seed,
            start=dt.date(2026, 1, 1),
            days=DAYS,
            users=users,
            items=self.items,
            sessions_per_day=sessions_per_day,
            no_consent_share=self.no_consent,
        )


@dataclass(frozen=True, slots=True)
class Log:
    """A log on disk. rows: in all partitions; users: in the simulated shop, seen or not."""

    folder: Path
    rows: int
    users: int

    @property
    def days(self) -> list[Path]:
        """The partitions, in order of time."""
        return sorted((self.folder / "log").iterdir())


def open_log(settings: LogSettings, folder: Path) -> Log:
    """Make the log below `folder`, or take the one that these settings made before."""
    made = folder / f"log-{settings.events}-{settings.seed}"
    about = made / "about.json"
    held = json.loads(about.read_text()) if about.exists() else {}
    if held.get("settings") != asdict(settings):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        held = {"settings": asdict(settings)} | _make(settings, made)
        draft = about.with_suffix(".draft")
        draft.write_text(json.dumps(held, indent=2) + "\n")
        draft.rename(about)  # last: a log that was cut off is made again
    return Log(made, held["rows"], held["users"])


def night_settings(log: Log, out: Path, shop: Path | None = None) -> Settings:
    """What a night is told about this log; `shop` where a part of the log lies elsewhere, with the catalogue."""
    data = DataSettings(
        name="benchmark",
        path=str(shop or log.folder),
        retention_days=dict(RETENTION),
        weights=dict(WEIGHTS),
    )
    store = StoreSettings(
        ledger=f"sqlite:///{log.folder}/consent.db",
        keys=str(log.folder / "keys"),
        make_keys=True,
        parts=str(out / "activity"),
    )
    return Settings(
        out=str(out),
        data=data,
        store=store,
        consent=ConsentSettings(sources=list(SOURCES)),
        evaluate=EvaluateSettings(holdout_days=HOLDOUT_DAYS),
        popularity_days=HALF_LIFE,
    )


def all_but_the_last_day(log: Log, folder: Path) -> Path:
    """The same shop a day earlier: hard links, so that names, bytes and times are those of the whole log."""
    for path in [log.folder / "catalogue.parquet", *(file for day in log.days[:-1] for file in day.iterdir())]:
        target = folder / path.relative_to(log.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return folder


def add_the_last_day(log: Log, folder: Path) -> None:
    """Let a day arrive in a folder of `all_but_the_last_day`."""
    day = log.days[-1]
    (folder / "log" / day.name).mkdir()
    for path in day.iterdir():
        os.link(path, folder / "log" / day.name / path.name)


def _make(settings: LogSettings, folder: Path) -> dict[str, int]:
    shop = folder / "shop"
    simulate(settings.shop(settings.users, _sessions_per_day(settings, folder)), shop)
    rng = np.random.default_rng(settings.seed)
    catalogue = pq.read_table(shop / "catalogue.parquet")
    kept = np.sort(rng.permutation(len(catalogue))[int(settings.gone * len(catalogue)) :])
    pq.write_table(catalogue.take(kept), folder / "catalogue.parquet", compression="zstd")
    rows = _write_days(settings, rng, sorted((shop / "log").iterdir()), folder / "log")
    log = Log(folder, sum(rows), settings.users)
    _fill_ledger(log, pq.read_table(shop / "grants.parquet"))
    shutil.rmtree(shop)
    return {"rows": log.rows, "users": log.users}


def _sessions_per_day(settings: LogSettings, folder: Path) -> float:
    """How many sessions bring `events` rows, repeated ones among them: on the line through two shops."""
    users = min(settings.users, _TRIAL_USERS)
    found = []
    for sessions in _TRIAL:
        report = simulate(settings.shop(users, sessions), folder / "trial")
        shutil.rmtree(folder / "trial")
        found.append(report.total / users)
    wanted = settings.events / (1 + settings.repeated) / settings.users
    slope = (_TRIAL[1] - _TRIAL[0]) / (found[1] - found[0])
    return round(max(0.0, _TRIAL[0] + slope * (wanted - found[0])), 5)


def _write_days(settings: LogSettings, rng: np.random.Generator, days: list[Path], folder: Path) -> list[int]:
    """Each day with its strangers and with rows of earlier days that come again; how many rows each has."""
    again: dict[int, list[pa.Table]] = defaultdict(list)
    counts = []
    for number, day in enumerate(days):
        rows = pq.read_table(day / "part-00000.parquet", partitioning=None)
        strange = pa.array(rng.random(len(rows)) < settings.strangers)
        event = pc.if_else(strange, "hover", rows["event"])
        rows = rows.set_column(rows.column_names.index("event"), "event", event)
        repeated = np.flatnonzero(rng.random(len(rows)) < settings.repeated)
        delay = rng.integers(1, _LONGEST_DELAY + 1, len(repeated))
        for days_later in range(1, _LONGEST_DELAY + 1):
            again[number + days_later].append(rows.take(repeated[delay == days_later]))
        rows = pa.concat_tables([rows, *again.pop(number, [])]).combine_chunks()
        (folder / day.name).mkdir(parents=True)
        pq.write_table(rows, folder / day.name / "part-00000.parquet", compression="zstd")
        counts.append(len(rows))
    return counts


def _fill_ledger(log: Log, grants: pa.Table) -> None:
    """The grants that ingest asks about, in a ledger as the night reads it, and its standings for the peers."""
    asked = pc.is_in(grants["purpose"], pa.array(["profile", "train", "sensitive"]))
    settings = night_settings(log, log.folder)
    import_table(settings, grants.filter(asked))
    with opened_ledger(settings) as (ledger, _):
        standings, _ = ledger.standings()
    with pa.OSFile(str(log.folder / STANDINGS), "wb") as sink, pa.ipc.new_file(sink, standings.schema) as writer:
        writer.write_table(standings)
