"""Nights of one shop and one model on different parts of one log: each a real snapshot, ranked and written as a night does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine import schema
from engine.consent import Vocabulary
from engine.kernels.encode_user import OVER_ALL, OVER_TAIL, Scale, UserTower, nearest_decay
from engine.ranking.found import lanes
from engine.ranking.merge import merge
from engine.ranking.people import Shop, gather
from engine.ranking.settings import RankSettings
from engine.ranking.tables import shard_tables
from engine.snapshot import About, Lineage, Manifest, Registry, SnapshotWriter
from engine.two_tower.encoding import group_sums
from engine.two_tower.histories import Histories
from jobs.rank import TABLES
from tests.event_logs import NOON
from tests.snapshot_builder import item_table

TOWER_LANES = {OVER_ALL: {"keep": 25, "trust": 0.25}, OVER_TAIL: {"keep": 10, "trust": 0.3}}


def filed(past: Histories, keys: Sequence[bytes]) -> Histories:
    """The same events, person by person under these keys, put into the order of the keys."""
    order = sorted(range(len(keys)), key=lambda user: keys[user])
    rows = np.concatenate([np.arange(past.starts[user], past.starts[user + 1]) for user in order])
    sizes = np.diff(past.starts)[order]
    return replace(
        past,
        keys=pa.array([keys[user] for user in order], schema.USER_KEY),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        **{name: getattr(past, name)[rows] for name in ("item", "ts", "weight", "group", "event")},
    )


def publish_night(
    root: Path | str,
    past: Histories,
    shop: Shop,
    tower: UserTower,
    vocabulary: Vocabulary,
    profiles: Sequence[Mapping[str, Any]],
    *,
    key_id: str = "",
    rank_lanes: Mapping[str, Mapping[str, Any]] = TOWER_LANES,
    candidates: int = 300,
    sensitive: Sequence[int] = (),
    scaled: bool = True,
    linear: bool = True,
) -> Manifest:
    """Rank everybody of a log on a shop and a tower, and publish.

    Args:
        past: people in the order of their keys; who has no event is no user of the snapshot.
        sensitive: items. scaled: with what the server needs to score again. linear: with the tower and the sums.
    """
    settings = RankSettings(candidates=candidates, lanes={name: dict(given) for name, given in rank_lanes.items()})
    masks = tuple((each["name"], each["groups"] | vocabulary.beside_groups) for each in profiles)
    delicate = np.isin(np.arange(shop.size), sensitive)
    past = replace(past, group=(past.group + schema.DELICATE * delicate[past.item]).astype(np.uint8))
    sums = group_sums(past, shop.vectors, tower)
    people = gather(past, sums, tower, masks, shop.size, NOON, settings, bases=vocabulary.group_bases)
    built = lanes(settings.lanes)
    merged = merge({name: lane.find(people, shop) for name, lane in built.items()}, candidates, settings.least_each)
    root_category = (np.arange(shop.size) % 4).astype(np.int32)
    tables = shard_tables(people, merged, sums, root_category, delicate, vocabulary.with_sensitive)
    width, neighbours = tower.width, shop.neighbour.shape[1]
    about = About(
        as_of=datetime.fromtimestamp(NOON / 1e6, UTC),
        lineage=Lineage(run="rebuilt", key_id=key_id),
        vocabulary=vocabulary.to_json(),
        profiles=tuple(profiles),
        decays=tuple(float(np.log(2) / rate) for rate in tower.rates),
        width=width,
        neighbours=neighbours,
        shards=1,
    )
    registry = Registry(root)
    staged = registry.stage()
    writer = SnapshotWriter(staged, about)
    writer.user_shard(0, *[tables[name] for name in TABLES])
    columns = {
        "vector": shop.vectors.tolist(),
        "neighbour": shop.neighbour.tolist(),
        "likeness": shop.likeness.tolist(),
        "popularity": shop.popularity.tolist(),
        "tail": shop.tail.tolist(),
        "sensitive": delicate.tolist(),
    }
    writer.items(item_table(shop.size, 4, width, neighbours, **columns))
    writer.categories(pa.table({"name": [f"category-{code}" for code in range(4)]}, schema=schema.CATEGORIES))
    best = np.lexsort((np.arange(shop.size), -shop.popularity))[:20]
    rows = [{"region": "", "category": -1, "item": int(i), "score": float(shop.popularity[i])} for i in best]
    writer.fallback(pa.Table.from_pylist(rows, schema=schema.FALLBACK))
    asked = {name: (int(lane.keep), lane.trust) for name, lane in built.items() if name in TOWER_LANES}  # type: ignore[attr-defined]
    decay = nearest_decay(tower.rates, settings.mass_days)
    scale = Scale(NOON, shop.fresh_rate, decay, asked).arrays() if scaled else {}
    writer.tower(tower.arrays() | scale if linear else {})
    writer.finish()
    return registry.publish(staged)
