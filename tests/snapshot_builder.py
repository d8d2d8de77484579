"""A small valid snapshot from simple arguments, for the tests of every room that reads one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine import schema
from engine.schema import ALTERNATIVES, LANES, NEVER, NO_ITEM, NO_LANE
from engine.snapshot import About, Lineage, Manifest, Registry, SnapshotWriter

Row = Mapping[str, Any]
User = Mapping[str, Sequence[Row]]  # table -> rows; a table left out has none

TABLES = ("candidates", "sums", "seen", "mix", "cadence")
OPEN = (-(2**63), 2**63 - 1)  # available_from and available_until of an item that always is
DEFAULTS: Mapping[str, Row] = {
    "candidates": {},
    "sums": {"last": 0},
    "seen": {"basis": 0},
    "mix": {"share": 1.0, "basis": 0},
    "cadence": {"purchases": 1, "gap_days": 0.0, "last": 0, "basis": 0},
}


def candidate(item: int, *ways: tuple[Any, ...]) -> Row:
    """A row of candidates from up to 3 ways (lane, basis, score[, evidence]), best first; the rest is unused.

    >>> candidate(4, ("similar", 0b1, 0.5, 2), ("popular", 0, 0.25))
    """
    full = [(*way, NO_ITEM)[:4] for way in ways]
    full += [(NO_LANE, NEVER, float("-inf"), NO_ITEM)] * (ALTERNATIVES - len(full))
    lane, basis, score, evidence = zip(*full, strict=True)
    codes = [LANES.index(name) if isinstance(name, str) else name for name in lane]
    return {"item": item, "lane": codes, "basis": list(basis), "score": list(score), "evidence": list(evidence)}


def user_tables(
    users: Mapping[bytes, User], decays: int = 2, width: int = 4
) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table, pa.Table, pa.Table]:
    """The six tables of one shard: users, then their rows in the order of their keys."""
    kinds = {
        "candidates": schema.CANDIDATES,
        "sums": schema.sums_schema(decays, width),
        "seen": schema.SEEN,
        "mix": schema.MIX,
        "cadence": schema.CADENCE,
    }
    people: dict[str, list[Any]] = {name: [] for name in schema.SNAPSHOT_USERS.names}
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    for key in sorted(users):
        people["user_key"].append(key)
        for table in TABLES:
            own = [{**DEFAULTS[table], **row} for row in users[key].get(table, ())]
            people[f"{table}_start"].append(len(rows[table]))
            people[f"{table}_count"].append(len(own))
            rows[table] += own
    made = [
        pa.table({name: [row[name] for row in rows[table]] for name in kinds[table].names}, schema=kinds[table])
        for table in TABLES
    ]
    return (pa.table(people, schema=schema.SNAPSHOT_USERS), *made)


def item_table(
    count: int, roots: int = 2, width: int = 4, neighbours: int = 2, seed: int = 0, **columns: Sequence[Any]
) -> pa.Table:
    """Items `item-0000`... with random unit vectors, their categories in turn; `columns` replace what is made."""
    generator = np.random.default_rng(seed)
    vector = generator.standard_normal((count, width)).astype(np.float32)
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    near = [
        [(code + 1 + step) % count if step + 1 < count else NO_ITEM for step in range(neighbours)]
        for code in range(count)
    ]
    root = [code % roots if roots else -1 for code in range(count)]
    digits = max(4, len(str(count - 1)))
    made: dict[str, Any] = {
        "item_id": [f"item-{code:0{digits}d}" for code in range(count)],
        "title": [f"Item {code}" for code in range(count)],
        "root_category": root,
        "creator": [-1] * count,
        "price": [float("nan")] * count,
        "sensitive": [False] * count,
        "regions": [[] for _ in range(count)],
        "available_from": [OPEN[0]] * count,
        "available_until": [OPEN[1]] * count,
        "popularity": [1.0 / count for _ in range(count)],
        "tail": [code >= count // 2 for code in range(count)],
        "vector": vector.tolist(),
        "neighbour": near,
        "likeness": [[1.0 / (2 + step) if code >= 0 else 0.0 for step, code in enumerate(row)] for row in near],
    } | columns
    made.setdefault("categories", [[f"category-{code}"] if code >= 0 else [] for code in made["root_category"]])
    kind = schema.items_schema(width, neighbours)
    return pa.table({name: made[name] for name in kind.names}, schema=kind)


def build_snapshot(
    folder: Path,
    *,
    users: Mapping[bytes, User] | None = None,
    items: int = 10,
    item_columns: Mapping[str, Sequence[Any]] | None = None,
    categories: Sequence[str] = ("category-0", "category-1"),
    fallback: Mapping[int | tuple[str, int], Sequence[int]] | None = None,
    tower: Mapping[str, NDArray[np.float32]] | None = None,
    shards: int = 1,
    width: int = 4,
    neighbours: int = 2,
    decays: Sequence[float] = (7.0, 90.0),
    as_of: datetime = datetime(2026, 1, 31, tzinfo=UTC),
    vocabulary: Mapping[str, Any] | None = None,
    profiles: Sequence[Mapping[str, Any]] = ({"name": "full", "groups": 0b11},),
    metrics: Mapping[str, float] | None = None,
    run: str = "test",
    key_id: str = "",
    ledger_sequence: int = 0,
    audit_head: str = "",
    seed: int = 0,
) -> Manifest:
    """Write a whole snapshot into `folder` and say what it is.

    Args:
        users: by 16-byte rotating key; each a mapping of table name to rows, such as
            {"candidates": [candidate(3, ("similar", 1, 0.9))], "seen": [{"item": 3, "basis": 1}],
             "mix": [{"category": 0, "share": 1.0}], "cadence": [{"item": 3, "purchases": 4, "gap_days": 7.0}],
             "sums": [{"group": 0, "last": 0, "weights": [1, 1], "sums": [0.5] * 8}]};
            an empty mapping is a user without rows.
        items: how many; `item_columns` replaces whole columns of `item_table`.
        categories: their names; items take them in turn as their root.
        fallback: item codes by category, or (region, category), best first; by default all items in order (-1).
        tower: plain arrays by name.
        shards: users are spread over them by ranges of keys; a shard may stay empty.
    """
    about = About(
        as_of=as_of,
        lineage=Lineage(run=run, key_id=key_id, ledger_sequence=ledger_sequence, audit_head=audit_head),
        vocabulary=vocabulary or {},
        profiles=tuple(profiles),
        decays=tuple(decays),
        width=width,
        neighbours=neighbours,
        shards=shards,
        metrics=metrics or {},
    )
    writer = SnapshotWriter(folder, about)
    keys = sorted(users or {})
    for number in range(shards):
        mine = keys[len(keys) * number // shards : len(keys) * (number + 1) // shards]
        writer.user_shard(number, *user_tables({key: (users or {})[key] for key in mine}, len(decays), width))
    columns = dict(item_columns or {})
    roots = columns.get(
        "root_category", [code % len(categories) for code in range(items)] if categories else [-1] * items
    )
    columns.setdefault("categories", [[categories[root]] if 0 <= root < len(categories) else [] for root in roots])
    writer.items(item_table(items, len(categories), width, neighbours, seed, **columns))
    writer.categories(pa.table({"name": list(categories)}, schema=schema.CATEGORIES))
    given = {-1: range(items)} if fallback is None else fallback
    lists = {(("", segment) if isinstance(segment, int) else segment): each for segment, each in given.items()}
    rows = [
        {"region": segment[0], "category": segment[1], "item": item, "score": 1.0 / (1 + place)}
        for segment in sorted(lists)
        for place, item in enumerate(lists[segment])
    ]
    writer.fallback(pa.Table.from_pylist(rows, schema=schema.FALLBACK))
    writer.tower(dict(tower or {}))
    return writer.finish()


def publish_snapshot(root: Path | str, **arguments: Any) -> Manifest:
    """Build a snapshot (arguments as `build_snapshot`) and publish it in a registry."""
    registry = Registry(root)
    staged = registry.stage()
    build_snapshot(staged, **arguments)
    return registry.publish(staged)
