"""People's events as flat arrays, and the windows of them that training sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.kernels.encode_user import within_groups
from engine.kernels.encode_user.reference import MICROSECONDS_A_DAY
from engine.schema import DELICATE, PURCHASE

__all__ = ["Batch", "Histories", "Windows"]

_POOL = 8192  # windows sorted by length together: enough for even batches, few enough for random ones


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """Events of U people, oldest first: those of person u are rows starts[u]..starts[u+1]."""

    keys: pa.Array  # (U,) rotating user keys
    starts: NDArray[np.int64]
    item: NDArray[np.int32]
    ts: NDArray[np.int64]  # microseconds since the epoch
    weight: NDArray[np.float32]
    group: NDArray[np.uint8]  # bit of the consent vocabulary; schema.DELICATE more: of a sensitive item
    event: NDArray[np.uint8]

    @property
    def users(self) -> int:
        """U."""
        return len(self.starts) - 1

    @property
    def owner(self) -> NDArray[np.int64]:
        """(E,) the person of each event."""
        return np.repeat(np.arange(self.users), np.diff(self.starts))

    def of_some(self, people: NDArray[np.integer]) -> Histories:
        """The same people with the events of some of them, by row, alone."""
        theirs = np.zeros(self.users, bool)
        theirs[people] = True
        return self if theirs.all() else self._only(theirs[self.owner])

    def within(self, groups: int) -> Histories:
        """The same people with the events of some groups alone, those of sensitive items included.

        Args:
            groups: mask of the consent vocabulary.
        """
        return self._only(within_groups(groups, self.group % DELICATE))

    def _only(self, kept: NDArray[np.bool_]) -> Histories:
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts].astype(np.int64)
        item, ts, weight = self.item[kept], self.ts[kept], self.weight[kept]
        return Histories(self.keys, starts, item, ts, weight, self.group[kept], self.event[kept])

    @classmethod
    def of(
        cls,
        activity: pa.Table,
        purpose: str,
        before: int | None = None,
        sensitive: NDArray[np.bool_] | None = None,
    ) -> Histories:
        """Histories for one purpose.

        Args:
            activity: schema.ACTIVITY, sorted by user and time.
            purpose: "trainable" or "profilable": the column that says whether the person allows it.
            before: keep events up to this time alone, microseconds since the epoch.
            sensitive: (I,) items whose events are groups apart; None where groups do not matter.
        """
        keep = activity[purpose]
        if before is not None:
            keep = pc.and_(keep, pc.less_equal(pc.cast(activity["ts"], pa.int64()), before))
        activity = activity.filter(keep).combine_chunks()
        keys = activity["user_key"].combine_chunks() if activity.num_rows else pa.array([], activity["user_key"].type)
        raw = np.frombuffer(keys.buffers()[1], "S16", len(keys), keys.offset * 16) if len(keys) else np.empty(0, "S16")
        edges = np.flatnonzero(np.concatenate([[True], raw[1:] != raw[:-1]])) if len(raw) else np.empty(0, np.int64)
        event, item = activity["event"].to_numpy(), activity["item"].to_numpy()
        group = 2 * activity["source"].to_numpy() + (event != PURCHASE)
        if sensitive is not None:
            group = group + DELICATE * sensitive[item]
        return cls(
            keys.take(pa.array(edges)),
            np.concatenate([edges, [len(raw)]]).astype(np.int64),
            item,
            activity["ts"].cast(pa.int64()).to_numpy(),
            activity["weight"].to_numpy(),
            group.astype(np.uint8),
            event,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B windows of L events, padded: items (B, L), days (B, L) float64, weights (B, L; 0 is padding), targets (B, L)."""

    item: NDArray[np.int64]
    days: NDArray[np.float64]
    weight: NDArray[np.float32]
    target: NDArray[np.bool_]


class Windows:
    """Overlapping cuts of long histories, so that every event is a target once and has half a window behind it."""

    def __init__(self, histories: Histories, length: int, wanted: float, fresh_only: bool) -> None:
        """
        Args:
            histories: whose events.
            length: events a window holds, an even number.
            wanted: least interest weight of an event that counts as a target.
            fresh_only: only a person's first want of an item is a target.
        """
        self.histories, self.length = histories, length
        stride = length // 2
        sizes = np.diff(histories.starts)
        each = np.where(sizes > 1, 1 + np.maximum(0, -(-(sizes - length) // stride)), 0)
        owner = np.repeat(np.arange(histories.users), each)
        turn = np.arange(len(owner)) - np.repeat(np.cumsum(each) - each, each)
        self.first = histories.starts[owner] + turn * stride
        self.size = np.minimum(length, histories.starts[owner + 1] - self.first)
        self.skip = np.where(turn > 0, length - stride, 0)  # targets of the window before
        target = histories.weight >= wanted
        if fresh_only:
            pair = histories.owner * (int(histories.item.max(initial=0)) + 1) + histories.item
            rows = np.flatnonzero(target)
            _, fresh = np.unique(pair[rows], return_index=True)  # the first of equal pairs, and rows are in time order
            target = np.zeros(len(target), bool)
            target[rows[fresh]] = True
        self.target = target

    def __len__(self) -> int:
        return len(self.first)

    def batches(self, events: int, seed: int, rank: int, world: int) -> Iterator[Batch]:
        """One epoch for one worker: windows of like length together, about `events` events a batch, in random order.

        Every worker gets the same number of batches, since gradients are averaged step by step.
        """
        rng = np.random.default_rng(seed)
        groups = self._groups(events, rng.permutation(len(self)))
        turns = rng.permutation(len(groups))
        for turn in np.resize(turns, -(-len(turns) // world) * world)[
            rank::world
        ]:  # the first few again, to come out even
            yield self._cut(groups[turn])

    def steps(self, events: int, world: int) -> int:
        """Batches that a worker gets in an epoch."""
        return -(-len(self._groups(events, np.arange(len(self)))) // world)

    def _groups(self, events: int, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        pools = np.arange(len(order)) // _POOL
        order = order[np.lexsort((self.size[order], pools))]
        cuts = np.flatnonzero(np.diff(np.cumsum(self.size[order]) // events)) + 1
        return [part for part in np.split(order, cuts) if len(part)]

    def _cut(self, windows: NDArray[np.int64]) -> Batch:
        longest = int(self.size[windows].max())
        place = np.arange(longest)[None]
        real = place < self.size[windows][:, None]
        rows = np.where(real, self.first[windows][:, None] + place, 0)
        past = self.histories
        days = past.ts[rows] / MICROSECONDS_A_DAY
        return Batch(
            past.item[rows].astype(np.int64),
            days,
            np.where(real, past.weight[rows], 0),
            self.target[rows] & real & (place >= self.skip[windows][:, None]),
        )
