"""Nightly step 1 of 6: read the log, check it, replace ids by keys, honour consent, and sort it by person.

python -m jobs.ingest data=online_retail data.path=DIR out=OUT                run it alone
python -m jobs.ingest data=online_retail data.path=DIR dry_run=true           read, check, print the table, write nothing
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.activity.catalogue import read_catalogue
from engine.activity.categories import Categories
from engine.activity.columns import DAY
from engine.activity.gather import bind
from engine.activity.keys import Keys
from engine.activity.linked import linked_in, moved, with_persons
from engine.activity.parts import About, Partition
from engine.activity.report import Reading, added, check_share, facts, warnings
from engine.activity.settle import Tonight, retained_since, settle_bucket
from engine.consent import CROSS_SOURCE
from engine.errors import DataError
from engine.schema import POPULARITY
from jobs.cluster import Cluster, connected
from jobs.ingest_report import Step, show
from jobs.launch import recipe
from jobs.memory import measured
from jobs.night import FULL, HOLDOUT, Night, iso, night, table, write_table
from jobs.read_log import LogReader
from jobs.settings import Settings
from jobs.stage import Stage, StageManifest, finished, stage

_BUCKET = 6_000_000  # rows of the log; a task needs about 200 bytes for each that is carried on
_LEAST_BUCKETS = 4


def ingest(this: Night, cluster: Cluster) -> StageManifest:
    """New partitions of the log into parts (a task a few of them), then all parts by bucket of people (a task each)."""
    settings, data = this.settings, this.settings.data
    config = {
        "data": asdict(data) | {"path": "", "live": ""},  # what was read counts, not where it lay
        "buckets": settings.buckets,
        "holdout": settings.evaluate.holdout_days,
        "popularity": settings.popularity_days,
    }
    with stage(this.folder, "ingest", this.inputs, config) as work, ThreadPoolExecutor(1) as side:
        if work.whole:
            return finished(this.folder, "ingest")
        catalogue, dropped = read_catalogue(data)
        if work.shards_left(["catalogue"]):
            write_table(work.folder / "catalogue.arrow", catalogue)
            work.shard_done("catalogue", ["catalogue.arrow"], {"items": catalogue.num_rows})
        if work.shards_left(["clock"]):  # a rerun after a crash goes by the same clock
            work.shard_done("clock", [], {"now": time.time_ns() // 1000})
        now = work.shard_facts()["clock"]["now"]
        categories = Categories.of(catalogue["categories"], sensitive(catalogue))
        named = _named(catalogue, categories)
        log = LogReader(settings, this.inputs, named, dropped, this.keys, now)
        new = {part.name for part in log.partitions if not log.store.generation(log.names[part.name])}
        known = log.known()
        consent = side.submit(this.consent)  # a large ledger takes a while, and would hold up what is done before
        left, abouts, first = _read(log, cluster, known)
        reading = log.summed(abouts)
        log.keep_quarantine(abouts, work.folder / "quarantine")
        check_share(reading, reading.counts, data.bad_rows_allowed, data.bad_files_allowed)
        asked = data.as_of_microseconds()
        as_of = reading.latest if asked is None else asked
        if reading.latest is None or as_of is None or not any(about.held() for about in abouts):
            raise DataError(
                f"No usable event in {reading.rows} rows: {dict(reading.counts)}.", "Check conf/data against the log."
            )
        since = retained_since(data, as_of)
        left, abouts = _read_again(log, cluster, since, left, abouts)
        moments = {FULL: as_of, HOLDOUT: as_of - int(settings.evaluate.holdout_days * DAY)}
        buckets = _buckets(settings, reading.rows)
        items = (catalogue, categories, dropped)
        tonight = _tonight(this, log, abouts, items, consent.result(), as_of, tuple(moments.values()))
        tonight = _linked(this, cluster, tonight, abouts, consent.result()[1], buckets)
        settled, second = _settle(work, cluster, tonight, tuple(moments), buckets)
        expired = added(
            [*(each["expired"] for each in settled.values()), *(about.forgotten_by_name for about in abouts)]
        )
        counts = added([reading.counts, *(each["counts"] for each in settled.values())])
        counts["-past_retention"] = sum(expired.values())
        check_share(reading, counts, data.bad_rows_allowed, data.bad_files_allowed)
        told = facts(reading) | {
            "events": sum(each["events"] for each in settled.values()),
            "counts": counts,
            "people": sum(each["people"] for each in settled.values()),
            "people_without_grant": sum(each["unprofiled"] for each in settled.values()),
            "expired": expired,
            "oldest": _least(each["oldest"] for each in settled.values()),
            "late": _late(new, abouts, reading),
            "warnings": [] if data.order else warnings(reading),
            "partitions": {"read": len(left), "reused": len(abouts) - len(left)},
            "parts": sorted(about.generation for about in abouts),
            "as_of": as_of,
            "cut": moments[HOLDOUT],
            "buckets": list(settled),
            "items": catalogue.num_rows,
            "ledger_sequence": this.ledger_sequence,
            "linked_ids": len(tonight.moved.keys) if tonight.moved is not None else 0,
            "steps": [asdict(first), asdict(second)],
        }
        manifest = work.finish(told)
        sizes = {"activity": sum(file.bytes for file in manifest.files.values())}
        shown = side.submit(show, told | {"bytes": sizes}, work.folder / "report.txt")
        # Last, so that a rerun counts nothing twice. Not by a time that has not come; a night of the past forgets less.
        log.forget(cluster, abouts, retained_since(data, min(as_of, reading.latest)))
        shown.result()
        return manifest


def dry_run(settings: Settings) -> None:
    """Read and check the whole log and print the table; nothing is written, and neither keys nor ledger are needed.

    Raises:
        QuarantineError: a night would refuse this log.
    """
    settings.data.check()
    catalogue, dropped = read_catalogue(settings.data)
    named = _named(catalogue, Categories.of(catalogue["categories"], sensitive(catalogue)))
    log = LogReader(settings, {}, named, dropped, None, time.time_ns() // 1000)
    with connected(settings.cluster) as cluster:
        began = time.monotonic()
        abouts = log.read(cluster, log.partitions)
    reading = log.summed(abouts)
    step = Step("read", len(abouts), 0, time.monotonic() - began, _peak(abouts))
    told = facts(reading) | {
        "counts": dict(reading.counts),
        "steps": [asdict(step)],
        "warnings": [] if settings.data.order else warnings(reading),
    }
    show(told, None)
    check_share(reading, reading.counts, settings.data.bad_rows_allowed, settings.data.bad_files_allowed)


def sensitive(catalogue: pa.Table) -> Any:
    """(I,) whether an item belongs to a sensitive category."""
    return pc.fill_null(pc.greater(pc.list_value_length(catalogue["sensitive"]), 0), False).to_numpy().astype(bool)


def _named(catalogue: pa.Table, categories: Categories) -> pa.Array:
    """What a part may name, in the order of tonight's codes: the items on offer, then the categories."""
    return pa.concat_arrays([catalogue["item_id"].combine_chunks(), categories.ids])


