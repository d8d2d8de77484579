"""What ingest does, as a skilled user of polars, of duckdb or of pandas would write it for this log alone.

python -m tests.benchmarks.ingest_peers polars LOG OUT

Each reads the same Parquet files with ids as strings, and leaves the same two things in OUT: the rows of schema.ACTIVITY,
sorted by person and time, and schema.POPULARITY at both moments of a night. The steps, in whatever order is fastest: keep the
events that are read and the items on offer; derive both keys of each distinct person; drop what is past its retention, counted
from the last event; drop rows that came before; drop what neither purpose was granted for; aggregate; sort; write.

They know this log: no quarantine, no counts by reason, day or source, no undoing, no cap, no checks of ids, times and values,
and nothing kept for the next night. What ingest does of that, it does beside the work that is compared.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.consent import Vocabulary
from engine.identity import UserKeys
from engine.schema import EVENTS
from tests.benchmarks.harness import CORES, Laps
from tests.benchmarks.ingest_work import HALF_LIFE, HOLDOUT_DAYS, RETENTION, SOURCES, STANDINGS, WANTED, WEIGHTS

if TYPE_CHECKING:
    import polars as pl

WANTS = [WEIGHTS.get(name, 0.0) for name in EVENTS]
DAY = 86_400_000_000
COLUMNS = ("event_id", "user_id", "item_id", "event", "ts", "source", "flags")
KEPT = ("user_key", "item", "event", "ts", "weight", "source", "trainable", "profilable")


@dataclass(frozen=True, slots=True)
class Work:
    """Where the log lies, where the result goes, and what each source asks of a grant: masks in the order of SOURCES."""

    log: Path
    out: Path

    @property
    def files(self) -> list[Path]:
        """The log's, in order."""
        return sorted((self.log / "log").glob("*/*.parquet"))

    @property
    def keys(self) -> UserKeys:
        """The deployment's."""
        return UserKeys.load(self.log / "keys")

    @property
    def standings(self) -> pa.Table:
        """stable (user key), granted."""
        with pa.memory_map(str(self.log / STANDINGS)) as source:
            held = pa.ipc.open_file(source).read_all()
        return pa.table({"stable": held["user_key"].cast(pa.binary()), "granted": held["granted"]})

    @property
    def masks(self) -> dict[str, list[int]]:
        """By purpose."""
        vocabulary = Vocabulary(sources=SOURCES)
        return {
            purpose: [vocabulary.mask(purpose, each) for each in SOURCES]
            for purpose in ("train", "profile", "sensitive")
        }


def polars_peer(work: Work, laps: Laps) -> None:
    """Streaming throughout. One plan with all three results would be prettier, and takes twice as long: polars then runs
    what they share once for each.
    """
    import polars as pl

    log = pl.scan_parquet(work.files, hive_partitioning=False)
    wanted = pl.col("event").is_in(WANTED)
    items = (
        pl.read_parquet(work.log / "catalogue.parquet", columns=["item_id", "sensitive"])
        .sort("item_id")
        .with_columns(item=pl.int_range(pl.len(), dtype=pl.Int32), delicate=pl.col("sensitive").list.len() > 0)
        .drop("sensitive")
        .lazy()
    )
    times = log.filter(pl.col("event").is_in(EVENTS)).select(pl.col("ts").max().cast(pl.Int64))
    as_of = int(times.collect(engine="streaming").item())
    laps.lap("last event")
    since = {name: pl.lit(as_of - int(days * DAY)).cast(pl.Datetime("us", "UTC")) for name, days in RETENTION.items()}
    old = pl.any_horizontal((pl.col("event") == name) & (pl.col("ts") < at) for name, at in since.items())
    rows = (
        log.select(*COLUMNS[:-1], gift=pl.col("flags").list.contains("gift") | (pl.col("event") == "gift"))
        .filter(wanted & ~old)
        .with_columns(
            event=pl.col("event").cast(pl.Enum(EVENTS)).to_physical(),
            source=pl.col("source").cast(pl.Enum(SOURCES)).to_physical(),
        )
        .join(items, on="item_id")
        .drop("item_id")
        .collect(engine="streaming")
        .lazy()
    )
    laps.lap("read, retention, items")
    ids = rows.select("user_id").unique().drop_nulls().collect(engine="streaming")["user_id"].to_list()
    laps.lap("distinct users")
    stable, rotating = work.keys.stable.derive_many(ids), work.keys.rotating.derive_many(ids)
    laps.lap("hmac")
    kinds = {"user_id": pl.String, "user_key": pl.Binary, "stable": pl.Binary}
    standings = pl.scan_ipc(work.log / STANDINGS).select("granted", stable=pl.col("user_key").cast(pl.Binary))
    people = (
        pl.LazyFrame({"user_id": ids, "user_key": rotating, "stable": stable}, schema=kinds)
        .join(standings, on="stable", how="left")
        .sort("user_key")
        .select("user_id", "user_key", pl.col("granted").fill_null(0), person=pl.int_range(pl.len(), dtype=pl.Int32))
        .collect(engine="streaming")
        .lazy()
    )
    want = pl.col("event").replace_strict(range(len(EVENTS)), WANTS, return_dtype=pl.Float32)
    known = rows.join(people.select("user_id", "granted", "person"), on="user_id", how="left").drop("user_id")
    held = known.with_columns(want=want).collect(engine="streaming")
    # Three times as fast as `unique`, which carries every column through its table.
    once = held.lazy().with_row_index("row").group_by("person", "event_id").agg(pl.col("row").min()).select("row")
    rows = held[once.collect(engine="streaming")["row"]].lazy()
    laps.lap("keys, dedup")
    _polars_activity(rows, people, work).sink_ipc(work.out / "activity.arrow", engine="streaming")
    laps.lap("anti-join, sort, write")
    for name, moment in (("full", as_of), ("holdout", as_of - int(HOLDOUT_DAYS * DAY))):
        _polars_popularity(rows, moment).sink_ipc(work.out / f"popularity-{name}.arrow", engine="streaming")
    laps.lap("aggregate")


