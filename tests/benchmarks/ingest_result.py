"""What a run left, so that two can be compared: rows without regard to their order, popularity but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.schema import ACTIVITY, POPULARITY

_MOMENTS = ("full", "holdout")
_CLOSE = 1e-6  # of a sum of shares, which everybody adds up in an order of their own


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """rows, people: of the activity. hash: the sum of its rows' hashes. popularity: by moment, sorted by item."""

    rows: int
    people: int
    hash: int
    popularity: dict[str, pa.Table]

    def unlike(self, other: Result) -> str:
        """In what the two differ; empty when they do not."""
        if (self.rows, self.people, self.hash) != (other.rows, other.people, other.hash):
            return (
                f"activity: {self.rows} rows of {self.people} people with hash {self.hash:016x}, "
                f"and {other.rows} of {other.people} with {other.hash:016x}"
            )
        for moment in _MOMENTS:
            mine, theirs = self.popularity[moment], other.popularity[moment]
            for name in ("item", "people"):
                if not mine[name].equals(theirs[name]):
                    return f"popularity-{moment}: another {name}"
            if not np.allclose(mine["weight"].to_numpy(), theirs["weight"].to_numpy(), rtol=_CLOSE):
                return f"popularity-{moment}: another weight"
        return ""


def result_of(folder: Path) -> Result:
    """Read what a peer or ingest left in a folder.

    Raises:
        ValueError: people or their events are not in order.
    """
    rows = people = total = 0
    for shard in _tables(folder, "activity"):
        keys = _words(shard["user_key"])
        ts = shard["ts"].cast(pa.int64()).to_numpy()
        changes = (keys[1:] != keys[:-1]).any(axis=1)
        before, after = keys[:-1].byteswap()[changes], keys[1:].byteswap()[changes]
        rising = (before[:, 0] < after[:, 0]) | ((before[:, 0] == after[:, 0]) & (before[:, 1] < after[:, 1]))
        if not (rising.all() and (changes | (ts[1:] >= ts[:-1])).all()):
            raise ValueError(f"{folder}: activity is not sorted by user key and time.")
        rows, people = rows + len(shard), people + int(changes.sum()) + bool(len(shard))
        total += int(_row_hashes(keys, shard).sum(dtype=np.uint64))
    return Result(rows, people, total % 2**64, {moment: _popularity(folder, moment) for moment in _MOMENTS})


def _tables(folder: Path, name: str) -> Iterator[pa.Table]:
    for path in sorted(folder.glob(f"{name}*")):
        if path.suffix == ".parquet":
            yield pq.read_table(path)
        else:
            with pa.memory_map(str(path)) as source:
                yield pa.ipc.open_file(source).read_all()


def _words(keys: pa.ChunkedArray) -> NDArray[np.uint64]:
    """(N, 2): the 16 bytes of each key."""
    chunks = [chunk.cast(pa.binary()).cast(ACTIVITY.field("user_key").type) for chunk in keys.chunks]
    raw = b"".join(
        chunk.buffers()[1][16 * chunk.offset : 16 * (chunk.offset + len(chunk))].to_pybytes() for chunk in chunks
    )
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _row_hashes(keys: NDArray[np.uint64], shard: pa.Table) -> NDArray[np.uint64]:
    hashed = _mixed(_mixed(keys[:, 0]) ^ keys[:, 1])
    for field in list(ACTIVITY)[1:]:
        values = shard[field.name].cast(field.type)
        if field.type == pa.float32():
            words = values.to_numpy().view(np.uint32).astype(np.uint64)
        elif pa.types.is_timestamp(field.type):
            words = values.cast(pa.int64()).to_numpy().astype(np.uint64)
        else:
            words = values.to_numpy().astype(np.uint64)
        hashed = _mixed(hashed ^ words)
    return hashed


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _popularity(folder: Path, moment: str) -> pa.Table:
    parts = [table.select(POPULARITY.names).cast(POPULARITY) for table in _tables(folder, f"popularity-{moment}")]
    summed = pa.concat_tables(parts).group_by("item").aggregate([("weight", "sum"), ("people", "sum")])
    return summed.rename_columns(["item", "weight", "people"]).sort_by("item").combine_chunks()