def _tonight(
    this: Night,
    log: LogReader,
    abouts: list[About],
    items: tuple[pa.Table, Categories, pa.Array],
    consent: tuple[pa.Table, pa.Table],
    as_of: int,
    moments: tuple[int, ...],
) -> Tonight:
    sources, purpose = this.settings.consent.sources, this.vocabulary.mask
    catalogue, categories, dropped = items
    parts = {about.generation: about.runs for about in abouts}
    return Tonight(
        data=this.settings.data,
        store=log.store,
        parts=tuple(parts),
        places=bind(log.store, parts, _named(catalogue, categories), dropped),
        keys=this.keys,
        standings=consent[0],
        trainable=tuple(purpose("train", source) for source in sources),
        profilable=tuple(purpose("profile", source) for source in sources),
        sensitive=sensitive(catalogue),
        sensitive_masks=tuple(purpose("sensitive", source) for source in sources),
        as_of=as_of,
        moments=moments,
        half_life=this.settings.popularity_days,
        categories=categories,
    )


def _linked(
    this: Night, cluster: Cluster, tonight: Tonight, abouts: list[About], links: pa.Table, buckets: int
) -> Tonight:
    """The same night, with linked ids as one person each."""
    if not links.num_rows or CROSS_SOURCE not in this.vocabulary.purposes:  # nobody can consent to it any more
        return tonight
    parts = [(about.generation, about.runs) for about in abouts]
    told = cluster.share((tonight.store, parts, buckets, this.keys, links))
    found = cluster.each(_linked_in, range(buckets), told, label="find linked ids")
    purpose = this.vocabulary.mask
    every = [[purpose(name, source) for name in this.vocabulary.purposes] for source in this.vocabulary.sources]
    needed = [
        (purpose(CROSS_SOURCE, source), sum(bits)) for source, bits in zip(this.vocabulary.sources, every, strict=True)
    ]
    return replace(tonight, standings=with_persons(tonight.standings, links, needed), moved=moved(found, this.keys))


def _linked_in(bucket: int, told: Any) -> tuple[Keys, Keys]:
    store, parts, buckets, keys, links = told
    return linked_in(store, parts, bucket, buckets, keys, links)


