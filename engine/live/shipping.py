"""From the journal into the activity log: segments become Parquet files in the log's contract, under names that do not change.

Shipped again after a crash, a segment writes over its own files: nothing counts twice.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from engine.errors import JournalUnavailable
from engine.live.events import LiveEvent
from engine.live.journal import Journal
from engine.schema import EVENTS, TIME

# The activity log's own columns.
LOG = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),  # null: of nobody
        ("item_id", pa.string()),
        ("event", pa.string()),
        ("ts", TIME),
        ("value", pa.float64()),
        ("source", pa.string()),
        ("session_id", pa.string()),
        ("flags", pa.list_(pa.string())),
    ]
)
CATEGORY = "category:"  # begins the flag that says which category was dismissed
_DAY = 86_400_000_000
_EPOCH = dt.date(1970, 1, 1)
# Under which raw id each event goes into the log: '' is nobody's, None: it does not.
Kept = Callable[[Sequence[LiveEvent]], Sequence[str | None]]


def ship(journal: Journal, log: str, kept: Kept) -> int:
    """Bring everything that is in the journal into the log; returns how many events.

    Args:
        log: a folder, or a URI that pyarrow.fs opens; files go to date=YYYY-MM-DD/ below it, by when things happened.
        kept: may raise, and then nothing more is shipped now.

    Raises:
        JournalUnavailable: the journal or the log does not answer; what is left is shipped the next time.
    """
    journal.seal()
    count = 0
    for segment in journal.unshipped():
        events = list({(event.key, event.event_id): event for event in journal.events(segment)}.values())
        ids = kept(events)
        named = [replace(event, user_id=user) for event, user in zip(events, ids, strict=True) if user is not None]
        by_day: dict[int, list[LiveEvent]] = {}
        for event in named:
            by_day.setdefault(event.ts // _DAY, []).append(event)
        for day, part in sorted(by_day.items()):
            date = (_EPOCH + dt.timedelta(days=day)).isoformat()
            _put(log, f"date={date}", f"live-{journal.name}-{segment.number:08d}.parquet", _table(part))
        journal.shipped(segment)
        count += len(named)
    return count


def _table(events: Sequence[LiveEvent]) -> pa.Table:
    flags = [[*each.flags, *([CATEGORY + each.category] if each.category else [])] for each in events]
    columns = [
        [each.event_id for each in events],
        [each.user_id or None for each in events],
        [each.item_id or None for each in events],
        [EVENTS[each.event] for each in events],
        pa.array([each.ts for each in events], pa.int64()).cast(TIME),
        [each.value for each in events],
        [each.source for each in events],
        [each.session_id or None for each in events],
        flags,
    ]
    arrays = [
        each if isinstance(each, pa.Array) else pa.array(each, field.type)
        for each, field in zip(columns, LOG, strict=True)
    ]
    return pa.table(arrays, schema=LOG)


def _put(log: str, folder: str, name: str, table: pa.Table) -> None:
    """Write one file; it appears whole."""
    try:
        if "://" not in log:
            place = Path(log) / folder
            place.mkdir(parents=True, exist_ok=True)
            draft = place / f".{name}.part"
            pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
            for path in (draft, place, place.parent):
                if path == place:
                    draft.replace(place / name)
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            return
        filesystem, root = fs.FileSystem.from_uri(log)
        pq.write_table(
            table, f"{root}/{folder}/{name}", filesystem=filesystem, compression="zstd", write_page_checksum=True
        )
    except (OSError, pa.ArrowException) as error:
        raise JournalUnavailable(
            f"Events cannot be brought into the log: {type(error).__name__}.",
            "Check live.log, its disk and its rights; the journal keeps them meanwhile.",
        ) from error
