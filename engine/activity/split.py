"""Ingest, first half: log files into user buckets, with ids replaced by keys and consent beside every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from engine.activity.files import digest, locate
from engine.activity.mapping import DataSettings
from engine.activity.rows import read_rows
from engine.errors import DataError
from engine.identity import UserKeys


@dataclass(frozen=True, slots=True, eq=False)
class SplitContext:
    """What every file is read against.

    items, dropped: item ids as `read_catalogue` gives them. standings: schema.STANDINGS. trainable, profilable: per source
    code, the mask whose grant the purpose needs.
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


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What one call read: rows in all, counts by reason, bytes' digests, and the latest event, microseconds or None."""

    rows: int
    counts: dict[str, int]
    digests: dict[str, str]
    latest: int | None


def split_files(files: Sequence[str], context: SplitContext, folder: Path, part: str) -> SplitReport:
    """Read log files and write `folder/bucket-BBBBB/PART.arrow`, and `folder/quarantine/PART.parquet` if a row was bad.

    A person's rows all land in the bucket of their key; anonymous rows are spread by item.
    """
    filesystem, _ = locate(context.data.path)
    rows, counts, digests, frames, bad = 0, dict[str, int](), {}, [], []
    for path in files:
        found = read_rows(
            filesystem, path, context.data, context.items, context.dropped, context.sources, context.now
        )
        rows += found.total
        digests[path.rsplit("/", 1)[-1] + "@" + str(files.index(path))] = digest(filesystem, path)
        for reason, count in found.counts.items():
            counts[reason] = counts.get(reason, 0) + count
        frames.append(found.taken)
        bad.append(found.quarantined)
    taken = _keyed(pl.concat(frames), context)
    for (bucket,), group in taken.group_by("bucket", maintain_order=True):
        target = folder / f"bucket-{bucket:05d}"
        target.mkdir(parents=True, exist_ok=True)
        group.drop("bucket").write_ipc(target / f"{part}.arrow", compression="zstd")
    quarantined = pl.concat(bad)
    if len(quarantined):
        (folder / "quarantine").mkdir(parents=True, exist_ok=True)
        quarantined.write_parquet(folder / "quarantine" / f"{part}.parquet")
    latest = taken["ts"].cast(pl.Int64).max()
    return SplitReport(rows, counts, digests, None if latest is None else int(latest))  # type: ignore[arg-type]


def check_share(counts: dict[str, int], rows: int, allowed: float) -> None:
    """Refuse a log of which too much is bad.

    Raises:
        QuarantineError: names the counts by reason.
    """
    from engine.errors import QuarantineError

    if not rows:
        raise DataError("The log holds no row at all.", "Check data.path and data.log; an empty day publishes nothing.")
    bad = {reason: count for reason, count in counts.items() if not reason.startswith("-")}
    if sum(bad.values()) > allowed * rows:
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(bad.items(), key=lambda pair: -pair[1]))
        raise QuarantineError(
            f"{sum(bad.values())} of {rows} rows are bad ({listed}); allowed is a share of {allowed}.",
            "See the run's ingest/quarantine for file and line; correct the log or conf/data, or raise data.bad_rows_allowed.",
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
        pl.DataFrame(pl.from_arrow(context.standings.cast(_LOOSE))).select(pl.col("user_key").alias("stable"), "granted"),
        on="stable",
        how="left",
    )
    source = pl.DataFrame(
        {"source": range(len(context.sources)), "t": context.trainable, "p": context.profilable},
        schema={"source": pl.UInt8, "t": pl.UInt64, "p": pl.UInt64},
    )
    allowed = pl.col("granted").fill_null(0)
    bucket = pl.when(pl.col("user_key").is_null()).then(pl.col("item") % context.buckets).otherwise(
        pl.col("user_key").bin.slice(0, 2).bin.reinterpret(dtype=pl.UInt16, endianness="big").cast(pl.Int32)
        * context.buckets
        // 65_536
    )
    return (
        taken.join(granted, on="user_id", how="left", maintain_order="left")
        .join(source, on="source", how="left", maintain_order="left")
        .with_columns(
            trainable=(allowed & pl.col("t")) == pl.col("t"),
            profilable=(allowed & pl.col("p")) == pl.col("p"),
            bucket=bucket.cast(pl.Int32),
        )
        .with_columns(
            trainable=pl.col("trainable") & pl.col("user_key").is_not_null(),
            profilable=pl.col("profilable") & pl.col("user_key").is_not_null(),
        )
        .drop("user_id", "stable", "granted", "t", "p")
    )


_LOOSE = pa.schema([("user_key", pa.binary()), ("granted", pa.uint64()), ("preference", pa.uint8())])
