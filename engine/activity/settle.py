"""Ingest, second half: one bucket's rows, in whatever order and however often they came, become one sorted shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from engine.activity.mapping import DataSettings
from engine.activity.rows import UNDO
from engine.schema import ACTIVITY, EVENTS, POPULARITY, PURCHASE

_DAY = 86_400_000_000
# What a want says when conf/data does not weigh it otherwise. Impressions and dismissals say nothing of interest.
WEIGHTS = {"view": 0.1, "click": 0.2, "cart": 0.5, "purchase": 1.0, "like": 1.0, "gift": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """A bucket in order: schema.ACTIVITY of those who granted something, and popularity of all, per time it is asked for."""

    activity: pa.Table
    popularity: list[pa.Table]
    counts: dict[str, int]


def settle_bucket(folder: Path, data: DataSettings, as_of: int, moments: list[int], half_life: float) -> Settled:
    """Deduplicate, undo, retain, cap and sort one bucket.

    Args:
        folder: `bucket-BBBBB` of `split_files`.
        as_of: the night's time, microseconds since the epoch.
        moments: times at which popularity is wanted, counting nothing later.
        half_life: days after which a want counts half for popularity.
    """
    parts = sorted(folder.glob("*.arrow"))
    frame = pl.concat([pl.read_ipc(part) for part in parts])
    counts = {}
    before = len(frame)
    frame = _distinct(frame)
    counts["-duplicate"] = before - len(frame)
    before = len(frame)
    frame = _undone(frame)
    counts["-undone_or_undoing"] = before - len(frame)
    before = len(frame)
    frame = frame.filter(pl.col("ts").cast(pl.Int64) <= as_of)
    counts["-after_as_of"] = before - len(frame)
    before = len(frame)
    for name, days in data.retention_days.items():
        old = pl.col("ts").cast(pl.Int64) < as_of - int(days * _DAY)
        frame = frame.filter(~((pl.col("event") == EVENTS.index(name)) & old))
    counts["-past_retention"] = before - len(frame)
    weights = {**WEIGHTS, **data.weights}
    weight = pl.col("event").cast(pl.Int16).replace_strict(
        {code: weights.get(name, 0.0) for code, name in enumerate(EVENTS)}, return_dtype=pl.Float32
    )
    frame = frame.with_columns(
        want=weight,
        weight=(weight * pl.when(pl.col("gift")).then(data.gift_weight).otherwise(1.0)).cast(pl.Float32),
    )
    popularity = [_popularity(frame, moment, half_life) for moment in moments]
    before = len(frame)
    personal = frame.filter(pl.col("trainable") | pl.col("profilable"))
    counts["-no_grant_or_anonymous"] = before - len(personal)
    before = len(personal)
    personal = personal.sort("user_key", "ts", "item", "event", "source", "weight", "value", "event_id")
    late = pl.int_range(pl.len(), 0, -1).over("user_key")
    personal = personal.filter(late <= data.events_per_user)
    counts["-over_events_per_user"] = before - len(personal)
    arrow = personal.select(ACTIVITY.names).to_arrow()
    return Settled(pa.table({name: arrow[name].cast(ACTIVITY.field(name).type) for name in ACTIVITY.names}), popularity, counts)


def _distinct(frame: pl.DataFrame) -> pl.DataFrame:
    """One row an event: by event_id where there is one, else by the whole row, which its time confines to one day."""
    whole = ["user_key", "item", "event", "ts", "value", "source", "gift", "session_id"]
    named = frame.filter(pl.col("event_id").is_not_null()).sort("event_id", *whole, nulls_last=True)
    unnamed = frame.filter(pl.col("event_id").is_null())
    return pl.concat(
        [named.unique("event_id", keep="first", maintain_order=True), unnamed.unique(whole, maintain_order=True)]
    )


def _undone(frame: pl.DataFrame) -> pl.DataFrame:
    """Take back what was cancelled: each undoing event lowers the latest earlier event of that person and item.

    An event whose whole `value` was taken back goes; without values, one undoing event takes back one event.
    """
    undoing = frame.filter(pl.col("event") >= UNDO)
    if not len(undoing):
        return frame
    done = frame.filter(pl.col("event") < UNDO).sort("ts", "item", "event", "value").with_row_index("row")
    undoing = undoing.with_columns(event=(pl.col("event") - UNDO).cast(pl.UInt8)).sort("ts", "item", "event", "value")
    hits = (
        undoing.filter(pl.col("user_key").is_not_null())
        .select("user_key", "item", "event", "ts", taken=pl.col("value").abs().fill_null(float("inf")))
        .join_asof(
            done.select("user_key", "item", "event", "ts", "row"),
            on="ts",
            by=["user_key", "item", "event"],
            strategy="backward",
            check_sortedness=False,  # both sides are sorted by ts above, which implies it within each group
        )
        .drop_nulls("row")
        .group_by("row")
        .agg(pl.col("taken").sum())
    )
    left = pl.col("value") - pl.col("taken")
    return (
        done.join(hits, on="row", how="left", maintain_order="left")
        .filter(pl.col("taken").is_null() | (left > 0).fill_null(False))
        .with_columns(value=pl.when(pl.col("taken").is_null()).then(pl.col("value")).otherwise(left))
        .drop("row", "taken")
    )


def _popularity(frame: pl.DataFrame, moment: int, half_life: float) -> pa.Table:
    """Each person counts once an item, by their latest and strongest want; each anonymous event counts alone."""
    age = (moment - pl.col("ts").cast(pl.Int64)) / _DAY
    wants = frame.filter((pl.col("ts").cast(pl.Int64) <= moment) & (pl.col("want") > 0)).with_columns(
        strength=pl.col("want").cast(pl.Float64) * 0.5 ** (age / half_life)
    )
    known = (
        wants.filter(pl.col("user_key").is_not_null())
        .group_by("user_key", "item")
        .agg(pl.col("strength").max(), bought=(pl.col("event") == PURCHASE).any())
    )
    strangers = wants.filter(pl.col("user_key").is_null())
    both = pl.concat(
        [
            known.select("item", "strength", person=pl.lit(1, pl.Int64)),
            strangers.select("item", "strength", person=pl.lit(0, pl.Int64)),
        ]
    )
    table = (
        both.sort("item", "strength").group_by("item", maintain_order=True)
        .agg(weight=pl.col("strength").sum(), people=pl.col("person").sum())
        .sort("item")
        .to_arrow()
    )
    return pa.table({name: table[name].cast(POPULARITY.field(name).type) for name in POPULARITY.names})
