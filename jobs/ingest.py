"""Nightly step 1 of 6: read the log, check it, replace ids by keys, honour consent, and sort it by person.

Run it alone:  python -m jobs.ingest data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.activity.catalogue import read_catalogue
from engine.activity.files import parquet_files
from engine.activity.settle import settle_bucket
from engine.activity.split import SplitContext, SplitReport, added, check_share, split_files
from engine.errors import DataError
from engine.schema import POPULARITY
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import FULL, HOLDOUT, Night, iso, night, table, write_table
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import Stage, StageManifest, finished, stage

_DAY = 86_400_000_000


def ingest(this: Night, cluster: Cluster) -> StageManifest:
    """Log files into user buckets (a task a group of files), then each bucket in order (a task a bucket)."""
    settings, sources = this.settings, tuple(this.settings.consent.sources)
    config = {
        "data": asdict(settings.data) | {"path": ""},  # what was read counts, not where it lay
        "buckets": settings.buckets,
        "holdout": settings.evaluate.holdout_days,
        "popularity": settings.popularity_days,
    }
    with stage(this.folder, "ingest", this.inputs, config) as work:
        if work.whole:
            return finished(this.folder, "ingest")
        catalogue, dropped = read_catalogue(settings.data)
        write_table(work.folder / "catalogue.arrow", catalogue)
        work.shard_done("catalogue", ["catalogue.arrow"], {"items": catalogue.num_rows})
        scratch, quarantine = work.folder / "split", work.folder / "quarantine"
        for left_by_a_crash in (scratch, quarantine):
            shutil.rmtree(left_by_a_crash, ignore_errors=True)
        files = parquet_files(settings.data)
        if work.shards_left(["clock"]):  # a rerun after a crash goes by the same clock
            work.shard_done("clock", [], {"now": time.time_ns() // 1000})
        now = work.shard_facts()["clock"]["now"]
        purpose = this.vocabulary.mask
        context = SplitContext(
            settings.data,
            catalogue["item_id"].combine_chunks(),
            dropped,
            sources,
            this.standings(),
            tuple(purpose("train", source) for source in sources),
            tuple(purpose("profile", source) for source in sources),
            this.keys,
            settings.buckets,
            now,
            tuple(np.flatnonzero(sensitive(catalogue)).tolist()),
            tuple(purpose("sensitive", source) for source in sources),
        )
        groups = [files[at :: 4 * cluster.cpus] for at in range(min(len(files), 4 * cluster.cpus))]
        reports = cluster.each(
            _split, list(enumerate(groups)), cluster.share(context), scratch, quarantine, label="read log"
        )
        counts = added(report.counts for report in reports)
        rows = sum(report.rows for report in reports)
        near = {name: meant for report in reports for name, meant in report.near.items()}
        check_share(counts, rows, settings.data.bad_rows_allowed, near)
        latest = max((report.latest for report in reports if report.latest is not None), default=None)
        if latest is None:
            raise DataError(f"No usable event in {rows} rows: {counts}.", "Check conf/data against the log.")
        asked = settings.data.as_of_microseconds()
        as_of = latest if asked is None else asked
        moments = {FULL: as_of, HOLDOUT: as_of - int(settings.evaluate.holdout_days * _DAY)}
        names = [f"bucket-{bucket:05d}" for bucket in range(settings.buckets)]
        cluster.each(_settle, work.shards_left(names), work, settings, moments, label="sort by person")
        shutil.rmtree(scratch, ignore_errors=True)
        settled = [work.shard_facts()[name] for name in names]
        counts = added([counts, *(facts["counts"] for facts in settled)])
        kept = sum(facts["events"] for facts in settled)
        say(f"ingest: {rows} rows, {kept} events kept, up to {iso(as_of)}")
        for reason, count in sorted(counts.items()):
            what = reason.removeprefix("-").replace("_", " ")
            if count:
                say(f"  {count:>9} {what}" + ("" if reason[0] == "-" else " (quarantined)"))
        facts = {
            "rows": rows,
            "events": kept,
            "counts": counts,
            "as_of": as_of,
            "cut": moments[HOLDOUT],
            "buckets": names,
            "ledger_sequence": this.ledger_sequence,
        }
        return work.finish(facts | {"items": catalogue.num_rows})


def sensitive(catalogue: pa.Table) -> Any:
    """(I,) whether an item belongs to a sensitive category."""
    return pc.fill_null(pc.greater(pc.list_value_length(catalogue["sensitive"]), 0), False).to_numpy().astype(bool)


def _split(numbered: tuple[int, list[str]], context: SplitContext, scratch: Path, quarantine: Path) -> SplitReport:
    number, files = numbered
    return split_files(files, context, scratch, quarantine, f"part-{number:05d}")


def _settle(name: str, work: Stage, settings: Settings, moments: dict[str, int]) -> None:
    folder = work.folder / "split" / name
    settled = settle_bucket(folder, settings.data, moments[FULL], list(moments.values()), settings.popularity_days)
    files = [write_table(work.folder / f"activity-{name}.arrow", settled.activity)]
    for part, popularity in zip(moments, settled.popularity, strict=True):
        files.append(write_table(work.folder / f"popularity-{part}-{name}.arrow", popularity))
    work.shard_done(name, files, {"events": settled.activity.num_rows, "counts": settled.counts})


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
    with night(settings) as (this, cluster):
        ingest(this, cluster)


if __name__ == "__main__":
    main()
