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

from engine.consent import Level, Vocabulary
from engine.errors import SettingsError
from engine.evaluation import baselines, metrics, reliability
from engine.evaluation.gates import ERROR
from engine.policy import Chain, allowed, load_policies
from engine.schema import LANES, NO_ITEM
from engine.snapshot import Snapshot, UserRecord
from engine.two_tower.histories import Histories
from jobs.assemble import assemble
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import HOLDOUT, Night, night, table, write_table
from jobs.progress import say
from jobs.served import served
from jobs.settings import Settings
from jobs.shop import Shelves, load_shelves
from jobs.stage import Stage, StageManifest, fingerprint, finished, stage

LENGTH = 20
KINDS = ("all", "new")  # every want, or only those of items that the person had not wanted before
# The lists that are served, to people who turned the dial down as well, and the simple rankers to beat.
DIAL = {"served": Level.FULL, "served_on_purchases": Level.PURCHASES, "served_on_nothing": Level.NONE}
RANKERS = (*DIAL, "popularity", "personal_frequency", "item_to_item")
_USUAL = "usual.tally."
BEATEN = "popularity"  # the ranker that the served lists are measured against, person by person
Figures = dict[str, list[float]]  # per person, by figure


def evaluate(this: Night, cluster: Cluster) -> StageManifest:
    """A snapshot of the first fit is read and ranked as the server would, one task a bucket of people."""
    settings, facts = this.settings, finished(this.folder, "ingest").facts
    inputs = this.after("rank")
    config = {"evaluate": asdict(settings.evaluate), "policy": settings.policy, "wanted": settings.train.wanted}
    with stage(this.folder, "evaluate", inputs, config) as work:
        if work.whole:
            return finished(this.folder, "evaluate")
        surface_chain(settings)  # an unknown rule is refused here, not in a task
        folder = work.folder / "snapshot"
        shutil.rmtree(folder, ignore_errors=True)
        shelves = load_shelves(this, HOLDOUT)
        left = work.shards_left(facts["buckets"])
        if left:
            assemble(this, HOLDOUT, folder, {})
            shared = cluster.share(shelves)
            cluster.each(_judge, left, work, this, shared, folder, facts["cut"], label="evaluate")
            shutil.rmtree(folder)
        parts = [_judged(work.folder, bucket) for bucket in facts["buckets"]]
        figures = _means([part for part, _ in parts])
        told = {name: figures.pop(name) for name in [*figures] if name.startswith(_USUAL)}
        curve = reliability.curve({name.removeprefix(_USUAL): value for name, value in told.items()})
        figures |= {f"usual.{name}": value for name, value in curve.items()}
        lists = np.concatenate([given for _, given in parts])
        if len(lists):  # a figure of nobody would be compared with tomorrow's
            figures["served.coverage"] = metrics.coverage(lists, shelves.shop.size)
            share, error = metrics.tail_share(lists, shelves.shop.tail)
            figures |= {"served.tail_share": share, "served.tail_share" + ERROR: error}
        figures["evaluated"] = float(len(lists))
        for name, value in curve.items():
            if name.endswith(".told"):
                say(f"  usual {name[:-5]}: told {value:.3f}, happened {curve[name[:-5] + '.happened']:.3f}")
        for ranker in RANKERS:
            say(
                "  "
                + " ".join(
                    f"{name} {value:.4f}"
                    for name, value in figures.items()
                    if name.startswith(ranker + ".") and not name.endswith((ERROR, ".people"))
                )
            )
        return work.finish({"metrics": figures, "protocol": protocol(settings)})


def protocol(settings: Settings) -> str:
    """Names how the figures are measured: on whom, over which days, and what counts as wanted. The policy is no part of it:
    that a change of it made lists worse is what the figures are there to tell.
    """
    data = settings.data
    wanted = [settings.train.wanted, data.events, data.weights, data.gift_weight]
    return fingerprint(settings.evaluate, wanted, settings.tail_share, LENGTH)[:16]


def _judge(bucket: str, work: Stage, this: Night, shelves: Shelves, snapshot_folder: Path, cut: int) -> None:
    if not work.shards_left([bucket]):
        return  # done by a worker that was lost right after
    figures, given = _bucket(bucket, this, shelves, snapshot_folder, cut)
    values = pa.array(list(figures.values()), pa.list_(pa.float64()))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(given.ravel()), LENGTH)
    files = [
        write_table(work.folder / f"figures-{bucket}.arrow", pa.table({"figure": list(figures), "values": values})),
        write_table(work.folder / f"lists-{bucket}.arrow", pa.table({"items": lists})),
    ]
    work.shard_done(bucket, files, {"people": len(given)})


def _judged(folder: Path, bucket: str) -> tuple[Figures, NDArray[np.int32]]:
    rows = table(folder / f"figures-{bucket}.arrow")
    lists = table(folder / f"lists-{bucket}.arrow")["items"].combine_chunks()
    figures = dict(zip(rows["figure"].to_pylist(), rows["values"].to_pylist(), strict=True))
    return figures, lists.flatten().to_numpy().reshape(-1, LENGTH)


