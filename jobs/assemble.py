"""Put the shards of one fit together as a snapshot; the published one, or the one that the evaluation asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.activity.settle import interest
from engine.kernels.encode_user import OVER_ALL, OVER_TAIL, Scale, UserTower, nearest_decay
from engine.kernels.encode_user.scale import Similar
from engine.ranking.found import lanes
from engine.ranking.lanes.discovery import DiscoveryLane
from engine.ranking.lanes.similar import SimilarLane
from engine.ranking.lanes.two_tower import TwoTowerLane
from engine.schema import CATEGORIES, EVENTS
from engine.snapshot import About, Lineage, Manifest, SnapshotWriter
from jobs.embed import load_items
from jobs.night import FULL, Night, moment, opened_ledger, table
from jobs.rank import TABLES
from jobs.settings import Settings
from jobs.shop import fallback_table, item_table, load_shelves
from jobs.stage import fingerprint, finished


def assemble(this: Night, part: str, folder: Path, metrics: dict[str, float]) -> Manifest:
    """Write a snapshot of one fit into an empty folder.

    Raises:
        SnapshotError: a table breaks its schema, or a value is not finite.
    """
    ingest, train = finished(this.folder, "ingest"), finished(this.folder, "train")
    shelves = load_shelves(this, part)
    _, tower = load_items(this.folder / "embed", part)
    buckets = ingest.facts["buckets"]
    with opened_ledger(this.settings) as (ledger, _):
        audit_head = ledger.audit_head(ingest.facts["ledger_sequence"])  # a rerun finds the same, whatever came since
    about = About(
        as_of=moment(ingest.facts["as_of"]),
        lineage=Lineage(
            run=this.folder.name,
            config_hash=fingerprint(this.config)[:16],
            model=train.files[f"{part}/model.safetensors"].sha256[:16],
            training_root=ingest.fingerprint[:16],
            key_id=this.keys.rotating.key_id,
            ledger_sequence=ingest.facts["ledger_sequence"],
            audit_head=audit_head,
        ),
        vocabulary=this.vocabulary.to_json(),
        profiles=tuple({"name": profile.name, "groups": profile.groups} for profile in this.profiles),
        decays=tuple(float(np.log(2) / rate) for rate in tower.rates),
        width=tower.width,
        neighbours=shelves.shop.neighbour.shape[1],
        shards=len(buckets),
        metrics=metrics,
    )
    writer = SnapshotWriter(folder, about)
    for number, bucket in enumerate(buckets):
        parts = [table(this.folder / "rank" / f"{kind}-{part}-{bucket}.arrow") for kind in TABLES]
        writer.user_shard(number, *parts)
    writer.items(item_table(this, shelves))
    writer.categories(pa.table([list(shelves.kinds.names)], schema=CATEGORIES))
    writer.fallback(fallback_table(this, shelves))
    at = ingest.facts["as_of" if part == FULL else "cut"]
    writer.tower(tower.arrays() | _scale(this.settings, tower, at, shelves.shop.fresh_rate).arrays())
    return writer.finish()


def _scale(settings: Settings, tower: UserTower, at: int, fresh_rate: float) -> Scale:
    """What the server needs to ask the night's lanes again, and to weigh the events that came since; a team's own lane of one of
    these names only its night can ask.
    """
    asked, similar = {}, None
    for name, lane in lanes(settings.rank.lanes).items():
        if (name == OVER_ALL and isinstance(lane, TwoTowerLane)) or (
            name == OVER_TAIL and isinstance(lane, DiscoveryLane)
        ):
            asked[name] = (int(lane.keep), lane.trust)
        elif name == "similar" and isinstance(lane, SimilarLane):
            similar = Similar(int(lane.keep), lane.trust, lane.half_life, int(lane.latest))
    return Scale(
        at,
        fresh_rate,
        nearest_decay(tower.rates, settings.rank.mass_days),
        asked,
        tuple(interest(settings.data).tolist()),
        settings.data.gift_weight,
        {EVENTS.index(name): days for name, days in settings.rank.seen.items()},
        similar,
    )