def _polars_activity(rows: pl.LazyFrame, people: pl.LazyFrame, work: Work) -> pl.LazyFrame:
    import polars as pl

    masks = pl.LazyFrame(
        {"source": range(len(SOURCES)), **work.masks},
        schema={"source": pl.UInt8, "train": pl.UInt64, "profile": pl.UInt64, "sensitive": pl.UInt64},
    )
    more = pl.when("delicate").then("sensitive").otherwise(0)
    train, profile = pl.col("train") | more, pl.col("profile") | more
    return (
        rows.filter(pl.col("granted") > 0)
        .join(masks, on="source")
        .with_columns(
            trainable=(pl.col("granted") & train) == train,
            profilable=(pl.col("granted") & profile) == profile,
            weight=pl.when("gift").then(pl.lit(0, pl.Float32)).otherwise("want"),
        )
        .filter(pl.col("trainable") | pl.col("profilable"))
        .select("person", *KEPT[1:])
        .sort("person", "ts", "item", "event")  # people are numbered in the order of their keys
        .join(people.select("person", "user_key"), on="person", maintain_order="left")
        .select(KEPT)
    )


def _polars_popularity(rows: pl.LazyFrame, moment: int) -> pl.LazyFrame:
    import polars as pl

    ts = pl.col("ts").cast(pl.Int64)
    wants = rows.filter((ts <= moment) & (pl.col("want") > 0)).select(
        "person", "item", strength=pl.col("want").cast(pl.Float64) * 0.5 ** ((moment - ts) / DAY / HALF_LIFE)
    )
    known = wants.drop_nulls("person").group_by("person", "item").agg(pl.col("strength").max())
    strangers = wants.filter(pl.col("person").is_null())
    return (
        pl.concat([known.with_columns(one=pl.lit(1, pl.Int64)), strangers.with_columns(one=pl.lit(0, pl.Int64))])
        .group_by("item")
        .agg(weight=pl.col("strength").sum(), people=pl.col("one").sum())
        .sort("item")
    )


