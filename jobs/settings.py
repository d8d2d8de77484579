"""Every setting of every recipe, typed. conf/ gives the values and says what they are for; an unknown key is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.activity.mapping import DataSettings
from engine.consent.settings import ConsentSettings
from engine.evaluation.gates import GateSettings
from engine.ranking.settings import RankSettings
from engine.two_tower.settings import TowerSettings, TrainSettings
from jobs.cluster import ClusterSettings


@dataclass
class StoreSettings:
    """Where snapshots, the ledger and the keys lie; the server reads the same."""

    snapshots: str = "${out}/snapshots"
    ledger: str = "sqlite:///${out}/consent.db"
    keys: str = "${out}/keys"
    make_keys: bool = False  # make missing ones with a new ledger; for one machine and a first run
    parts: str = "${out}/activity"  # what partitions of the log came to, reused night after night
    keep: int = 3  # snapshots and nights, beside the one that serves and the one before it
    cache: str = "${out}/cache"  # where a snapshot is staged that goes to an object store


@dataclass
class EvaluateSettings:
    """holdout_days: the end of the log that the first fit does not see. people: at most so many are evaluated.
    surface: whose policy. baseline_neighbours: an item's, for the item-to-item baseline at its full strength.
    """

    holdout_days: float = 7.0
    people: int = 5000
    surface: str = "home"
    baseline_neighbours: int = 200


@dataclass
class ShopChoice:
    """The simulated shop; see engine/activity/simulator."""

    seed: int = 7
    start: str = "2026-01-01"
    days: int = 60
    users: int = 2000
    items: int = 1500
    sessions_per_day: float = 0.22
    page: int = 12
    seasons: float = 1.0
    newcomer_share: float = 0.08
    no_consent_share: float = 0.10
    gift_burst_share: float = 0.06
    partial_consent_share: float = 0.15
    wavering_share: float = 0.08
    minor_share: float = 0.03
    group_contrast: float = 1.0
    newcomer_days: int = 5
    anonymous_share: float = 0.12
    late_share: float = 0.06
    ended_share: float = 0.03
    clickbait_share: float = 0.04
    returning: float = 0.0
    churn: float = 0.0


@dataclass
class Settings:
    """What a recipe can be told."""

    out: str = ".bodega/out"
    run: str = ""  # name of the run; empty: from the inputs and the settings, so that a rerun finds its own work
    buckets: int = 0  # shards of people; 0: by the number of events
    neighbours: int = 50  # stored for each item
    popularity_days: float = 30.0  # after which a want counts half for popularity
    tail_share: float = 0.2  # items that together have this share of the wants are the tail
    force: str = ""  # a reason to publish past a gate
    dry_run: bool = False  # of ingest and publish: look, report, and write nothing
    file: str = ""  # of grants, for import_consent
    links: str = ""  # likewise, of ids that are one person's
    data: DataSettings = field(default_factory=lambda: DataSettings(live="${out}/events"))
    towers: TowerSettings = field(default_factory=TowerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    rank: RankSettings = field(default_factory=RankSettings)
    policy: dict[str, Any] = field(default_factory=dict)
    consent: ConsentSettings = field(default_factory=ConsentSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    gates: GateSettings = field(default_factory=GateSettings)
    shop: ShopChoice = field(default_factory=ShopChoice)


@dataclass
class ProveChoice:
    """How a policy is tried out on simulated people; see jobs/prove.py.

    warm_up: days of the log before the first night. days: that are lived with lists; their sum takes the place of shop.days.
    nightly: nights while the days go by, one after every `every` days; else the first night alone.
    lists: server, or popular: the best-sellers of the last 30 days, the same for all, from no server.
    minutes: after which no further day begins.
    """

    warm_up: int = 45
    days: int = 14
    nightly: bool = True
    every: int = 7
    lists: str = "server"
    minutes: float = 30.0


@dataclass
class ProveSettings(Settings):
    """The settings of jobs.prove: those of a night, and the trial's."""

    prove: ProveChoice = field(default_factory=ProveChoice)


@dataclass
class BackfillChoice:
    """Days to ingest as of their ends: since, until: dates, both included. upto: the last step of each night."""

    since: str = ""
    until: str = ""
    upto: str = "ingest"


@dataclass
class BackfillSettings(Settings):
    """What jobs.backfill can be told."""

    backfill: BackfillChoice = field(default_factory=BackfillChoice)
