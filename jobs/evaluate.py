"""Nightly step 5 of 6: ask for the lists that would have been served at the cut, and hold them against what people did next.

Run it alone, after rank:  python -m jobs.evaluate data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.consent import Vocabulary
from engine.errors import SettingsError
from engine.evaluation import baselines, metrics
from engine.policy import Chain, Moment, Slate, load_policies, make_list
from engine.schema import LANES, NO_ITEM
from engine.snapshot import Snapshot
from engine.two_tower.histories import Histories
from jobs.assemble import assemble
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import HOLDOUT, Night, night, table
from jobs.progress import say
from jobs.settings import Settings
from jobs.shop import Shelves, load_shelves
from jobs.stage import StageManifest, finished, stage

LENGTH = 20
KINDS = ("all", "new")  # every want, or only those of items that the person had not wanted before
RANKERS = ("served", "popularity", "personal_frequency", "item_to_item")
Figures = dict[str, list[float]]  # per person, by figure


def evaluate(this: Night, cluster: Cluster) -> StageManifest:
    """A snapshot of the first fit is read and ranked as the server would, one task a bucket of people."""
    settings, facts = this.settings, finished(this.folder, "ingest").facts
    inputs = this.after("rank")
    config = {"evaluate": asdict(settings.evaluate), "policy": settings.policy, "wanted": settings.train.wanted}
    with stage(this.folder, "evaluate", inputs, config) as work:
        if work.whole:
            return finished(this.folder, "evaluate")
        _chain(settings)  # an unknown rule is refused here, not in a task
        folder = work.folder / "snapshot"
        shutil.rmtree(folder, ignore_errors=True)
        assemble(this, HOLDOUT, folder, {})
        shelves = load_shelves(this, HOLDOUT)
        shared = cluster.share(shelves)
        parts = cluster.each(_bucket, facts["buckets"], this, shared, folder, facts["cut"], label="evaluate")
        shutil.rmtree(folder)
        figures = _means([part for part, _ in parts])
        lists = np.concatenate([served for _, served in parts])
        if len(lists):  # a figure of nobody would be compared with tomorrow's
            figures["served.coverage"] = metrics.coverage(lists, shelves.shop.size)
            figures["served.tail_share"] = metrics.tail_share(lists, shelves.shop.tail)
        figures["evaluated"] = float(len(lists))
        for ranker in RANKERS:
            say(
                "  "
                + " ".join(f"{name} {value:.4f}" for name, value in figures.items() if name.startswith(ranker + "."))
            )
        return work.finish({"metrics": figures})


def _bucket(
    bucket: str, this: Night, shelves: Shelves, snapshot_folder: Path, cut: int
) -> tuple[Figures, NDArray[np.int32]]:
    settings = this.settings
    activity = table(this.folder / "ingest" / f"activity-{bucket}.arrow")
    keys = table(this.folder / "rank" / f"users-{HOLDOUT}-{bucket}.arrow")["user_key"]
    activity = activity.filter(pc.is_in(activity["user_key"], value_set=keys.combine_chunks()))
    before = Histories.of(activity, "profilable", cut)
    wanted = settings.train.wanted
    had_starts, had = _wants(activity, before, wanted, None, cut)
    all_starts, all_items = _wants(activity, before, wanted, cut, None)
    fresh = ~_pairs_in(all_starts, all_items, had_starts, had, shelves.shop.size)
    new_starts, new_items = _part(all_starts, fresh), all_items[fresh]
    shop, k = shelves.shop, LENGTH
    hidden = (had_starts, had)
    frequent_starts, frequent = _wants(activity, before, wanted, None, cut, distinct=False)
    figures: Figures = {}
    served = {}
    with Snapshot.open(snapshot_folder, verify=False) as snapshot:
        chain = _chain(settings)
        for kind in KINDS:
            served[kind] = np.full((before.users, k), NO_ITEM, np.int32)
            for row in range(before.users):  # the very calls of a request; people are bounded by evaluate.people
                taken = frozenset(had[had_starts[row] : had_starts[row + 1]].tolist()) if kind == "new" else frozenset()
                items = serve(snapshot, chain, before.keys[row].as_py(), taken, cut)
                served[kind][row, : len(items)] = items
    for kind, starts, targets, hide in (("all", all_starts, all_items, None), ("new", new_starts, new_items, hidden)):
        lists = {
            "served": served[kind],
            "popularity": baselines.popularity(before.users, shop.popularity, k, hide),
            "personal_frequency": baselines.personal_frequency(frequent_starts, frequent, shop.popularity, k, hide),
            "item_to_item": baselines.item_to_item(had_starts, had, shelves.neighbour, shelves.likeness, k, hide),
        }
        counts = np.diff(starts)
        judged = counts > 0
        for ranker, ranked in lists.items():
            hit = metrics.hits(ranked, starts, targets)[judged]
            for name, figure in (("recall", metrics.recall), ("ndcg", metrics.ndcg)):
                for depth in (10, 20):
                    figures[f"{ranker}.{kind}.{name}@{depth}"] = figure(hit, counts[judged], depth).tolist()
    mix = _mix(before, shelves, cut)
    distance = metrics.intra_list_distance(served["all"], shop.vectors)
    figures["served.intra_list_distance"] = distance.tolist()
    off = metrics.miscalibration(mix, served["all"], shelves.root)
    figures["served.miscalibration"] = off[np.isfinite(off)].tolist()
    return figures, served["all"]


def serve(snapshot: Snapshot, chain: Chain, key: bytes, taken: frozenset[int], now: int) -> NDArray[np.int32]:
    """The list that a server on this snapshot would give, with every profile grant of the night, without some items.

    Sensitive items ask for a grant of their own, which is not assumed here: they are withheld.
    """
    popular = Slate.of_anyone(*snapshot.fallback(), LANES.index("popular"))
    record = snapshot.user(key)
    vocabulary = Vocabulary.from_json(snapshot.vocabulary)
    moment = Moment(
        items=snapshot.items,
        categories=snapshot.categories,
        now_us=now,
        surface=chain.name,
        granted=vocabulary.groups,
        limit=LENGTH,
        exclude=taken,
        seen=record.seen if record is not None else None,
    )
    outcome = chain.run(popular, moment) if record is None else make_list(chain, record.candidates, popular, moment)
    return outcome.slate.item


def _chain(settings: Settings) -> Chain:
    chains = load_policies(settings.policy)
    if settings.evaluate.surface not in chains:
        raise SettingsError(f"There is no surface '{settings.evaluate.surface}'.", f"Use one of {', '.join(chains)}.")
    return chains[settings.evaluate.surface]


def _wants(
    activity: pa.Table, people: Histories, wanted: float, after: int | None, until: int | None, distinct: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Items wanted in a stretch of time, ascending within each person of `people`, as offsets and items."""
    every = Histories.of(activity, "profilable", until)
    row = {key: place for place, key in enumerate(people.keys.to_pylist())}
    place = np.array([row.get(key, -1) for key in every.keys.to_pylist()], np.int64)
    owner = place[every.owner] if every.users else every.owner
    counts = (every.weight >= wanted) & (owner >= 0)
    if after is not None:
        counts &= every.ts > after
    span = int(every.item.max(initial=0)) + 1
    pairs = owner[counts] * span + every.item[counts]
    pairs = np.unique(pairs) if distinct else np.sort(pairs)
    return np.searchsorted(pairs, np.arange(people.users + 1) * span), (pairs % span).astype(np.int32)


