"""Put the shards of one fit together as a snapshot; the published one, or the one that the evaluation asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.schema import CATEGORIES
from engine.snapshot import About, Lineage, Manifest, SnapshotWriter
from jobs.embed import load_items
from jobs.night import Night, moment, opened_ledger, table
from jobs.rank import TABLES
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
    writer.categories(pa.table([shelves.categories], schema=CATEGORIES))
    writer.fallback(fallback_table(this, shelves))
    writer.tower(tower.arrays())
    return writer.finish()