def duckdb_peer(work: Work, laps: Laps) -> None:
    """SQL; the keys come from Python, as a table."""
    import duckdb

    sql = duckdb.connect()
    sql.execute(f"SET threads = {CORES}; SET preserve_insertion_order = false")
    sql.execute(f"CREATE VIEW log AS FROM read_parquet({list(map(str, work.files))})")
    sql.execute(f"""
        CREATE TABLE items AS
        SELECT item_id, (row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS item, len(sensitive) > 0 AS delicate
        FROM '{work.log}/catalogue.parquet'""")
    [(as_of,)] = sql.execute(f"SELECT epoch_us(max(ts)) FROM log WHERE event IN {EVENTS}").fetchall()
    laps.lap("last event")
    old = " OR ".join(f"event = '{name}' AND ts < {_sql_time(as_of - days * DAY)}" for name, days in RETENTION.items())
    sql.execute(f"""
        CREATE TABLE read AS
        SELECT user_id, event_id, any_value(item) AS item, any_value(delicate) AS delicate, any_value(event) AS event,
            any_value(ts) AS ts, any_value(source) AS source, any_value(list_contains(flags, 'gift') OR event = 'gift') AS gift
        FROM log JOIN items USING (item_id) WHERE event IN {WANTED} AND NOT ({old})
        GROUP BY user_id, event_id""")
    laps.lap("read, retention, items, dedup")
    ids = sql.sql("SELECT DISTINCT user_id FROM read WHERE user_id IS NOT NULL").to_arrow_table()["user_id"]
    laps.lap("distinct users")
    keyed = _keyed(work, ids)
    laps.lap("hmac")
    sources = pa.table({"source": SOURCES, "code": pa.array(range(len(SOURCES)), pa.uint8())} | work.masks)
    events = pa.table({"event": EVENTS, "code": pa.array(range(len(EVENTS)), pa.uint8()), "want": WANTS})
    for name, table in (("keyed", keyed), ("standings", work.standings), ("sources", sources), ("events", events)):
        sql.register(name, table)
    sql.execute("""
        CREATE TABLE rows AS
        SELECT user_key, coalesce(granted, 0)::UBIGINT AS granted, item, delicate, events.code AS event, ts,
            sources.code AS source, gift, want, CASE WHEN delicate THEN sensitive ELSE 0 END AS more, train, profile
        FROM read JOIN events USING (event) JOIN sources USING (source)
            LEFT JOIN keyed USING (user_id) LEFT JOIN standings USING (stable)""")
    laps.lap("keys")
    sql.execute(f"""
        COPY (
            SELECT user_key, item, event, ts, CASE WHEN gift THEN 0 ELSE want END::FLOAT AS weight, source,
                granted & (train | more) = (train | more) AS trainable,
                granted & (profile | more) = (profile | more) AS profilable
            FROM rows WHERE trainable OR profilable ORDER BY user_key, ts, item, event
        ) TO '{work.out}/activity.parquet' (FORMAT parquet, COMPRESSION uncompressed)""")
    laps.lap("anti-join, sort, write")
    for name, moment in (("full", as_of), ("holdout", as_of - int(HOLDOUT_DAYS * DAY))):
        sql.execute(f"""
            COPY (
                WITH wants AS (
                    SELECT user_key, item, want * 0.5 ** (({moment} - epoch_us(ts)) / {DAY} / {HALF_LIFE}) AS strength
                    FROM rows WHERE want > 0 AND ts <= {_sql_time(moment)}
                ), each AS (
                    SELECT item, max(strength) AS strength, 1 AS one FROM wants WHERE user_key IS NOT NULL
                    GROUP BY user_key, item
                    UNION ALL SELECT item, strength, 0 FROM wants WHERE user_key IS NULL
                )
                SELECT item, sum(strength) AS weight, sum(one)::BIGINT AS people FROM each GROUP BY item ORDER BY item
            ) TO '{work.out}/popularity-{name}.parquet' (FORMAT parquet)""")
    laps.lap("aggregate")


def _sql_time(microseconds: float) -> str:
    return f"make_timestamptz({int(microseconds)})"


def _keyed(work: Work, ids: pa.ChunkedArray) -> pa.Table:
    """The keys of distinct ids."""
    names, kind = ids.to_pylist(), pa.binary()
    keys = {"user_key": work.keys.rotating.derive_many(names), "stable": work.keys.stable.derive_many(names)}
    return pa.table({"user_id": ids} | {name: pa.array(each, kind) for name, each in keys.items()})


