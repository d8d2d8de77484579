"""Nightly step 4 of 6: find candidates in every lane, merge them per person, and keep the ways to justify each.

Run it alone, after embed:  python -m jobs.rank data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.consent import Vocabulary
from engine.ranking.found import lanes
from engine.ranking.merge import merge
from engine.ranking.people import gather
from engine.ranking.tables import shard_tables
from engine.two_tower.encoding import GroupSums, device_here
from engine.two_tower.histories import Histories
from jobs.cluster import Cluster
from jobs.embed import load_items
from jobs.launch import recipe
from jobs.night import FULL, HOLDOUT, PARTS, Night, night, table, write_table
from jobs.settings import Settings
from jobs.shop import Shelves, load_shelves
from jobs.stage import Stage, StageManifest, finished, stage

TABLES = ("users", "candidates", "sums", "seen", "mix", "cadence")


def rank(this: Night, cluster: Cluster) -> StageManifest:
    """One task for each bucket of people, for the published fit; for the other one, only whom the evaluation asks about."""
    settings, facts = this.settings, finished(this.folder, "ingest").facts
    lanes(settings.rank.lanes)  # an unknown lane is refused here, not in a task
    inputs = this.after("embed")
    config = {
        "rank": asdict(settings.rank),
        "evaluated": settings.evaluate.people,
        "tail": settings.tail_share,
        "popularity": settings.popularity_days,
    }
    with stage(this.folder, "rank", inputs, config) as work:
        if work.whole:
            return finished(this.folder, "rank")
        moments = {FULL: facts["as_of"], HOLDOUT: facts["cut"]}
        gpus = 1.0 if cluster.gpus else 0.0
        for part in PARTS:
            left = work.shards_left([f"{part}-{bucket}" for bucket in facts["buckets"]])
            if left:
                shelves = cluster.share(load_shelves(this, part))
                cluster.each(_rank_bucket, left, work, this, shelves, moments[part], label=f"rank '{part}'", gpus=gpus)
        return work.finish()


def _rank_bucket(name: str, work: Stage, this: Night, shelves: Shelves, moment: int) -> None:
    if not work.shards_left([name]):
        return  # done by a worker that was lost right after
    part, bucket = name.split("-", 1)
    settings = this.settings
    activity = table(this.folder / "ingest" / f"activity-{bucket}.arrow")
    histories = Histories.of(activity, "profilable", moment, shelves.sensitive)
    _, tower = load_items(this.folder / "embed", part)
    sums = load_sums(table(this.folder / "embed" / f"sums-{name}.arrow"))
    if part == HOLDOUT:
        buckets = len(finished(this.folder, "ingest").facts["buckets"])
        asked = evaluated(activity, histories, moment, settings, buckets)
        histories, sums = _only(activity, asked, histories, sums, moment, shelves.sensitive)
    vocabulary: Vocabulary = this.vocabulary
    # A profile is about events; whatever else these need was granted, or they were not here.
    profiles = tuple((profile.name, profile.groups | vocabulary.beside_groups) for profile in this.profiles)
    size, device = shelves.shop.size, device_here()
    people = gather(histories, sums, tower, profiles, size, moment, settings.rank, device, vocabulary.group_bases)
    found = {lane: source.find(people, shelves.shop) for lane, source in lanes(settings.rank.lanes).items()}
    merged = merge(found, settings.rank.candidates, settings.rank.least_each, settings.rank.reasoned)
    tables = shard_tables(people, merged, sums, shelves.root, shelves.sensitive, vocabulary.with_sensitive)
    files = [write_table(work.folder / f"{kind}-{name}.arrow", tables[kind]) for kind in TABLES]
    work.shard_done(name, files, {kind: tables[kind].num_rows for kind in TABLES})


def load_sums(rows: pa.Table) -> GroupSums:
    """The decayed sums that embed left for one bucket."""
    weights = rows["weights"].combine_chunks()
    decays = weights.type.list_size
    sums = rows["sums"].combine_chunks()
    return GroupSums(
        rows["owner"].to_numpy().astype(np.int64),
        rows["group"].to_numpy(),
        rows["last"].to_numpy(),
        weights.flatten().to_numpy().reshape(-1, decays),
        sums.flatten().to_numpy().reshape(len(rows), decays, sums.type.list_size // decays),
    )


def evaluated(
    activity: pa.Table, before: Histories, cut: int, settings: Settings, buckets: int
) -> np.ndarray[Any, Any]:
    """Rows of `before` of the people whom the hold-out can judge, with a want after the cut and a history before it; and as many
    of all who have a history, whether they came again or not.

    The keys are pseudorandom, so the first of them are a fair sample.
    """
    late = pc.and_(
        pc.greater(activity["ts"].cast(pa.int64()), cut), pc.greater_equal(activity["weight"], settings.train.wanted)
    )
    wanted = activity.filter(pc.and_(late, activity["profilable"]))["user_key"].unique()
    rows = np.flatnonzero(pc.is_in(before.keys, value_set=wanted).to_numpy(zero_copy_only=False))
    most = -(-settings.evaluate.people // buckets)
    return np.union1d(rows[:most], np.arange(min(most, before.users)))


def _only(
    activity: pa.Table,
    rows: np.ndarray[Any, Any],
    histories: Histories,
    sums: GroupSums,
    moment: int,
    sensitive: np.ndarray[Any, Any],
) -> tuple[Histories, GroupSums]:
    keys = histories.keys.take(pa.array(rows))
    kept = Histories.of(
        activity.filter(pc.is_in(activity["user_key"], value_set=keys)), "profilable", moment, sensitive
    )
    place = np.full(histories.users, -1)
    place[rows] = np.arange(len(rows))
    mine = place[sums.owner] >= 0
    return kept, GroupSums(
        place[sums.owner[mine]], sums.group[mine], sums.last[mine], sums.weights[mine], sums.sums[mine]
    )


@recipe("rank")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings, begins=False) as (this, cluster):
        rank(this, cluster)


if __name__ == "__main__":
    main()
