"""Row by row: what of a log file is taken, what is left alone, and what is quarantined with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
from pyarrow import fs

from engine.activity.files import MAYBE_TEXT, MOMENT, NUMBER, TEXT, TEXTS, WHOLE, as_time, read
from engine.activity.mapping import DataSettings
from engine.identity import MAX_ID_BYTES
from engine.schema import EVENTS, TIME

_OLDEST = 315_532_800_000_000  # 1980 in microseconds: before it, a unit was mistaken or a clock unset
UNDO = 100  # event codes from here on take back the event `code - UNDO`
_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A log file after the checks.

    taken: user_id (nullable), item (code), event (code), ts, value, source (code), gift, event_id, line, in file order.
    counts: how many rows were left alone or quarantined, by reason.
    quarantined: file, line, reason. No ids: a quarantine is an artefact like any other.
    """

    taken: pl.DataFrame
    counts: dict[str, int]
    quarantined: pl.DataFrame
    total: int


def read_rows(
    filesystem: fs.FileSystem,
    path: str,
    data: DataSettings,
    items: pa.Array,
    dropped: pa.Array,
    sources: tuple[str, ...],
    now: int,
) -> Rows:
    """Read one file of the log.

    Args:
        items: item ids of the catalogue in the order of their codes; dropped: ids that are not offered.
        sources: the consent vocabulary's, in the order of their codes.
        now: microseconds since the epoch; a later event is quarantined.

    Raises:
        ContractError: a column is missing or mistyped.
    """
    frame = pl.DataFrame(pl.from_arrow(_contract_table(filesystem, path, data))).with_row_index("line")
    codes = pl.DataFrame({"item_id": pl.Series(items, dtype=pl.String)}).with_row_index("item")
    absent = pl.DataFrame({"item_id": pl.Series(dropped.to_pylist(), dtype=pl.String)}).with_columns(not_offered=pl.lit(True))
    rules = _event_rules(data)
    frame = frame.join(codes, on="item_id", how="left", maintain_order="left").join(
        absent, on="item_id", how="left", maintain_order="left"
    )
    frame = frame.join(rules, left_on="event", right_on="name", how="left", maintain_order="left").join(
        pl.DataFrame({"source": list(sources), "source_code": range(len(sources))}, schema_overrides={"source_code": pl.UInt8}),
        on="source",
        how="left",
        maintain_order="left",
    )
    user, item, ts = pl.col("user_id"), pl.col("item_id"), pl.col("ts").cast(pl.Int64)
    reason = (
        pl.when(item.is_null() | (item == ""))
        .then(pl.lit("no_item_id"))
        .when(_bad_id(user))
        .then(pl.lit("bad_user_id"))
        .when(pl.col("not_offered").is_not_null())
        .then(pl.lit("-not_offered"))
        .when(pl.col("item").is_null())
        .then(pl.lit("unknown_item"))
        .when(pl.col("code").is_null())
        .then(pl.lit("unknown_event"))
        .when(pl.col("code") < 0)
        .then(pl.lit("-event_not_read"))
        .when(pl.col("ts").is_null())
        .then(pl.lit("no_time"))
        .when((ts < _OLDEST) | (ts > now + _DAY))
        .then(pl.lit("time_out_of_range"))
        .when(pl.col("value").is_nan() | pl.col("value").is_infinite())
        .then(pl.lit("value_not_finite"))
        .when(pl.col("source_code").is_null())
        .then(pl.lit("unknown_source"))
        .when(pl.col("value").fill_null(0) < pl.col("at_least"))
        .then(pl.lit("-below_at_least"))
    )
    frame = frame.with_columns(reason=reason)
    counts = dict(frame.drop_nulls("reason").group_by("reason").len().sort("reason").iter_rows())
    bad = frame.filter(pl.col("reason").is_not_null() & ~pl.col("reason").str.starts_with("-"))
    taken = frame.filter(pl.col("reason").is_null()).select(
        "user_id",
        pl.col("item").cast(pl.Int32),
        pl.col("code").cast(pl.UInt8).alias("event"),
        "ts",
        "value",
        pl.col("source_code").alias("source"),
        (pl.col("flags").list.contains("gift").fill_null(False) | (pl.col("code") == EVENTS.index("gift"))).alias("gift"),
        "event_id",
        "session_id",
    )
    quarantined = bad.select(pl.lit(path).alias("file"), pl.col("line").cast(pl.Int64), "reason")
    return Rows(taken, {str(name): int(count) for name, count in counts.items()}, quarantined, len(frame))


def _contract_table(filesystem: fs.FileSystem, path: str, data: DataSettings) -> pa.Table:
    kinds = {
        "event_id": MAYBE_TEXT,
        "user_id": MAYBE_TEXT,
        "item_id": TEXT,
        "event": TEXT,
        "ts": WHOLE if data.time_unit else MOMENT,
        "value": NUMBER,
        "source": TEXT,
        "session_id": MAYBE_TEXT,
        "flags": TEXTS,
    }
    kept = {
        name: (data.column(name), kind) for name, kind in kinds.items() if data.column(name) and name not in data.constants
    }
    optional = ("event_id", "value", "session_id", "flags")
    required = tuple(name for name in kept if name in data.columns or name not in optional)
    if data.order:
        kept.pop("ts", None)
        kept["order"] = (data.order, WHOLE)
        required = (*(name for name in required if name != "ts"), "order")
    table = read(filesystem, path, kept, required)
    rows = table.num_rows
    plain = {
        "ts": TIME,
        "value": pa.float64(),
        "flags": pa.list_(pa.string()),
    }
    columns = {}
    for name in kinds:
        target = plain.get(name, pa.string())
        if name in data.constants:
            columns[name] = pa.array([data.constants[name]] * rows, pa.string())
        elif name == "ts" and data.order:
            steps = table["order"].cast(pa.int64()).to_numpy()
            columns[name] = pa.array(steps * _DAY + _OLDEST, pa.timestamp("us", tz="UTC"))
        elif name not in table.column_names:
            columns[name] = pa.nulls(rows, target)
        elif name == "ts":
            columns[name] = as_time(table[name], data.time_unit, data.time_zone)
        else:
            columns[name] = table[name].cast(target)
    return pa.table(columns)


def _event_rules(data: DataSettings) -> pl.DataFrame:
    """name -> code (-1: not read), and the value below which the event is not read."""
    names, codes, least = [], [], []
    given = data.events
    for name in given or {event: None for event in EVENTS}:
        rule = given[name] if given else None
        meaning = name if rule is None else rule.means
        if rule is not None and rule.undoes:
            code = UNDO + EVENTS.index(rule.undoes)
        else:
            code = EVENTS.index(meaning) if meaning else -1
        names.append(name)
        codes.append(code)
        least.append(None if rule is None else rule.at_least)
    return pl.DataFrame(
        {"name": names, "code": codes, "at_least": least},
        schema={"name": pl.String, "code": pl.Int16, "at_least": pl.Float64},
    )


def _bad_id(user: pl.Expr) -> pl.Expr:
    """The rules of identity.fault_in_id as one expression over a column; a test holds both together."""
    broken = (
        (user == "")
        | (user.str.len_bytes() > MAX_ID_BYTES)
        | user.str.contains("\0", literal=True)
        | (user.str.normalize("NFC") != user)
    )
    return user.is_not_null() & broken