def _bucket(
    bucket: str, this: Night, shelves: Shelves, snapshot_folder: Path, cut: int
) -> tuple[Figures, NDArray[np.int32]]:
    settings = this.settings
    activity = table(this.folder / "ingest" / f"activity-{bucket}.arrow")
    keys = table(this.folder / "rank" / f"users-{HOLDOUT}-{bucket}.arrow")["user_key"]
    most = -(-settings.evaluate.people // len(finished(this.folder, "ingest").facts["buckets"]))
    everybody = Histories.of(activity, "profilable", cut).keys[:most]
    activity = activity.filter(pc.is_in(activity["user_key"], value_set=keys.combine_chunks()))
    before = Histories.of(activity, "profilable", cut)
    sampled = pc.is_in(before.keys, value_set=everybody).to_numpy(zero_copy_only=False)
    wanted = settings.train.wanted
    had_starts, had = _wants(activity, before, wanted, None, cut)
    all_starts, all_items = _wants(activity, before, wanted, cut, None)
    fresh = ~_pairs_in(all_starts, all_items, had_starts, had, shelves.shop.size)
    new_starts, new_items = _part(all_starts, fresh), all_items[fresh]
    came = np.diff(all_starts) > 0  # again; of the others it is known only that they did not
    shop, k = shelves.shop, LENGTH
    hidden = (had_starts, had)
    frequent_starts, frequent = _wants(activity, before, wanted, None, cut, distinct=False)
    figures: Figures = {}
    given = {(ranker, kind): np.full((before.users, k), NO_ITEM, np.int32) for ranker in DIAL for kind in KINDS}
    with Snapshot.open(snapshot_folder, verify=False) as snapshot:
        chain = surface_chain(settings)
        vocabulary = Vocabulary.from_json(snapshot.vocabulary)
        # Every profile grant of the night. Sensitive items ask for one of their own, not assumed here: they are withheld.
        granted = {ranker: vocabulary.under(level, vocabulary.groups) for ranker, level in DIAL.items()}
        offered: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
        for row in range(before.users):  # the very calls of a request; people are bounded by evaluate.people
            record = snapshot.user(before.keys[row].as_py())
            offered.append(_offers(record if sampled[row] else None, granted["served"]))
            if not came[row]:
                continue
            for (ranker, kind), lists in given.items():
                taken = frozenset(had[had_starts[row] : had_starts[row + 1]].tolist()) if kind == "new" else frozenset()
                items = served(snapshot, chain, record, granted[ranker], cut, taken=taken, limit=k).slate.item
                lists[row, : len(items)] = items
    for kind, starts, targets, hide in (("all", all_starts, all_items, None), ("new", new_starts, new_items, hidden)):
        rankings = {ranker: given[ranker, kind] for ranker in DIAL} | {
            "popularity": baselines.popularity(before.users, shop.popularity, k, hide),
            "personal_frequency": baselines.personal_frequency(frequent_starts, frequent, shop.popularity, k, hide),
            "item_to_item": baselines.item_to_item(had_starts, had, shelves.neighbour, shelves.likeness, k, hide),
        }
        counts = np.diff(starts)
        judged = counts > 0
        for ranker, ranked in rankings.items():
            hit = metrics.hits(ranked, starts, targets)[judged]
            for name, figure in (("recall", metrics.recall), ("ndcg", metrics.ndcg)):
                for depth in (10, 20):
                    figures[f"{ranker}.{kind}.{name}@{depth}"] = figure(hit, counts[judged], depth).tolist()
        for name in ("recall@20", "ndcg@10"):
            ours, theirs = (np.array(figures[f"{ranker}.{kind}.{name}"]) for ranker in ("served", BEATEN))
            figures[f"ahead.{kind}.{name}"] = (ours - theirs).tolist()
    owner = np.repeat(np.arange(before.users), [len(items) for items, _ in offered])
    items = np.concatenate([np.empty(0, np.int32), *(items for items, _ in offered)])
    chances = np.concatenate([np.empty(0, np.float32), *(chances for _, chances in offered)])
    starts = np.searchsorted(owner, np.arange(before.users + 1))
    happened = _pairs_in(starts, items, all_starts, all_items, shop.size)
    tallies = reliability.tallies(chances, happened, owner, before.users)
    figures |= {_USUAL + name: values[sampled].tolist() for name, values in tallies.items()}
    mix, lists = _mix(before, shelves, cut)[came], given["served", "all"][came]
    distance = metrics.intra_list_distance(lists, shop.vectors)
    figures["served.intra_list_distance"] = distance.tolist()
    off = metrics.miscalibration(mix, lists, shelves.root)
    figures["served.miscalibration"] = off[np.isfinite(off)].tolist()
    return figures, lists


def _offers(record: UserRecord | None, granted: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What somebody may be offered as the usual, and the chance that they want it again."""
    if record is None:
        return np.empty(0, np.int32), np.empty(0, np.float32)
    candidates = record.candidates
    ways = (candidates.lane == LANES.index("usual")) & allowed(candidates.basis, granted)
    chance = np.where(ways, candidates.score, -1).max(axis=1, initial=-1)
    return candidates.item[chance >= 0], chance[chance >= 0].astype(np.float32)


def surface_chain(settings: Settings, surface: str = "") -> Chain:
    """The policy of a surface; of the evaluated one where none is named.

    Raises:
        SettingsError: there is no such surface.
    """
    chains, name = load_policies(settings.policy), surface or settings.evaluate.surface
    if name not in chains:
        raise SettingsError(f"There is no surface '{name}'.", f"Use one of {', '.join(chains)}.")
    return chains[name]


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
    figures = {name: float(values.mean()) for name, values in every.items() if len(values)}
    # How far a figure of so few people is chance. Baselines stand in no gate.
    errors = {
        name + ERROR: float(values.std(ddof=1) / np.sqrt(len(values)))
        for name, values in every.items()
        if len(values) > 1 and name.startswith(("served.", "ahead."))
    }
    people = {f"served.{kind}.people": float(len(every.get(f"served.{kind}.recall@20", ()))) for kind in KINDS}
    return figures | errors | people


@recipe("evaluate")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings, begins=False) as (this, cluster):
        evaluate(this, cluster)


if __name__ == "__main__":
    main()
