"""Ids that a person had put together: their events are settled as one person's, in the bucket of the key that they share.

Parts know an id by its pseudonym, and the ledger by its stable key; the seal beside each pseudonym leads from one to the other.
So each bucket says which of its people are linked, and all of them together say who moves where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.activity.keys import KEY, Keys, column, find, one_by_one
from engine.activity.parts import PartStore, Run
from engine.identity import KEY_BYTES, UserKeys
from engine.schema import STANDINGS


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """Ids by key, ascending, (M,): the key and the seal of the person each belongs to."""

    keys: Keys
    to: Keys
    seals: Keys

    def into(self, bucket: int, buckets: int) -> Moved:
        """Those whose person belongs to a bucket."""
        low, high = bounds(bucket, buckets)
        first = np.ascontiguousarray(self.to).view(">u2")[:: KEY_BYTES // 2]
        here = (first >= low) & (first < high)
        return Moved(self.keys[here], self.to[here], self.seals[here])


def bounds(bucket: int, buckets: int) -> tuple[int, int]:
    """The first two bytes of keys from which on a bucket of `buckets` begins, and the next one."""
    return -(-65_536 * bucket // buckets), -(-65_536 * (bucket + 1) // buckets)


def within(run: Run, bucket: int, buckets: int) -> slice:
    """The people of a run who belong to a bucket."""
    first, last = (
        len(run.keys) if edge >= 65_536 else int(np.searchsorted(run.keys, np.array(edge.to_bytes(2), KEY)))
        for edge in bounds(bucket, buckets)
    )
    return slice(first, last)


def linked_in(
    store: PartStore, parts: Sequence[tuple[str, int]], bucket: int, buckets: int, keys: UserKeys, links: pa.Table
) -> tuple[Keys, Keys]:
    """The linked ids of a bucket that parts know, and the person of each.

    Args:
        parts: generations, with how many runs each has.
        links: schema.LINKS.
    """
    runs = [store.run(name, number) for name, count in parts for number in range(count)]
    lie = [within(run, bucket, buckets) for run in runs]
    named = np.concatenate([np.empty(0, KEY), *(run.keys[here] for run, here in zip(runs, lie, strict=True))])
    sealed = np.concatenate([np.empty(0, KEY), *(run.seals[here] for run, here in zip(runs, lie, strict=True))])
    named, first = np.unique(named, return_index=True)
    stable = np.frombuffer(keys.unsealed(named.tobytes(), sealed[first].tobytes()), KEY)
    place, there = find(column(links, "user_key"), stable)
    return named[there], column(links, "person")[place[there]]


def moved(found: Sequence[tuple[Keys, Keys]], keys: UserKeys) -> Moved:
    """Who moves where, of all that the buckets found."""
    ids = np.concatenate([np.empty(0, KEY), *(each for each, _ in found)])
    persons = np.concatenate([np.empty(0, KEY), *(each for _, each in found)])
    order = np.argsort(ids)
    distinct, of = np.unique(persons[order], return_inverse=True)
    told = b"".join(one_by_one(distinct))
    to = b"".join(keys.rotating.of_person(person) for person in one_by_one(distinct))
    seals = np.frombuffer(keys.unsealed(to, told), KEY)
    return Moved(ids[order], np.frombuffer(to, KEY)[of], seals[of])


def with_persons(standings: pa.Table, links: pa.Table, needed: Sequence[tuple[int, int]]) -> pa.Table:
    """Standings with a row for each person that ids share: what every one of them grants, and the last of their erasures.

    Args:
        standings: schema.STANDINGS. links: schema.LINKS; of an id that has no standing nothing is granted.
        needed: by source, the bits without one of which its events are not put together, and all bits of that source.
    """
    ids, person = column(links, "user_key"), column(links, "person")
    distinct, of = np.unique(person, return_inverse=True)
    granted = np.full(len(distinct), ~np.uint64(0))
    erased = np.zeros(len(distinct), np.int64)
    place, there = find(column(standings, "user_key"), ids)
    mine = np.zeros(len(ids), np.uint64)
    mine[there] = standings["granted"].to_numpy()[place[there]]
    np.bitwise_and.at(granted, of, mine)
    np.maximum.at(erased, of[there], standings["erased_at"].to_numpy()[place[there]])
    for bits, all_bits in needed:
        granted[(granted & np.uint64(bits)) != np.uint64(bits)] &= ~np.uint64(all_bits)
    told = pa.table(
        [
            pa.array(one_by_one(distinct), STANDINGS.field("user_key").type),
            granted,
            np.zeros(len(distinct), np.uint8),
            erased,
        ],
        schema=STANDINGS,
    )
    return pa.concat_tables([standings, told]).sort_by("user_key").combine_chunks()
