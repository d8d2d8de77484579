"""A snapshot of any number of people, as wide as a night's: its content is random, its shape is not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine import schema
from engine.snapshot import About, Lineage, SnapshotWriter
from tests.snapshot_builder import item_table

SHARDS, ITEMS, WIDTH, DECAYS, CATEGORIES = 16, 2_000, 64, 3, 20
ROWS = {"sums": 2, "seen": 30, "mix": 6, "cadence": 4}  # of each person, beside the candidates
WAYS = (
    0.575,
    0.314,
    0.111,
)  # share of candidates with one way to justify them, with two, with three: as in the demo's night
_BASES = 200  # distinct ones, as a vocabulary of a few sources makes


def keys_of(users: int) -> list[bytes]:
    """Ascending, pseudorandom as HMACs are."""
    raw = np.random.default_rng(1).bytes(16 * users)
    return sorted(raw[at : at + 16] for at in range(0, len(raw), 16))


def write(folder: Path, users: int, candidates: int) -> None:
    """Write it. The shards differ in their people and not in what these like, which no look-up can tell."""
    keys = keys_of(users)
    about = About(
        as_of=datetime(2026, 1, 31, tzinfo=UTC),
        lineage=Lineage(run="benchmark"),
        vocabulary={},
        profiles=(),
        decays=tuple(range(1, DECAYS + 1)),
        width=WIDTH,
        neighbours=10,
        shards=SHARDS,
    )
    writer = SnapshotWriter(folder, about)
    writer.items(item_table(ITEMS, roots=CATEGORIES, width=WIDTH, neighbours=10))
    writer.categories(pa.table([[f"category-{code}" for code in range(CATEGORIES)]], schema=schema.CATEGORIES))
    writer.fallback(schema.FALLBACK.empty_table())
    writer.tower({})
    most = -(-users // SHARDS)
    tables = _tables(most, candidates)
    for number in range(SHARDS):
        mine = keys[users * number // SHARDS : users * (number + 1) // SHARDS]
        people: dict[str, Any] = {"user_key": mine}
        parts = []
        for table, rows in {"candidates": candidates, **ROWS}.items():
            people[f"{table}_start"] = np.arange(len(mine), dtype=np.uint32) * np.uint32(rows)
            people[f"{table}_count"] = np.full(len(mine), rows, np.uint32)
            parts.append(tables[table].slice(0, len(mine) * rows))
        writer.user_shard(number, pa.table(people, schema=schema.SNAPSHOT_USERS), *parts)
    writer.finish()


def _tables(people: int, candidates: int) -> dict[str, pa.Table]:
    draw = np.random.default_rng(7)
    bases = draw.integers(1, 1 << 20, _BASES).astype(np.uint64)

    def columns(kind: pa.Schema, rows: int) -> pa.Table:
        arrays = []
        for field in kind:
            many = pa.types.is_fixed_size_list(field.type)
            inner, size = (field.type.value_type, field.type.list_size) if many else (field.type, 1)
            values = pa.array(_values(draw, field.name, inner, rows * size, bases), inner)
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=field.type) if many else values)
        return pa.table(arrays, schema=kind)

    kinds = {
        "candidates": schema.CANDIDATES,
        "sums": schema.sums_schema(DECAYS, WIDTH),
        "seen": schema.SEEN,
        "mix": schema.MIX,
        "cadence": schema.CADENCE,
    }
    tables = {table: columns(kind, people * {"candidates": candidates, **ROWS}[table]) for table, kind in kinds.items()}
    return tables | {"candidates": _as_few_ways_as_a_night_finds(draw, tables["candidates"])}


def _as_few_ways_as_a_night_finds(draw: np.random.Generator, candidates: pa.Table) -> pa.Table:
    lane = candidates["lane"].combine_chunks().flatten().to_numpy().reshape(-1, schema.ALTERNATIVES).copy()
    used = 1 + draw.choice(schema.ALTERNATIVES, len(lane), p=WAYS)
    lane[np.arange(schema.ALTERNATIVES) >= used[:, None]] = schema.NO_LANE
    kind = schema.CANDIDATES.field("lane")
    column = pa.FixedSizeListArray.from_arrays(pa.array(lane.ravel()), type=kind.type)
    return candidates.set_column(candidates.column_names.index("lane"), kind, column)


def _values(draw: np.random.Generator, name: str, kind: pa.DataType, count: int, bases: NDArray[Any]) -> NDArray[Any]:
    if name == "basis":
        return bases[draw.integers(0, len(bases), count, np.uint8)]
    if pa.types.is_floating(kind):
        return draw.random(count, np.float32)
    most = {"item": ITEMS, "evidence": ITEMS, "category": CATEGORIES, "lane": len(schema.LANES)}.get(name, 30)
    return draw.integers(0, most, count).astype(kind.to_pandas_dtype())
