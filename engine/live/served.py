"""The log of lists in which something was drawn: what stood where, and with what chance.

With the events that carry a list's id it is all that off-policy estimates need (Swaminathan & Joachims 2015, "Counterfactual risk
minimization", arXiv:1502.02362). It names lists and items, never a person.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from engine.errors import JournalUnavailable

SERVED = pa.schema(
    [
        ("recommendation_id", pa.string()),
        ("made_at", pa.timestamp("us", tz="UTC")),
        ("surface", pa.string()),
        ("policy", pa.string()),
        ("snapshot_id", pa.string()),
        ("mode", pa.string()),
        ("seed", pa.uint64()),
        ("items", pa.list_(pa.string())),  # best first
        ("lanes", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("propensities", pa.list_(pa.float32())),  # the chance that each stood at its place, over all seeds
    ]
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True)
class ServedList:
    """One list, in the columns of SERVED."""

    recommendation_id: str
    made_us: int
    surface: str
    policy: str
    snapshot_id: str
    mode: str
    seed: int
    items: Sequence[str]
    lanes: Sequence[str]
    scores: Sequence[float]
    propensities: Sequence[float]


class ServedLog:
    """Keeps lists in memory and writes them now and then; a process that is killed loses what it had not written.

    Args:
        place: a folder, or a URI that pyarrow.fs opens.
        most: lists in memory; beyond it the oldest go, and are counted in `lost`.
    """

    def __init__(self, place: str, most: int = 50_000) -> None:
        self._place = place
        self._lists: deque[ServedList] = deque()
        self._most = most
        self._lock = threading.Lock()
        self._name = secrets.token_hex(4)
        self._files = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._lists)

    def add(self, made: ServedList) -> None:
        """Remember a list."""
        with self._lock:
            self._lists.append(made)
            if len(self._lists) > self._most:
                self._lists.popleft()
                self.lost += 1

    def write(self) -> int:
        """Write what there is, a file a day of it; returns how many lists.

        Raises:
            JournalUnavailable: the place does not take it; it is kept for the next time.
        """
        with self._lock:
            lists, self._lists = list(self._lists), deque()
        if not lists:
            return 0
        try:
            by_day: dict[str, list[ServedList]] = {}
            for each in lists:
                day = dt.datetime.fromtimestamp(each.made_us / 1e6, dt.UTC).date().isoformat()
                by_day.setdefault(day, []).append(each)
            for day, part in sorted(by_day.items()):
                self._put(f"date={day}/served-{self._name}-{self._files:06d}.parquet", part)
                self._files += 1
        except (OSError, pa.ArrowException) as error:
            with self._lock:
                self._lists.extendleft(reversed(lists))
            raise JournalUnavailable(
                f"The log of served lists cannot be written: {error}.", "Check live.served and its disk."
            ) from error
        return len(lists)

    def forget(self, before: dt.date) -> None:
        """Remove days before a day.

        Raises:
            JournalUnavailable: the place does not let them go.
        """
        filesystem, root = self._opened()
        try:
            for each in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):
                day = each.base_name.removeprefix("date=")
                if each.type is fs.FileType.Directory and day < before.isoformat() and _DAY.fullmatch(day):
                    filesystem.delete_dir(each.path)
        except OSError as error:
            raise JournalUnavailable(
                f"Old days of the log of served lists cannot be removed: {error}.", "Check live.served and its rights."
            ) from error

    def _opened(self) -> tuple[fs.FileSystem, str]:
        return fs.FileSystem.from_uri(self._place) if "://" in self._place else (fs.LocalFileSystem(), self._place)

    def _put(self, name: str, lists: Sequence[ServedList]) -> None:
        columns = [
            [each.recommendation_id for each in lists],
            pa.array([each.made_us for each in lists], pa.int64()).cast(SERVED.field("made_at").type),
            *([getattr(each, field) for each in lists] for field in SERVED.names[2:]),
        ]
        table = pa.table(
            [
                column if isinstance(column, pa.Array) else pa.array(column, field.type)
                for column, field in zip(columns, SERVED, strict=True)
            ],
            schema=SERVED,
        )
        filesystem, root = self._opened()
        path = f"{root}/{name}"
        folder, _, file = path.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        growing = f"{folder}/.{file}.part"
        pq.write_table(table, growing, filesystem=filesystem, compression="zstd")
        filesystem.move(growing, path)
