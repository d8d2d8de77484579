"""A block of ranked people as the tables of a snapshot shard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine import schema
from engine.ranking.lanes.usual import cadence
from engine.ranking.merge import Merged
from engine.ranking.people import People
from engine.two_tower.encoding import GroupSums

Tables = dict[str, pa.Table]
DISMISSED = np.float32(-1.0)  # a share of the mix, which no interest has


def shard_tables(
    people: People,
    merged: Merged,
    sums: GroupSums,
    root_category: NDArray[np.int32],
    sensitive: NDArray[np.bool_],
    with_sensitive: Callable[[NDArray[np.uint64]], NDArray[np.uint64]],
) -> Tables:
    """Everything a snapshot keeps of a block of people.

    Args:
        root_category: (I,) or -1, by the codes of people.dismissed.kinds where it has any. sensitive: (I,).
        with_sensitive: adds to a basis the grants that a sensitive item needs besides.

    Returns:
        users, candidates, sums, seen, mix and cadence, by the schemas of engine/schema.py; the rows of one person together.
    """
    users = people.histories.users
    basis = merged.basis.copy()
    delicate = sensitive[merged.item]
    basis[delicate] = np.where(
        basis[delicate] == schema.NEVER, np.uint64(schema.NEVER), with_sensitive(basis[delicate])
    )
    seen_owner = np.repeat(np.arange(users), np.diff(people.seen_starts))
    mixed_owner, category, share, mix_basis = _mix(people, root_category, sensitive, with_sensitive)
    habit = cadence(people.histories, people.moment, people.settings.mass_days)
    tables = {
        "candidates": _table(
            schema.CANDIDATES,
            item=merged.item,
            lane=merged.lane,
            basis=basis,
            score=merged.score,
            evidence=merged.evidence,
        ),
        "sums": _table(
            schema.sums_schema(sums.weights.shape[1], sums.sums.shape[2]),
            group=sums.group,
            last=sums.last,
            weights=sums.weights,
            sums=sums.sums.reshape(len(sums.sums), sums.sums.shape[1] * sums.sums.shape[2]),
        ),
        "seen": _table(
            schema.SEEN,
            item=people.seen_item,
            basis=np.where(sensitive[people.seen_item], with_sensitive(people.seen_basis), people.seen_basis),
        ),
        "mix": _table(schema.MIX, category=category, share=share, basis=mix_basis),
        "cadence": _table(
            schema.CADENCE,
            item=habit.item,
            purchases=habit.purchases.astype(np.uint32),
            gap_days=habit.gap_days.astype(np.float32),
            last=habit.last,
            basis=np.where(sensitive[habit.item], with_sensitive(habit.basis), habit.basis),
        ),
    }
    owners = {
        "candidates": merged.owner,
        "sums": sums.owner,
        "seen": seen_owner,
        "mix": mixed_owner,
        "cadence": habit.owner,
    }
    spans: dict[str, pa.Array] = {"user_key": people.histories.keys}
    for name, owner in owners.items():
        count = np.bincount(owner, minlength=users)
        spans[f"{name}_start"] = pa.array((np.cumsum(count) - count).astype(np.uint32))
        spans[f"{name}_count"] = pa.array(count.astype(np.uint32))
    tables["users"] = pa.table([spans[name] for name in schema.SNAPSHOT_USERS.names], schema=schema.SNAPSHOT_USERS)
    return tables


def _mix(
    people: People,
    root_category: NDArray[np.int32],
    sensitive: NDArray[np.bool_],
    with_sensitive: Callable[[NDArray[np.uint64]], NDArray[np.uint64]],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint64]]:
    """What a person's wants are made of, by category and by group of events: recent wants count most, sensitive items apart. And
    with a share of DISMISSED the categories of which they want nothing, each on the group of events that said so.
    """
    past = people.histories
    category = root_category[past.item]
    counts = (past.weight > 0) & (category >= 0)
    owner, category, group = past.owner[counts], category[counts], past.group[counts].astype(np.int64) % schema.DELICATE
    delicate = sensitive[past.item[counts]]
    age = (people.moment - past.ts[counts]) / 86_400_000_000
    strength = past.weight[counts] * 0.5 ** (age / people.settings.mass_days)
    span = int(root_category.max(initial=0)) + 1
    code = ((owner * span + category) * 64 + group) * 2 + delicate
    every, place = np.unique(code, return_inverse=True)
    amount = np.bincount(place, strength, len(every))
    owner = every // (span * 128)
    total = np.bincount(owner, amount, past.users)[owner]
    basis = np.uint64(1) << (every // 2 % 64).astype(np.uint64)
    basis = np.where(every % 2 == 1, with_sensitive(basis), basis)
    gone = people.dismissed
    said = np.uint64(1) << (gone.group % schema.DELICATE).astype(np.uint64)
    said = np.where(gone.group >= schema.DELICATE, with_sensitive(said), said)
    owner = np.concatenate([owner, gone.owner])
    order = np.argsort(owner, kind="stable")
    return (
        owner[order],
        np.concatenate([(every // 128 % span).astype(np.int32), gone.category])[order],
        np.concatenate([(amount / total).astype(np.float32), np.full(len(said), DISMISSED)])[order],
        np.concatenate([basis, said])[order],
    )


def _table(fields: pa.Schema, **columns: NDArray[np.generic]) -> pa.Table:
    arrays = []
    for field in fields:
        values = np.ascontiguousarray(columns[field.name])
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.array(values.ravel(), field.type.value_type)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=fields)
