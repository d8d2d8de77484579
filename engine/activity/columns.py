"""The columns of a batch of the log as arrays, one function a column; names are looked up once a dictionary, not once a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.activity.mapping import DataSettings, EventRule
from engine.activity.parquet import MAYBE_TEXT, MOMENT, NUMBER, TEXT, TEXTS, WHOLE, Kind, as_time
from engine.schema import EVENTS, TIME

UNDO = 100  # event codes from here on take back the event `code - UNDO`
NOT_READ, UNKNOWN = 255, 254  # event codes of rows that are not taken
DISMISSES = EVENTS.index("dismiss_category")  # in schema.ACTIVITY of the item's own category, its leaf
AT_DEPTH, DEEPEST = 200, 50  # AT_DEPTH + depth in schema.ACTIVITY: of that step of the item's path, 1 being the root
OLDEST = 315_532_800_000_000  # 1980 in microseconds: before it, a unit was mistaken or a clock unset
DAY = 86_400_000_000
STEPS = 2_900_000  # days after 1980 that still have a date; an order reaches no further
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


def event_name(code: int) -> str:
    """What an event code is called in reports."""
    if AT_DEPTH < code <= AT_DEPTH + DEEPEST:
        return EVENTS[DISMISSES]
    return EVENTS[code] if code < UNDO else f"undo {EVENTS[code - UNDO]}"


def columns_wanted(data: DataSettings) -> tuple[dict[str, tuple[str, Kind]], tuple[str, ...]]:
    """Columns to read with what they must be, and those that must be there."""
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
    return kept, tuple(name for name in kept if name in data.columns or name not in _OPTIONAL)


def coded(batch: pa.RecordBatch, name: str, data: DataSettings) -> tuple[NDArray[np.int32], pa.Array]:
    """Codes (-1: null) and the names that they stand for."""
    if name in data.constants:
        return np.zeros(batch.num_rows, np.int32), pa.array([data.constants[name]], pa.string())
    if name not in batch.schema.names:
        return np.full(batch.num_rows, -1, np.int32), pa.array([], pa.string())
    column = batch.column(name)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.cast(pa.int32())
    return (codes.fill_null(-1) if codes.null_count else codes).to_numpy(), column.dictionary


def padded(values: NDArray[Any], null: object) -> NDArray[Any]:
    """A lookup table whose last entry answers for code -1."""
    return np.append(values, np.array([null], values.dtype))


def events(
    text: tuple[NDArray[np.int32], pa.Array], data: DataSettings
) -> tuple[NDArray[np.uint8], NDArray[np.float64] | None]:
    """Event code of each row, and the value below which it is not read, where any rule has one."""
    rules = {name: (_code(rule), rule.at_least) for name, rule in event_rules(data).items()}
    found = [rules.get(name, (UNKNOWN, None)) for name in text[1].to_pylist()]
    codes = padded(np.array([code for code, _ in found], np.uint8), UNKNOWN)[text[0]]
    if all(least is None for _, least in rules.values()):
        return codes, None
    least = np.array([-np.inf if least is None else least for _, least in found])
    return codes, padded(least, -np.inf)[text[0]]


def event_rules(data: DataSettings) -> dict[str, EventRule]:
    """What each event name of the log means."""
    return data.events or {name: EventRule(means=name) for name in EVENTS}


def _code(rule: EventRule) -> int:
    undone = rule.undoes or ("purchase" if rule.means == "return" else "")
    if undone:
        return UNDO + EVENTS.index(undone)
    return EVENTS.index(rule.means) if rule.means else NOT_READ


def sources(text: tuple[NDArray[np.int32], pa.Array], sources: tuple[str, ...]) -> NDArray[np.int16]:
    place = {name: code for code, name in enumerate(sources)}
    return padded(np.array([place.get(name, -1) for name in text[1].to_pylist()], np.int16), -1)[text[0]]


def times(batch: pa.RecordBatch, data: DataSettings) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds since the epoch, and which rows have none."""
    column = pa.chunked_array([batch.column("ts")])
    times = (_steps(column) if data.order else as_time(column, data.time_unit, data.time_zone)).combine_chunks()
    whole = times.cast(pa.int64())
    if not whole.null_count:
        return whole.to_numpy(), np.zeros(len(whole), bool)
    return whole.fill_null(0).to_numpy(), whole.is_null().to_numpy(zero_copy_only=False)


def _steps(order: pa.ChunkedArray) -> pa.ChunkedArray:
    """A rank as a time: a day a step from 1980 on."""
    near = pc.max_element_wise(order.cast(pa.float64(), safe=False), -1.0, skip_nulls=False)
    steps = pc.min_element_wise(near, float(STEPS), skip_nulls=False).cast(pa.int64())
    return pc.add(pc.multiply(steps, DAY), OLDEST).cast(TIME)


def values(batch: pa.RecordBatch) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    """Values, 0 where there is none; and which rows have one, or None where no row has."""
    if "value" not in batch.schema.names or batch.column("value").null_count == batch.num_rows:
        return np.zeros(batch.num_rows), None
    column = batch.column("value")
    return column.fill_null(0.0).to_numpy(), column.is_valid().to_numpy(zero_copy_only=False)


def gifts(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    gift = np.zeros(batch.num_rows, bool)
    if "flags" not in batch.schema.names or batch.column("flags").null_count == batch.num_rows:
        return gift
    flags = batch.column("flags")
    named = pc.fill_null(pc.equal(flags.flatten(), "gift"), False).to_numpy(zero_copy_only=False)
    if named.any():
        gift[pc.list_parent_indices(flags).to_numpy()[named]] = True
    return gift
