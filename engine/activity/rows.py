"""Row by row: what of a log file is taken, what is left alone, and what is quarantined with its reason.

Names are looked up once a dictionary, not once a row: a batch of the log mostly repeats them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from engine.activity.categories import about_categories
from engine.activity.columns import (
    DAY,
    NOT_READ,
    OLDEST,
    STEPS,
    UNKNOWN,
    coded,
    columns_wanted,
    event_rules,
    events,
    gifts,
    padded,
    sources,
    times,
    values,
)
from engine.activity.mapping import DataSettings, near_miss
from engine.activity.order import Events
from engine.activity.parquet import batches
from engine.activity.people import People
from engine.schema import EVENTS

_NAMES_TRIED = 20
# What may be wrong with a row, the first that holds. Reasons that begin with - leave it alone: nobody need mend it.
REASONS = (
    "",
    "-event_not_read",
    "no_item_id",
    "bad_user_id",
    "unknown_event",
    "no_time",
    "time_out_of_range",
    "value_not_finite",
    "unknown_source",
    "-below_at_least",
    "unknown_item",  # and nothing else: a later catalogue may know it
    "-not_offered",
)
_COARSE = {"": 1, "minute": 60_000_000, "hour": 3_600_000_000, "day": DAY}


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """What every file is read against.

    items: all item ids of the catalogue, offered or not, and Categories.ids, ascending. dropped: item ids not offered.
    sources: the consent vocabulary's, in the order of their codes. now: microseconds since the epoch; an event more than a day
    later is quarantined, where times are times. salt: seeds the marks of events, so that they do not give an event_id away.
    since: (256,) by event code, the earliest time of an event that is carried on; None: all are.
    """

    data: DataSettings
    items: pa.Array
    dropped: pa.Array
    sources: tuple[str, ...]
    now: int
    salt: int = 0
    since: NDArray[np.int64] | None = None

    @property
    def newest(self) -> int:
        """The latest time that is believed, microseconds since the epoch."""
        return OLDEST + STEPS * DAY - 1 if self.data.order else self.now + DAY

    def catalogue(self) -> str:
        """Names the items that the catalogue holds."""
        return hashlib.sha256(marks_of(self.items, self.salt).tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """A batch of a log file after the checks.

    carried: the events that a night needs; `person` is a row of `people` (-1: anonymous), `item` one of the catalogue.
    expired: (256,) by event code, those too old for it. people: (N, 32) bytes, key and seal of the people of the batch.
    counts: rows not taken, by reason. line, reason: those quarantined; reason is a place in REASONS. tally: sound rows, by
    (day since 1970, source, event). latest: microseconds, by source. strangers: marks of item ids that the catalogue does
    not know. ahead: the earliest time refused as future.
    """

    carried: Events
    expired: NDArray[np.int64]
    people: NDArray[np.uint8]
    rows: int
    counts: Counter[str]
    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    tally: Counter[tuple[int, int, int]]
    latest: dict[int, int]
    near: dict[str, str]
    strangers: NDArray[np.uint64]
    ahead: int | None


def read_rows(filesystem: fs.FileSystem, path: str, rules: Rules, people: People) -> Iterator[Checked]:
    """Read one file of the log, batch by batch.

    Raises:
        FileRefused: the file is broken or does not keep the contract.
    """
    wanted, required = columns_wanted(rules.data)
    line = 0
    for batch in batches(filesystem, path, wanted, required, ("event_id", "session_id")):
        yield check(batch, rules, people, line)
        line += batch.num_rows


def check(batch: pa.RecordBatch, rules: Rules, people: People, line: int = 0) -> Checked:
    """Check a batch of contract columns that begins at a line of its file."""
    data, count = rules.data, batch.num_rows
    text = {name: coded(batch, name, data) for name in ("user_id", "item_id", "event", "source")}
    user, known = text["user_id"]
    pseudonyms, bad = people.of(known)
    bad_user = padded(bad, False)
    event, at_least = events(text["event"], data)
    text["item_id"] = item_code, item_names = about_categories(batch, text["item_id"], event)
    place = padded(_places(item_names, rules.items), -1)
    nameless = padded(pc.equal(item_names, "").to_numpy(zero_copy_only=False), True)
    source = sources(text["source"], rules.sources)
    ts, timeless = times(batch, data)
    value, valued = values(batch)
    out_of_range = (ts < OLDEST) | (ts > rules.newest)
    wrong = out_of_range | timeless | (event >= UNKNOWN) | (source < 0) | (place < 0)[item_code] | bad_user[user]
    if valued is not None:
        wrong |= ~np.isfinite(value)
    if at_least is not None:
        wrong |= value < at_least
    reason = np.zeros(count, np.uint8)
    rest = np.flatnonzero(wrong)  # few, as a rule: what is wrong with them is asked of them alone
    conditions = {
        "-event_not_read": event[rest] == NOT_READ,
        "no_item_id": nameless[item_code[rest]],
        "bad_user_id": bad_user[user[rest]],
        "unknown_event": event[rest] == UNKNOWN,
        "no_time": timeless[rest],
        "time_out_of_range": out_of_range[rest],
        "value_not_finite": ~np.isfinite(value[rest]),
        "unknown_source": source[rest] < 0,
        "-below_at_least": value[rest] < at_least[rest] if at_least is not None else np.zeros(len(rest), bool),
        "unknown_item": place[item_code[rest]] < 0,
    }
    for code in range(len(conditions), 0, -1):
        reason[rest[conditions[REASONS[code]]]] = code
    # Nobody need mend what is not for sale; of rows that are sound, each night judges that for itself.
    if len(rules.dropped) and (reason[rest] > 1).any():
        unsold = padded(pc.is_in(item_names, value_set=rules.dropped).to_numpy(zero_copy_only=False), False)
        reason[rest[unsold[item_code[rest]] & (reason[rest] > 1)]] = REASONS.index("-not_offered")
    taken = ~wrong
    sound = taken | (reason == REASONS.index("unknown_item"))  # whatever tonight's catalogue holds
    told = np.bincount(reason, minlength=len(REASONS))
    counts = Counter({REASONS[code]: int(told[code]) for code in range(1, len(REASONS)) if told[code]})
    bad_rows = rest[~np.isin(reason[rest], _LEFT_ALONE)]

    told_ts = ts // _COARSE[data.coarsen.time] * _COARSE[data.coarsen.time] if data.coarsen.time else ts
    rows = np.flatnonzero(taken & _carried(data)[event])
    if len(rows) < int(taken.sum()):
        counts["-counted_only"] = int(taken.sum()) - len(rows)
    expired = np.zeros(256, np.int64)
    if rules.since is not None:
        old = told_ts[rows] < rules.since[event[rows]]
        expired += np.bincount(event[rows[old]], minlength=256)
        rows = rows[~old]
    marks = _marks(batch, text["item_id"], rows, {"event": event, "ts": ts, "value": value, "source": source}, rules)
    ahead = ts[(reason == REASONS.index("time_out_of_range")) & (ts > rules.newest)]
    ts = told_ts
    carried = Events(
        user[rows],
        place[item_code[rows]].astype(np.int32),
        event[rows],
        ts[rows],
        np.where(valued, value, np.nan)[rows] if valued is not None else np.full(len(rows), np.nan),
        source[rows].astype(np.uint8),
        gifts(batch)[rows] | (event[rows] == EVENTS.index("gift")),
        marks,
    )
    stranger = np.unique(item_code[reason == REASONS.index("unknown_item")])
    return Checked(
        carried,
        expired,
        pseudonyms,
        count,
        counts,
        bad_rows + line,
        reason[bad_rows],
        _tally(ts, source, event, sound),
        {int(code): int(ts[sound & (source == code)].max()) for code in np.unique(source[sound])},
        _near(text, reason, rules),
        marks_of(item_names.take(pa.array(stranger)), rules.salt),
        int(ahead.min()) if len(ahead) else None,
    )


_LEFT_ALONE = [code for code, name in enumerate(REASONS) if name.startswith("-")]


def marks_of(names: pa.Array, salt: int) -> NDArray[np.uint64]:
    """(N,) 64-bit hashes of texts; the same within a version of polars, whose version parts are filed under."""
    return pl.Series(pl.from_arrow(names)).cast(pl.String).hash(salt).to_numpy()


def _places(names: pa.Array, items: pa.Array) -> NDArray[np.int64]:
    found = pc.index_in(names, value_set=items).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.int64)


def _carried(data: DataSettings) -> NDArray[np.bool_]:
    """(256,) event codes that go on to a night: impressions are counted, and nothing of a night reads them further."""
    carried = np.ones(256, bool)
    carried[EVENTS.index("impression")] = data.weights.get("impression", 0.0) > 0
    return carried


def _marks(
    batch: pa.RecordBatch,
    items: tuple[NDArray[np.int32], pa.Array],
    rows: NDArray[np.int64],
    columns: dict[str, NDArray[Any]],
    rules: Rules,
) -> NDArray[np.uint64]:
    """(N,) one mark an event: of its event_id, or of all that the row says where it has none."""
    picked = pa.array(rows)
    ids = _picked_text(batch, "event_id", picked)
    named = ((ids != "") & ids.is_not_null()).to_numpy()
    by_id = ids.hash(rules.salt).to_numpy()
    if named.all():
        return by_id
    whole = {name: column[rows] for name, column in columns.items()}
    whole["value"] = whole["value"] + 0.0  # -0.0 is 0.0
    whole["item"] = padded(marks_of(items[1], rules.salt), 0)[items[0][rows]]
    whole["gift"] = gifts(batch)[rows]
    frame = pl.DataFrame(whole).with_columns(_picked_text(batch, "session_id", picked).alias("session_id"))
    return np.where(named, by_id, frame.hash_rows(rules.salt).to_numpy())


def _picked_text(batch: pa.RecordBatch, name: str, rows: pa.Array) -> pl.Series:
    if name not in batch.schema.names:
        return pl.repeat(None, len(rows), dtype=pl.String, eager=True)
    return pl.Series(pl.from_arrow(batch.column(name).take(rows))).cast(pl.String)


def _tally(
    ts: NDArray[np.int64], source: NDArray[np.int16], event: NDArray[np.uint8], taken: NDArray[np.bool_]
) -> Counter[tuple[int, int, int]]:
    if not taken.any():
        return Counter()
    if not taken.all():
        ts, source, event = ts[taken], source[taken], event[taken]
    day = ts // DAY
    first = int(day.min())
    code = ((day - first) << 16) | (source.astype(np.int64) << 8) | event
    if int(day.max()) - first < 1000:
        counts = np.bincount(code)
        codes = np.flatnonzero(counts)
        counts = counts[codes]
    else:
        codes, counts = np.unique(code, return_counts=True)
    return Counter(
        {
            (first + (each >> 16), each >> 8 & 255, each & 255): many
            for each, many in zip(codes.tolist(), counts.tolist(), strict=True)
        }
    )


def _near(
    text: dict[str, tuple[NDArray[np.int32], pa.Array]], reason: NDArray[np.uint8], rules: Rules
) -> dict[str, str]:
    """Events and sources that are unknown but nearly known -> what they may be meant for."""
    near: dict[str, str] = {}
    for column, named, known in (
        ("event", "unknown_event", list(event_rules(rules.data))),
        ("source", "unknown_source", list(rules.sources)),
    ):
        codes, names = text[column]
        strange = np.unique(codes[reason == REASONS.index(named)])
        for name in names.take(pa.array(strange[strange >= 0][:_NAMES_TRIED])).to_pylist():
            if meant := near_miss(name, known):
                near[name] = meant
    return near
