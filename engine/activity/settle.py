"""Ingest, second half: one bucket's rows, in whatever order and however often they came, become one sorted shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from engine.activity.mapping import DataSettings
from engine.activity.rows import UNDO
from engine.activity.split import SPLIT
from engine.schema import ACTIVITY, EVENTS, POPULARITY

_DAY = 86_400_000_000
_ROUNDING = 1e-6  # a share of a value that is left by sums of fractions, not by anybody's wish
# What a want says when conf/data does not weigh it otherwise. Impressions and dismissals say nothing of interest.
WEIGHTS = {"view": 0.1, "click": 0.2, "cart": 0.5, "purchase": 1.0, "like": 1.0, "gift": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """A bucket in order: schema.ACTIVITY of those who granted something; popularity of all, by moment asked for."""

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
    parts = [pl.read_ipc(part) for part in sorted(folder.glob("*.arrow"))]
    frame = pl.concat([pl.DataFrame(schema=SPLIT), *parts])
    counts = {}
    before = len(frame)
    frame = _distinct(frame)
    counts["-duplicate"] = before - len(frame)
    before = len(frame)
    frame = frame.filter(pl.col("ts").cast(pl.Int64) <= as_of)
    counts["-after_as_of"] = before - len(frame)
    before = len(frame)
    frame = _undone(frame)
    counts["-undone_or_undoing"] = before - len(frame)
    before = len(frame)
    for name, days in data.retention_days.items():
        old = pl.col("ts").cast(pl.Int64) < as_of - int(days * _DAY)
        frame = frame.filter(~((pl.col("event") == EVENTS.index(name)) & old))
    counts["-past_retention"] = before - len(frame)
    weights = {**WEIGHTS, **data.weights}
    weight = (
        pl.col("event")
        .cast(pl.Int16)
        .replace_strict({code: weights.get(name, 0.0) for code, name in enumerate(EVENTS)}, return_dtype=pl.Float32)
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
    personal = personal.sort("user_key", "ts", "item", "event", "source", "weight")
    # Wants and the rest are capped apart: no flood of impressions pushes out what somebody bought.
    late = pl.int_range(pl.len(), 0, -1).over("user_key", pl.col("want") > 0)
    personal = personal.filter(late <= data.events_per_user)
    counts["-over_events_per_user"] = before - len(personal)
    return Settled(_as_schema(personal, ACTIVITY), popularity, counts)


def _distinct(frame: pl.DataFrame) -> pl.DataFrame:
    """One row an event: by event_id where there is one, else by the whole row, which its time confines to one day."""
    whole = ["user_key", "item", "event", "ts", "value", "source", "gift", "session_id"]
    named = frame.filter(pl.col("event_id").is_not_null()).sort("event_id", *whole, nulls_last=True)
    unnamed = frame.filter(pl.col("event_id").is_null())
    return pl.concat(
        [named.unique("event_id", keep="first", maintain_order=True), unnamed.unique(whole, maintain_order=True)]
    )


def _undone(frame: pl.DataFrame) -> pl.DataFrame:
    """Take back what was cancelled, by person and item: the latest first, as off a stack.

    Events put their `value` on top, undoing events take theirs off the top, and an event of which nothing is left goes.
    Where a value of the stack is missing or 0, each counts as one: one undoing event takes back one event.
    """
    stack = ["user_key", "item", "of"]
    takes = pl.col("event") >= UNDO
    frame = frame.with_columns(of=pl.col("event") % UNDO)
    touched = frame.filter(takes & pl.col("user_key").is_not_null()).select(stack).unique()
    whole = frame.filter(~takes).join(touched, on=stack, how="anti")
    amount = pl.col("value").abs()
    counted = (amount.fill_null(0) == 0).any().over(stack)
    walk = pl.col("step").cum_sum().over(stack)
    height = pl.col("walk") - pl.min_horizontal(pl.col("walk").cum_min().over(stack), 0.0)  # an empty stack stays empty
    lowest_after = pl.col("height").cum_min(reverse=True).over(stack)
    left = (
        frame.join(touched, on=stack, how="semi")
        .sort(*stack, "ts", "event", "value", "source", "gift")
        .with_columns(size=pl.when(counted).then(1.0).otherwise(amount))
        .with_columns(step=pl.when(takes).then(-pl.col("size")).otherwise(pl.col("size")))
        .with_columns(walk=walk)
        .with_columns(height=height)
        .with_columns(left=lowest_after - (pl.col("height") - pl.col("size")))
        .filter(~takes & (pl.col("left") > _ROUNDING * pl.col("size")))
    )
    return pl.concat([whole, left.select(whole.columns)]).drop("of")


def _popularity(frame: pl.DataFrame, moment: int, half_life: float) -> pa.Table:
    """Each person counts once an item, by what is strongest of their wants now; each anonymous event counts alone."""
    age = (moment - pl.col("ts").cast(pl.Int64)) / _DAY
    wants = frame.filter((pl.col("ts").cast(pl.Int64) <= moment) & (pl.col("want") > 0)).with_columns(
        strength=pl.col("want").cast(pl.Float64) * 0.5 ** (age / half_life)
    )
    known = wants.filter(pl.col("user_key").is_not_null()).group_by("user_key", "item").agg(pl.col("strength").max())
    strangers = wants.filter(pl.col("user_key").is_null())
    both = pl.concat(
        [
            known.select("item", "strength", person=pl.lit(1, pl.Int64)),
            strangers.select("item", "strength", person=pl.lit(0, pl.Int64)),
        ]
    )
    summed = (
        both.sort("item", "strength")
        .group_by("item", maintain_order=True)
        .agg(weight=pl.col("strength").sum(), people=pl.col("person").sum())
    )
    return _as_schema(summed, POPULARITY)


def _as_schema(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    arrow = frame.select(schema.names).to_arrow()
    return pa.table({each.name: arrow[each.name].cast(each.type) for each in schema})
