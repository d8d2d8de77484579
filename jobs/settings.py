"""Every setting of every recipe, typed. conf/ gives the values and says what they are for; an unknown key is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.activity.mapping import DataSettings
from engine.evaluation.gates import GateSettings
from engine.ranking.people import RankSettings
from engine.two_tower.towers import TowerSettings
from engine.two_tower.training import TrainSettings
from jobs.cluster import ClusterSettings


@dataclass
class ConsentSettings:
    """The sources of events, and the stored profiles that a withdrawal falls back to."""

    sources: list[str] = field(default_factory=list)
    profiles: dict[str, dict[str, list[str]]] = field(default_factory=dict)


@dataclass
class StoreSettings:
    """Where snapshots, the ledger and the keys lie; the server reads the same."""

    snapshots: str = "${out}/snapshots"
    ledger: str = "sqlite:///${out}/consent.db"
    keys: str = "${out}/keys"
    make_keys: bool = False  # make missing ones with a new ledger; for one machine and a first run
    keep: int = 3  # snapshots and nights, beside the one that serves and the one before it


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
    newcomer_share: float = 0.08
    no_consent_share: float = 0.10
    gift_burst_share: float = 0.06
    partial_consent_share: float = 0.15


@dataclass
class Settings:
    """What a recipe can be told."""

    out: str = ".bodega/out"
    run: str = ""  # name of the run; empty: from the inputs and the settings, so that a rerun finds its own work
    buckets: int = 4  # shards of people
    neighbours: int = 50  # stored for each item
    popularity_days: float = 30.0  # after which a want counts half for popularity
    tail_share: float = 0.2  # items that together have this share of the wants are the tail
    force: str = ""  # a reason to publish past a gate
    file: str = ""  # of grants, for import_consent
    data: DataSettings = field(default_factory=DataSettings)
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
