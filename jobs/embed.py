"""Nightly step 3 of 6: item vectors, item neighbours, habits, and each person's decayed sums by source.

Run it alone, after train:  python -m jobs.embed data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.kernels import co_visits
from engine.kernels.encode_user import UserTower, nearest_decay
from engine.ranking.habits import Habits, tally
from engine.schema import sums_schema
from engine.two_tower import checkpoint
from engine.two_tower.encoding import device_here, group_sums, item_vectors
from engine.two_tower.histories import Histories
from engine.two_tower.training import TwoTower
from jobs.cluster import Cluster
from jobs.ingest import sensitive
from jobs.launch import recipe
from jobs.night import FULL, HOLDOUT, PARTS, Night, night, table, write_table
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import Stage, StageManifest, finished, stage
from jobs.train import training_input

_LATEST = 300  # of a person's distinct items that count for co-visits: a robot's thousand would be a million pairs


def embed(this: Night, cluster: Cluster) -> StageManifest:
    """One task for the items of each fit, one for each bucket of people, then the counts together."""
    settings, before = this.settings, finished(this.folder, "ingest").facts
    inputs = this.after("ingest", "train")
    config = {
        "rank": asdict(settings.rank),
        "neighbours": [settings.neighbours, settings.evaluate.baseline_neighbours],
        "wanted": settings.train.wanted,
        "profiles": [(profile.name, profile.groups) for profile in this.profiles],
    }
    with stage(this.folder, "embed", inputs, config) as work:
        if work.whole:
            return finished(this.folder, "embed")
        moments = {FULL: before["as_of"], HOLDOUT: before["cut"]}
        gpus = 1.0 if cluster.gpus else 0.0
        left = work.shards_left([f"items-{part}" for part in PARTS])
        cluster.each(_items, left, work, this.folder, settings, label="embed items", gpus=gpus)
        each = [f"{part}-{bucket}" for part in PARTS for bucket in before["buckets"]]
        left = work.shards_left(each)
        cluster.each(_people, left, work, this.folder, settings, moments, label="embed people", gpus=gpus)
        left = work.shards_left([f"shop-{part}" for part in PARTS])
        cluster.each(_shop, left, work, this.folder, settings, before["items"], before["buckets"], label="count shop")
        return work.finish()


def _items(name: str, work: Stage, run: Path, settings: Settings) -> None:
    if not work.shards_left([name]):
        return  # done by a worker that was lost right after
    part = name.removeprefix("items-")
    device = device_here()
    facts = finished(run, "ingest").facts
    limit = facts["cut"] if part == HOLDOUT else None
    histories, bag = training_input(run / "ingest", facts["buckets"], limit, settings.towers.hashed)
    wants = np.bincount(histories.item, histories.weight >= settings.train.wanted, minlength=len(bag.starts) - 1)
    model = TwoTower(len(bag.starts) - 1, bag, wants > 0, settings.towers)
    checkpoint.load_weights(run / "train" / part / "model.safetensors", model)
    vectors = item_vectors(model.eval().to(device).items)
    width = pa.list_(pa.float32(), vectors.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]).cast(width)
    items = write_table(work.folder / f"vectors-{part}.arrow", pa.table({"vector": column}))
    tower = write_table(work.folder / f"tower-{part}.arrow", _tower_table(model.people.arrays()))
    say(f"embed: {len(vectors)} items of '{part}' on {device}")
    work.shard_done(name, [items, tower])


def _people(name: str, work: Stage, run: Path, settings: Settings, moments: dict[str, int]) -> None:
    if not work.shards_left([name]):
        return  # done by a worker that was lost right after
    part, bucket = name.split("-", 1)
    device = device_here()
    activity = table(run / "ingest" / f"activity-{bucket}.arrow")
    vectors, tower = load_items(work.folder, part)
    delicate = sensitive(table(run / "ingest" / "catalogue.arrow"))
    ranked = Histories.of(activity, "profilable", moments[part], delicate)
    sums = group_sums(ranked, vectors, tower, device)
    decays, width = len(tower.rates), vectors.shape[1]
    schema = sums_schema(decays, width)
    owner = pa.array(sums.owner.astype(np.int32))
    rows = pa.table(
        {
            "owner": owner,
            "group": pa.array(sums.group),
            "last": pa.array(sums.last),
            "weights": pa.FixedSizeListArray.from_arrays(pa.array(sums.weights.ravel()), decays).cast(
                schema.field("weights").type
            ),
            "sums": pa.FixedSizeListArray.from_arrays(pa.array(sums.sums.ravel()), decays * width).cast(
                schema.field("sums").type
            ),
        }
    )
    trained = Histories.of(activity, "trainable", moments[part])
    codes, people = co_visits.co_visits(*_distinct(trained, settings.train.wanted, len(vectors)), len(vectors))
    rate = float(
        tower.rates[nearest_decay(tower.rates, settings.rank.mass_days)]
    )  # people's mass fades as the lanes have it
    wanted, days, horizon = settings.train.wanted, settings.rank.mass_days, settings.rank.horizon_days
    habits = tally(trained, len(vectors), moments[part], wanted, days, horizon, rate)
    files = [
        write_table(work.folder / f"sums-{name}.arrow", rows),
        write_table(work.folder / f"pairs-{name}.arrow", pa.table({"code": codes, "people": people})),
        write_table(work.folder / f"habits-{name}.arrow", pa.table({"again": habits.again, "mass": habits.mass})),
    ]
    work.shard_done(name, files, {"fresh": habits.fresh, "roots": habits.roots})


def _shop(name: str, work: Stage, run: Path, settings: Settings, items: int, buckets: list[str]) -> None:
    if not work.shards_left([name]):
        return  # done by a worker that was lost right after
    part = name.removeprefix("shop-")
    facts = work.shard_facts()
    codes, people = np.empty(0, np.int64), np.empty(0, np.float64)
    habits = Habits(np.zeros(items), np.zeros(items), 0.0, 0.0)
    for bucket in buckets:
        pairs = table(work.folder / f"pairs-{part}-{bucket}.arrow")
        codes, people = co_visits.add(codes, people, pairs["code"].to_numpy(), pairs["people"].to_numpy())
        counted, about = table(work.folder / f"habits-{part}-{bucket}.arrow"), facts[f"{part}-{bucket}"]
        habits += Habits(counted["again"].to_numpy(), counted["mass"].to_numpy(), about["fresh"], about["roots"])
    keep = max(settings.neighbours, settings.evaluate.baseline_neighbours if part == HOLDOUT else 0)
    near, likeness = co_visits.neighbours(codes, people, items, keep)
    rows = pa.table(
        {
            "neighbour": pa.FixedSizeListArray.from_arrays(pa.array(near.ravel()), keep),
            "likeness": pa.FixedSizeListArray.from_arrays(pa.array(likeness.ravel()), keep),
            "hazard": habits.hazard(_kinds(run)),
        }
    )
    work.shard_done(name, [write_table(work.folder / f"{name}.arrow", rows)], {"fresh_rate": habits.fresh_rate})


def _kinds(run: Path) -> Any:
    """(I,) a code for each item's whole category path, -1 without one."""
    paths = table(run / "ingest" / "catalogue.arrow")["categories"].combine_chunks()
    joined = pc.binary_join(paths, "\0")
    return pc.fill_null(pc.if_else(pc.equal(joined, ""), None, joined).dictionary_encode().indices, -1).to_numpy(False)