def _pairs_in(
    starts: NDArray[np.int64],
    items: NDArray[np.int32],
    in_starts: NDArray[np.int64],
    in_items: NDArray[np.int32],
    size: int,
) -> NDArray[np.bool_]:
    wanted = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * size + items
    return np.isin(wanted, np.repeat(np.arange(len(in_starts) - 1), np.diff(in_starts)) * size + in_items)


def _part(starts: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(kept)])[starts].astype(np.int64)


def _mix(histories: Histories, shelves: Shelves, cut: int) -> NDArray[np.float64]:
    """(U, C) what each person's wants are made of."""
    category = shelves.root[histories.item]
    real = (category >= 0) & (histories.weight > 0)
    count = max(len(shelves.categories), 1)
    code = histories.owner[real] * count + category[real]
    mix = np.bincount(code, histories.weight[real], histories.users * count).reshape(histories.users, count)
    total = mix.sum(1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(mix, total, out=np.zeros(mix.shape), where=total > 0)
    return shares


def _means(parts: list[Figures]) -> dict[str, float]:
    names = sorted({name for part in parts for name in part})
    every: dict[str, Any] = {name: np.concatenate([part.get(name, []) for part in parts]) for name in names}
    return {name: float(values.mean()) for name, values in every.items() if len(values)}


@recipe("evaluate")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings) as (this, cluster):
        evaluate(this, cluster)


if __name__ == "__main__":
    main()