def _read(log: LogReader, cluster: Cluster, known: dict[str, About]) -> tuple[list[Partition], list[About], Step]:
    """Read what the store does not know; the partitions that were read, and what all parts say of themselves."""
    began = time.monotonic()
    left = [part for part in log.partitions if part.name not in known]
    read = log.read(cluster, left, log.surely_past())
    known |= {about.name: about for about in read}
    abouts = [known[part.name] for part in log.partitions]
    return left, abouts, Step("read", len(left), len(abouts) - len(left), time.monotonic() - began, _peak(read))


def _read_again(
    log: LogReader, cluster: Cluster, since: NDArray[np.int64], left: list[Partition], abouts: list[About]
) -> tuple[list[Partition], list[About]]:
    """Read those parts anew that lack what this night retains: it is of the past, or its retention is longer."""
    lacking = [part for part, about in zip(log.partitions, abouts, strict=True) if about.lacks(since)]
    read = {about.name: about for about in log.read(cluster, lacking, since)}
    named = {part.name: part for part in [*left, *lacking]}
    return list(named.values()), [read.get(about.name, about) for about in abouts]


def _buckets(settings: Settings, rows: int) -> int:
    """By what is in the log, not by what is in the store: a rerun must not find other buckets under the same names."""
    return settings.buckets or max(_LEAST_BUCKETS, -(-rows // _BUCKET))


def _settle(
    work: Stage, cluster: Cluster, tonight: Tonight, moments: tuple[str, ...], buckets: int
) -> tuple[dict[str, dict[str, Any]], Step]:
    """Settle the buckets that are left; the facts of all of them by name."""
    began = time.monotonic()
    names = {f"bucket-{bucket:05d}": bucket for bucket in range(buckets)}
    todo = [(name, names[name]) for name in work.shards_left(names)]
    cluster.each(_settle_bucket, todo, cluster.share(tonight), buckets, moments, work, label="sort by person")
    facts = work.shard_facts()
    settled = {name: facts[name] for name in names}
    peak = max((each["peak"] for each in settled.values()), default=0)
    return settled, Step("sort by person", len(todo), len(names) - len(todo), time.monotonic() - began, peak)


def _settle_bucket(
    numbered: tuple[str, int], tonight: Tonight, buckets: int, moments: tuple[str, ...], work: Stage
) -> None:
    name, bucket = numbered
    if not work.shards_left([name]):
        return  # done by a worker that was lost right after
    with measured() as memory:
        settled = settle_bucket(bucket, buckets, tonight)
        files = [write_table(work.folder / f"activity-{name}.arrow", settled.activity)]
        for part, popularity in zip(moments, settled.popularity, strict=True):
            files.append(write_table(work.folder / f"popularity-{part}-{name}.arrow", popularity))
    said = ("counts", "expired", "oldest", "people", "unprofiled")
    told = {each: getattr(settled, each) for each in said}
    work.shard_done(name, files, told | {"events": settled.activity.num_rows, "peak": memory.peak})


def _peak(abouts: list[About]) -> int:
    return max((about.peak for about in abouts), default=0)


def _late(new: set[str], abouts: list[About], reading: Reading) -> list[str]:
    """Partitions that came tonight though the log had gone beyond their days already."""
    if len(new) == len(abouts):
        return []
    before = (reading.latest or 0) - DAY
    return sorted(
        each.name for each in abouts if each.name in new and each.latest and max(each.latest.values()) < before
    )


def _least(each: Any) -> dict[str, str]:
    """By event, the time of the oldest of all, as people read it."""
    least: dict[str, int] = {}
    for part in each:
        for name, moment in part.items():
            least[name] = min(moment, least.get(name, moment))
    return {name: iso(moment) for name, moment in sorted(least.items())}


def popularity(this: Night, part: str) -> pa.Table:
    """schema.POPULARITY of the whole shop, over all buckets."""
    facts = finished(this.folder, "ingest").facts
    parts = [table(this.folder / "ingest" / f"popularity-{part}-{name}.arrow") for name in facts["buckets"]]
    summed = (
        pa.concat_tables(parts).group_by("item", use_threads=False).aggregate([("weight", "sum"), ("people", "sum")])
    )
    return summed.rename_columns(["item", "weight", "people"]).select(POPULARITY.names).sort_by("item")


@recipe("ingest")
def main(settings: Settings) -> None:
    """The command."""
    if settings.dry_run:
        dry_run(settings)
        return
    with night(settings) as (this, cluster):
        ingest(this, cluster)


if __name__ == "__main__":
    main()