def _distinct(histories: Histories, wanted: float, items: int) -> tuple[Any, Any]:
    """Each person's latest distinct wanted items, as offsets and item rows."""
    counts = histories.weight >= wanted
    owner, item, ts = histories.owner[counts], histories.item[counts], histories.ts[counts]
    order = np.lexsort((-ts, item, owner))
    owner, item, ts = owner[order], item[order], ts[order]
    fresh = np.ones(len(owner), bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (item[1:] != item[:-1])
    owner, item, ts = owner[fresh], item[fresh], ts[fresh]
    order = np.lexsort((item, -ts, owner))
    owner, item = owner[order], item[order]
    kept = np.arange(len(owner)) - np.searchsorted(owner, owner) < _LATEST
    owner, item = owner[kept], item[kept]
    return np.searchsorted(owner, np.arange(histories.users + 1)), item


def _tower_table(tower: UserTower) -> pa.Table:
    arrays = tower.arrays()
    return pa.table(
        {
            "name": list(arrays),
            "shape": [list(array.shape) for array in arrays.values()],
            "values": [array.ravel() for array in arrays.values()],
        }
    )


def load_items(folder: Path, part: str) -> tuple[Any, UserTower]:
    """(I, D) item vectors and the user tower that embed left for one fit."""
    column = table(folder / f"vectors-{part}.arrow")["vector"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    rows = table(folder / f"tower-{part}.arrow").to_pylist()
    return vectors, UserTower.of(
        {row["name"]: np.array(row["values"], np.float32).reshape(row["shape"]) for row in rows}
    )


@recipe("embed")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings, begins=False) as (this, cluster):
        embed(this, cluster)


if __name__ == "__main__":
    main()
