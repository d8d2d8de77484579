"""Row by row: what of a log file is taken, what is left alone, and what is quarantined with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from engine.activity.files import MAYBE_TEXT, MOMENT, NUMBER, TEXT, TEXTS, WHOLE, Kind, as_time, read
from engine.activity.mapping import DataSettings, EventRule, near_miss
from engine.identity import fault_in_id
from engine.schema import EVENTS, TIME

UNDO = 100  # event codes from here on take back the event `code - UNDO`
_OLDEST = 315_532_800_000_000  # 1980 in microseconds: before it, a unit was mistaken or a clock unset
_DAY = 86_400_000_000
_STEPS = 2_900_000  # days after 1980 that still have a date; an order reaches no further
_KINDS = {
    "event_id": MAYBE_TEXT,
    "user_id": MAYBE_TEXT,
    "item_id": TEXT,
    "event": TEXT,
    "ts": MOMENT,
    "value": NUMBER,
    "source": TEXT,
    "session_id": MAYBE_TEXT,
    "flags": TEXTS,
}
_OPTIONAL = ("event_id", "value", "session_id", "flags")
_NAMES_TRIED = 20


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A log file after the checks.

    taken: user_id (nullable), item, event and source (codes), ts, value, gift, event_id, session_id, in file order.
    counts: how many rows were left alone (reasons that begin with -) or quarantined, by reason.
    quarantined: file, line (from 0), reason. No ids: a quarantine is an artefact like any other.
    near: events and sources that are unknown but nearly known -> what they may be meant for.
    """

    taken: pl.DataFrame
    counts: dict[str, int]
    quarantined: pl.DataFrame
    near: dict[str, str]
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
        now: microseconds since the epoch; an event more than a day later is quarantined, where times are times.

    Raises:
        ContractError: a column is missing or mistyped.
    """
    rules = _event_rules(data)
    frame = pl.DataFrame(_contract_table(filesystem, path, data)).with_row_index("line")
    for names, key, code, kind in (
        (items.to_pylist(), "item_id", "item", pl.Int32),
        (sources, "source", "source_code", pl.UInt8),
    ):
        codes = pl.DataFrame({key: names, code: range(len(names))}, schema={key: pl.String, code: kind})
        frame = frame.join(codes, on=key, how="left", maintain_order="left")
    frame = frame.join(rules, on="event", how="left", maintain_order="left")
    people = frame["user_id"].drop_nulls().unique()
    frame = frame.with_columns(
        not_offered=_among(frame["item_id"], dropped.to_pylist()),
        bad_user=_among(frame["user_id"], [name for name in people if fault_in_id(name)]),
    ).with_columns(reason=_reason(_OLDEST + _STEPS * _DAY - 1 if data.order else now + _DAY))
    counts = frame.drop_nulls("reason").group_by("reason").len().sort("reason")
    bad = frame.filter(~pl.col("reason").str.starts_with("-"))
    near: dict[str, str] = {}
    for column, reason, known in (("event", "unknown_event", rules["event"]), ("source", "unknown_source", sources)):
        strangers = bad.filter(pl.col("reason") == reason)[column].drop_nulls().unique(maintain_order=True)
        near |= {name: meant for name in strangers.head(_NAMES_TRIED) if (meant := near_miss(name, known))}
    taken = frame.filter(pl.col("reason").is_null()).select(
        "user_id",
        "item",
        pl.col("code").cast(pl.UInt8).alias("event"),
        "ts",
        "value",
        pl.col("source_code").alias("source"),
        gift=pl.col("flags").list.contains("gift").fill_null(False) | (pl.col("code") == EVENTS.index("gift")),
        event_id=pl.when(pl.col("event_id") != "").then("event_id"),
        session_id="session_id",
    )
    quarantined = bad.select(pl.lit(path).alias("file"), pl.col("line").cast(pl.Int64), "reason")
    return Rows(taken, dict(counts.iter_rows()), quarantined, near, len(frame))


def _reason(newest: int) -> pl.Expr:
    """Why a row is not taken; null where it is. What is not to be read at all comes first: nobody need mend it."""
    value, ts = pl.col("value"), pl.col("ts").cast(pl.Int64)
    reasons = {
        "-event_not_read": pl.col("code") < 0,
        "-not_offered": pl.col("not_offered"),
        "no_item_id": pl.col("item_id").is_null() | (pl.col("item_id") == ""),
        "bad_user_id": pl.col("bad_user"),
        "unknown_item": pl.col("item").is_null(),
        "unknown_event": pl.col("code").is_null(),
        "no_time": ts.is_null(),
        "time_out_of_range": (ts < _OLDEST) | (ts > newest),
        "value_not_finite": value.is_nan() | value.is_infinite(),
        "unknown_source": pl.col("source_code").is_null(),
        "-below_at_least": value.fill_null(0) < pl.col("at_least"),
    }
    return pl.coalesce(pl.when(holds).then(pl.lit(name)) for name, holds in reasons.items())


def _among(column: pl.Series, names: list[str]) -> pl.Series:
    return column.is_in(pl.Series(names, dtype=pl.String).implode()).fill_null(False)


def _contract_table(filesystem: fs.FileSystem, path: str, data: DataSettings) -> pa.Table:
    """Every column of the contract, in its type; null where the file has none."""
    kinds = dict(_KINDS)
    if data.time_unit:
        kinds["ts"] = Kind(f"a whole number, as data.time_unit={data.time_unit} says", WHOLE.fits)
    else:
        kinds["ts"] = Kind("timestamp, or a whole number with data.time_unit", MOMENT.fits)
    kept = {name: (data.column(name), kind) for name, kind in kinds.items() if data.column(name)}
    for name in data.constants:
        kept.pop(name, None)
    if data.order:
        kept["ts"] = (data.order, Kind("a whole number, the place in data.order", WHOLE.fits))
    table = read(filesystem, path, kept, tuple(name for name in kept if name in data.columns or name not in _OPTIONAL))
    columns = {}
    for name, kind in kinds.items():
        if name in data.constants:
            columns[name] = pa.repeat(pa.scalar(data.constants[name], pa.string()), table.num_rows)
        elif name not in table.column_names:
            columns[name] = pa.nulls(table.num_rows, kind.becomes)
        elif name == "ts" and data.order:
            columns[name] = _steps(table[name])
        elif name == "ts":
            columns[name] = as_time(table[name], data.time_unit, data.time_zone)
        else:
            columns[name] = table[name]
    return pa.table(columns)


def _steps(order: pa.ChunkedArray) -> pa.ChunkedArray:
    """A rank as a time: a day a step from 1980 on."""
    near = pc.max_element_wise(order.cast(pa.float64(), safe=False), -1.0, skip_nulls=False)
    steps = pc.min_element_wise(near, float(_STEPS), skip_nulls=False).cast(pa.int64())
    return pc.add(pc.multiply(steps, _DAY), _OLDEST).cast(TIME)


def _event_rules(data: DataSettings) -> pl.DataFrame:
    """event -> code (-1: not read), and the value below which the event is not read."""
    rules = data.events or {name: EventRule(means=name) for name in EVENTS}
    undoes = [rule.undoes or ("purchase" if rule.means == "return" else "") for rule in rules.values()]
    codes = [
        UNDO + EVENTS.index(undone) if undone else EVENTS.index(rule.means) if rule.means else -1
        for rule, undone in zip(rules.values(), undoes, strict=True)
    ]
    return pl.DataFrame(
        {"event": list(rules), "code": codes, "at_least": [rule.at_least for rule in rules.values()]},
        schema={"event": pl.String, "code": pl.Int16, "at_least": pl.Float64},
    )
