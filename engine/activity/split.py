"""Ingest, first half: log files into user buckets, with ids replaced by keys and consent beside every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from engine.activity.files import locate
from engine.activity.mapping import DataSettings
from engine.activity.rows import read_rows
from engine.errors import DataError, QuarantineError
from engine.identity import UserKeys

# What a part of a bucket holds.
SPLIT = pl.Schema(
    [
        ("item", pl.Int32()),
        ("event", pl.UInt8()),
        ("ts", pl.Datetime("us", "UTC")),
        ("value", pl.Float64()),
        ("source", pl.UInt8()),
        ("gift", pl.Boolean()),
        ("event_id", pl.String()),
        ("session_id", pl.String()),
        ("user_key", pl.Binary()),
        ("trainable", pl.Boolean()),
        ("profilable", pl.Boolean()),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class SplitContext:
    """What every file is read against.

    items, dropped: item ids as `read_catalogue` gives them. standings: schema.STANDINGS. trainable, profilable: per
    source code, the mask whose grant the purpose needs. now: microseconds since the epoch. sensitive_items: item codes whose
    events tell more than others, and sensitive: per source code, the mask that these need besides.
    """

    data: DataSettings
    items: pa.Array
    dropped: pa.Array
    sources: tuple[str, ...]
    standings: pa.Table
    trainable: tuple[int, ...]
    profilable: tuple[int, ...]
    keys: UserKeys
    buckets: int
    now: int
    sensitive_items: tuple[int, ...] = ()
    sensitive: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What one call read: rows in all, counts by reason, near misses, and the latest event, microseconds or None."""

    rows: int
    counts: dict[str, int]
    near: dict[str, str]
    latest: int | None


def split_files(files: Sequence[str], context: SplitContext, folder: Path, quarantine: Path, part: str) -> SplitReport:
    """Read log files and write `folder/bucket-BBBBB/PART.arrow`, and `quarantine/PART.parquet` if a row was bad.

    A person's rows all land in the bucket of their key; anonymous rows are spread by item.
    """
    filesystem, _ = locate(context.data.path)
    found = [
        read_rows(filesystem, path, context.data, context.items, context.dropped, context.sources, context.now)
        for path in files
    ]
    taken = _keyed(pl.concat([each.taken for each in found]), context)
    for (bucket,), group in taken.group_by("bucket", maintain_order=True):
        target = folder / f"bucket-{bucket:05d}"
        target.mkdir(parents=True, exist_ok=True)
        group.drop("bucket").write_ipc(target / f"{part}.arrow", compression="zstd")
    quarantined = pl.concat([each.quarantined for each in found])
    if len(quarantined):
        quarantine.mkdir(parents=True, exist_ok=True)
        quarantined.write_parquet(quarantine / f"{part}.parquet")
    return SplitReport(
        sum(each.total for each in found),
        added(each.counts for each in found),
        {name: meant for each in found for name, meant in each.near.items()},
        taken["ts"].cast(pl.Int64).max(),  # type: ignore[arg-type]
    )


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by reason, summed."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def check_share(counts: Mapping[str, int], rows: int, allowed: float, near: Mapping[str, str]) -> None:
    """Refuse a log of which too much is bad.

    Args:
        counts: rows by reason; reasons that begin with - are not bad.
        near: unknown event or source -> what it may be meant for.

    Raises:
        DataError: there is no row. QuarantineError: names the counts by reason, and the near misses.
    """
    if not rows:
        raise DataError("The log holds no row at all.", "Check data.path and data.log; an empty day publishes nothing.")
    bad = {reason: count for reason, count in counts.items() if not reason.startswith("-")}
    if sum(bad.values()) > allowed * rows:
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(bad.items(), key=lambda pair: -pair[1]))
        meant = "".join(f" Did you mean '{known}' by '{name}'?" for name, known in sorted(near.items()))
        raise QuarantineError(
            f"{sum(bad.values())} of {rows} rows are bad ({listed}); allowed is a share of {allowed}.{meant}",
            "The run's ingest/quarantine has file and line. Correct log or conf/data, or raise data.bad_rows_allowed.",
        )


def _keyed(taken: pl.DataFrame, context: SplitContext) -> pl.DataFrame:
    people = taken["user_id"].drop_nulls().unique().sort()
    ids = people.to_list()
    granted = pl.DataFrame(
        {
            "user_id": people,
            "user_key": pl.Series(context.keys.rotating.derive_many(ids), dtype=pl.Binary),
            "stable": pl.Series(context.keys.stable.derive_many(ids), dtype=pl.Binary),
        }
    ).join(
        pl.DataFrame(context.standings.cast(_LOOSE)).select(pl.col("user_key").alias("stable"), "granted"),
        on="stable",
        how="left",
    )
    source = pl.DataFrame(
        {
            "source": range(len(context.sources)),
            "t": context.trainable,
            "p": context.profilable,
            "s": context.sensitive or (0,) * len(context.sources),
        },
        schema={"source": pl.UInt8, "t": pl.UInt64, "p": pl.UInt64, "s": pl.UInt64},
    )
    more = pl.when(pl.col("item").is_in(context.sensitive_items)).then(pl.col("s")).otherwise(0)
    known = pl.col("user_key").is_not_null()
    allowed = pl.col("granted").fill_null(0)
    bucket = (
        pl.when(~known)
        .then(pl.col("item") % context.buckets)
        .otherwise(
            pl.col("user_key").bin.slice(0, 2).bin.reinterpret(dtype=pl.UInt16, endianness="big").cast(pl.Int64)
            * context.buckets
            // 65_536
        )
    )
    return (
        taken.join(granted, on="user_id", how="left", maintain_order="left")
        .join(source, on="source", how="left", maintain_order="left")
        .with_columns(
            trainable=(allowed & (pl.col("t") | more)) == (pl.col("t") | more),
            profilable=(allowed & (pl.col("p") | more)) == (pl.col("p") | more),
            bucket=bucket.cast(pl.Int32),
        )
        .select(*SPLIT, "bucket")
    )


_LOOSE = pa.schema([("user_key", pa.binary()), ("granted", pa.uint64()), ("preference", pa.uint8())])
