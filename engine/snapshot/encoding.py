"""From the tables that a night makes to those that a shard's files hold: ways as rows, bases as codes, blocks sealed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.errors import SnapshotError
from engine.schema import BASES, NO_LANE, STORED_CANDIDATES, WAYS
from engine.snapshot.blocks import place, seal
from engine.snapshot.layout import USER_TABLES, view, views

_MOST_BASES = 1 << 16


def ways_apart(candidates: pa.RecordBatch) -> tuple[dict[str, pa.Table], NDArray[np.int64]]:
    """Candidates and the ways that are used, apart; and (N + 1,) how many ways stand before each candidate.

    Args:
        candidates: schema.CANDIDATES.
    """
    columns = views(candidates)
    used = columns["lane"] != NO_LANE
    count = used.sum(axis=1)
    ways = pa.table([columns[name][used] for name in WAYS.names], schema=WAYS)
    slim = pa.table([columns["item"], count.astype(np.uint8)], schema=STORED_CANDIDATES)
    return {"candidates": slim, "ways": ways}, np.concatenate([[0], np.cumsum(count)])


def with_codes(tables: Mapping[str, pa.Table], name: str) -> tuple[pa.Table, dict[str, pa.Table]]:
    """The bases that a shard uses, ascending, and its tables with the row of each in place of it.

    Args:
        tables: those with a column `basis`, and others, which stay as they are. name: of the file of the bases.

    Raises:
        SnapshotError: there are more bases than a code can tell.
    """
    having = [table for table, rows in tables.items() if "basis" in rows.column_names]
    encoded = {table: tables[table]["basis"].combine_chunks().dictionary_encode() for table in having}
    bases = np.unique(np.concatenate([view(each.dictionary) for each in encoded.values()]))
    if len(bases) > _MOST_BASES:
        raise SnapshotError(
            f"{name}: expected at most {_MOST_BASES} distinct bases, found {len(bases)}.",
            "Merge sources in conf/consent: people's histories mix more of them than can be told apart.",
        )
    coded = dict(tables)
    for table, each in encoded.items():
        code = np.searchsorted(bases, view(each.dictionary)).astype(np.uint16)
        column = tables[table].column_names.index("basis")
        coded[table] = tables[table].set_column(column, "basis_code", pa.array(code[view(each.indices)]))
    return pa.table([bases], schema=BASES), coded


def sealed_users(people: pa.RecordBatch, ways: NDArray[np.int64], stored: Mapping[str, pa.RecordBatch]) -> pa.Table:
    """The users, with where each one's rows lie and the checksums over them.

    Args:
        people: schema.SNAPSHOT_USERS. ways: as `ways_apart` gives it. stored: the tables of the shard's files.
    """
    spans = views(people)
    start = spans["candidates_start"].astype(np.int64)
    first, last = ways[start], ways[start + spans["candidates_count"]]
    spans["ways_start"], spans["ways_count"] = first.astype(np.uint32), (last - first).astype(np.uint32)
    empty = np.zeros(people.num_rows, np.uint32)
    of_tables = [(empty, spans[f"{table}_start"], spans[f"{table}_count"]) for table in USER_TABLES]
    block = np.stack([column for triple in of_tables for column in triple], axis=1)
    block[:, ::3] = seal(
        place(spans["user_key"], block, [list(views(stored[table]).values()) for table in USER_TABLES])
    )
    column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1])
    return pa.table({"user_key": people.column("user_key"), "block": column})