def pandas_peer(work: Work, laps: Laps) -> None:
    """Strings by pyarrow; filters are given to the reader."""
    import pandas as pd

    items = pd.read_parquet(work.log / "catalogue.parquet", columns=["item_id", "sensitive"], dtype_backend="pyarrow")
    items = items.sort_values("item_id", ignore_index=True)
    items["item"] = np.arange(len(items), dtype=np.int32)
    items["delicate"] = items.pop("sensitive").list.len() > 0
    reading = {"dtype_backend": "pyarrow", "partitioning": None}
    as_of = pd.read_parquet(work.log / "log", columns=["ts"], filters=[("event", "in", EVENTS)], **reading)["ts"].max()
    laps.lap("last event")
    rows = pd.read_parquet(work.log / "log", columns=list(COLUMNS), filters=[("event", "in", WANTED)], **reading)
    rows = rows.merge(items, on="item_id")
    laps.lap("read, items")
    old = np.zeros(len(rows), bool)
    for name, days in RETENTION.items():
        old |= ((rows["event"] == name) & (rows["ts"] < as_of - pd.Timedelta(days=days))).to_numpy()
    rows = rows[~old]
    laps.lap("retention")
    rows = rows.drop_duplicates(["user_id", "event_id"])
    laps.lap("dedup")
    ids = pa.chunked_array([pa.array(rows["user_id"].dropna().unique())])
    laps.lap("distinct users")
    keyed = _keyed(work, ids).to_pandas(types_mapper=pd.ArrowDtype)
    laps.lap("hmac")
    standings = work.standings.to_pandas(types_mapper=pd.ArrowDtype)
    people = keyed.merge(standings, on="stable", how="left").sort_values("user_key", ignore_index=True)
    people["person"] = np.arange(len(people), dtype=np.int32)  # in the order of their keys
    rows = rows.merge(people[["user_id", "person", "granted"]], on="user_id", how="left")
    rows["gift"] = (rows["flags"].list.len() > 0) | (rows["event"] == "gift")  # the log knows no other flag
    rows["want"] = rows["event"].map(WEIGHTS).fillna(0.0).astype(np.float32)
    for name, known in (("event", EVENTS), ("source", SOURCES)):
        rows[name] = rows[name].map({each: code for code, each in enumerate(known)}).astype(np.uint8)
    laps.lap("keys")
    kept = rows[rows["granted"].fillna(0) > 0]
    source, granted = kept["source"].to_numpy(), kept["granted"].to_numpy(np.uint64)
    masks = {name: np.array(each, np.uint64)[source] for name, each in work.masks.items()}
    more = np.where(kept["delicate"].to_numpy(bool), masks["sensitive"], np.uint64(0))
    kept = kept.assign(
        weight=kept["want"].where(~kept["gift"], np.float32(0)),
        trainable=(granted & (masks["train"] | more)) == (masks["train"] | more),
        profilable=(granted & (masks["profile"] | more)) == (masks["profile"] | more),
    )
    kept = kept[kept["trainable"] | kept["profilable"]].sort_values(["person", "ts", "item", "event"])
    kept = kept.assign(user_key=people["user_key"].take(kept["person"]).set_axis(kept.index))
    pq.write_table(pa.Table.from_pandas(kept[list(KEPT)], preserve_index=False), work.out / "activity.parquet")
    laps.lap("anti-join, sort, write")
    for name, moment in (("full", as_of), ("holdout", as_of - pd.Timedelta(days=HOLDOUT_DAYS))):
        wants = rows[(rows["want"] > 0) & (rows["ts"] <= moment)]
        age = (moment - wants["ts"]).dt.total_seconds().to_numpy() / 86_400
        wants = wants.assign(strength=wants["want"].to_numpy(np.float64) * 0.5 ** (age / HALF_LIFE))
        known = wants.groupby(["person", "item"], sort=False)["strength"].max().reset_index().assign(people=1)
        both = pd.concat([known, wants.loc[wants["person"].isna(), ["item", "strength"]].assign(people=0)])
        summed = both.groupby("item").agg(weight=("strength", "sum"), people=("people", "sum")).reset_index()
        pq.write_table(pa.Table.from_pandas(summed, preserve_index=False), work.out / f"popularity-{name}.parquet")
    laps.lap("aggregate")


def scan_floor(work: Work, laps: Laps) -> None:
    """The columns that everybody needs, decoded and let go: what repeats as a dictionary, a file a thread."""

    def read(path: Path) -> None:
        with pq.ParquetFile(path, read_dictionary=["user_id", "item_id", "event", "source"]) as file:
            file.read(columns=list(COLUMNS), use_threads=False)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(read, work.files))
    laps.lap("read")


def polars_floor(work: Work, laps: Laps) -> None:
    """The same columns through polars, which need not make strings of all of them to count them."""
    import polars as pl

    log = pl.scan_parquet(work.files, hive_partitioning=False)
    log.select(pl.col(name).count() for name in COLUMNS).collect(engine="streaming")
    laps.lap("read")


PEERS: dict[str, Callable[[Work, Laps], None]] = {
    "floor": scan_floor,
    "floor_polars": polars_floor,
    "polars": polars_peer,
    "duckdb": duckdb_peer,
    "pandas": pandas_peer,
}


def main(arguments: Sequence[str]) -> None:
    """One peer, timed from its first look at the log to the last byte of its result."""
    name, log, out = arguments
    if name != "floor":
        importlib.import_module(name.removeprefix("floor_"))
    pa.set_cpu_count(CORES)
    pa.set_io_thread_count(CORES)
    work = Work(Path(log), Path(out))
    work.out.mkdir(parents=True, exist_ok=True)
    laps = Laps()
    PEERS[name](work, laps)
    laps.tell()


if __name__ == "__main__":
    main(sys.argv[1:])
