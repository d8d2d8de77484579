"""A person encoded again on what they allow now: the consent algebra, by day.

The night stores a person's candidates for a few profiles of their history. Where the grants are none of these, the vector is
made again from the stored sums of the granted groups, and the tower's lanes are asked again: over the whole catalogue where it is
small enough, which gives the lists of a night rebuilt without what was withdrawn; else over what the grants themselves lead to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.consent.profiles import Profile
from engine.consent.vocabulary import Vocabulary
from engine.kernels.encode_user import (
    ONLOOKER,
    OVER_TAIL,
    Encoder,
    Scale,
    UserTower,
    expected_wants,
    faded,
    log_mass,
    log_sum,
    step_of,
)
from engine.kernels.encode_user.reference import MICROSECONDS_A_DAY
from engine.kernels.top_k.one import best, longest, rough_scores, slack
from engine.policy import allowed
from engine.schema import DELICATE, LANES, NO_ITEM, PURCHASE
from engine.serving.todays import Todays
from engine.serving.ways import Part, Ways, joined
from engine.snapshot import Candidates, Snapshot, Sums, UserRecord

GRANTED = "granted"  # stands where a stored profile's name does, for a list that was encoded again
# Items x width up to which the whole catalogue is scored: 40,000 items of 64 take 0.25 ms a profile, 100,000 take 1.4 ms, as they
# leave the processor's caches; a whole list with everything granted takes 1 ms (tests/benchmarks/consent_algebra.py).
LIVE_NUMBERS = 2_560_000
# Beyond it: how many popular items are scored for everybody, how often one goes on from the best found to their neighbours, and
# from how many. More takes as long as the whole catalogue.
_POPULAR, _STEPS, _BEST = 500, 3, 100
_BASES_KEPT = 4096
_ROUNDING = np.float32(1e-5)  # a share of a sum that is left by rounding, not by an event
_SESSION = LANES.index("session")
_REASONS = 3  # events of today that one candidate of the session lane relies on at most
_REASONED = 40  # the best of its candidates: those of which the evidence is kept where it is a cause


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Groups of events that may be used: sums (n, K * D), weights (n, K), last (n,) microseconds since the epoch."""

    sums: NDArray[np.float32]
    weights: NDArray[np.float32]
    last: NDArray[np.int64]


class LiveTower:
    """A snapshot's user tower and catalogue, ready to be asked. Threads share it; it outlives no snapshot."""

    def __init__(self, snapshot: Snapshot, tower: UserTower, scale: Scale, vocabulary: Vocabulary) -> None:
        """Use `of`, which looks first whether the snapshot has all that is needed."""
        items = snapshot.items
        self._scale, self._vocabulary = scale, vocabulary
        self._rates = tower.rates.astype(np.float64)
        self._rate = float(tower.rates[scale.decay])
        self._encoder = Encoder(tower)
        self._vectors, self._sensitive = items.vector, items.sensitive
        self._neighbour, self._likeness = items.neighbour, items.likeness
        first = np.lexsort((np.arange(items.count), -items.popularity))[:_POPULAR]
        self._popular = np.sort(first).astype(np.int32)
        self._longest = longest(items.vector)
        self._step = step_of(items.count)
        self._sample = np.ascontiguousarray(items.vector[:: self._step])
        self._tail = items.tail
        # What is scored where the whole catalogue is: all, and for a lane over the tail that.
        self._live = items.count * tower.width <= LIVE_NUMBERS
        self._tail_rows = np.flatnonzero(items.tail).astype(np.int32)
        self._bases: dict[int, tuple[np.uint64, np.uint64]] = {}
        self._lanes = [
            (LANES.index(name), name == OVER_TAIL, keep, trust * scale.fresh_rate)
            for name, (keep, trust) in scale.lanes.items()
        ]

    @classmethod
    def of(cls, snapshot: Snapshot, vocabulary: Vocabulary) -> LiveTower | None:
        """The tower of a snapshot; None where it has none that can be run here, or was written before that was thought of.

        Args:
            vocabulary: that the snapshot's bases are written in.
        """
        arrays, manifest, scale = snapshot.tower, snapshot.manifest, Scale.of(snapshot.tower)
        if scale is None or not snapshot.items.count or not all(name in arrays for name in UserTower.names()):
            return None
        tower = UserTower.of(arrays)
        fits = tower.fits(len(manifest.decays), manifest.width) and 0 <= scale.decay < len(tower.rates)
        return cls(snapshot, tower, scale, vocabulary) if fits else None

    def again(
        self, candidates: Candidates, record: UserRecord, granted: int, profiles: Sequence[Profile]
    ) -> Ways | None:
        """A person's candidates with those that the tower finds on the grants, scored as a night rebuilt on them would.

        Args:
            granted: mask, after the dial. profiles: that the night stored.

        Returns:
            None where there is nothing to encode, or a stored profile is just what is granted.

        Raises:
            SnapshotCorrupt: the person's sums or seen items are not what was written.
        """
        sums, groups = record.sums, self._vocabulary.groups
        needs = self._vocabulary.group_bases[sums.group]
        whole = _relied(needs, granted)
        beside = self._vocabulary.beside_groups  # a profile is about events; the night had whatever else these need
        if not whole or any(_relied(needs, profile.groups | beside) == whole for profile in profiles):
            return None
        parts: dict[int, list[Part]] = {}
        seen = record.seen
        # As the night does: each profile inside the grants, and of those that come to the same the first.
        for mask in (groups, *(profile.groups for profile in profiles)):
            may = granted & (mask | ~groups)
            bits = _relied(needs, may)
            if bits and bits not in parts:
                inside = allowed(needs, may)
                rows = _Rows(sums.sums[inside], sums.weights[inside], sums.last[inside])
                hidden = seen.item[allowed(seen.basis, may)]
                parts[bits] = self._lists(rows, hidden, _roots(candidates, hidden, may), bits, self._scale.moment)
        found = [part for made in parts.values() for part in made]
        return joined(candidates, found, self._sensitive, granted)

    def with_today(self, record: UserRecord | None, granted: int, granted_today: int, todays: Todays) -> Ways:
        """A person's candidates as today's events have them: the tower asked again on the sums with these events in them, and
        what goes with what was looked at.

        Args:
            record: what is stored of the person and may be looked at; None: nothing.
            granted, granted_today: masks, after the dial, of what is stored and of today's events.

        Raises:
            SnapshotCorrupt: the person's record is not what was written.
        """
        stored = record.candidates if record is not None else None
        parts, tower = [], [lane for lane, *_ in self._lanes]
        rows, bits, hidden = self._rows_of_today(todays), todays.bits, todays.hidden
        if record is not None:
            sums, seen = self._without_gifts(record, granted, todays), record.seen
            needs = self._vocabulary.group_bases[sums.group]
            inside = allowed(needs, granted)
            bits |= _relied(needs, granted)
            rows = _Rows(
                np.concatenate([sums.sums[inside], rows.sums]),
                np.concatenate([sums.weights[inside], rows.weights]),
                np.concatenate([sums.last[inside], rows.last]),
            )
            hidden = np.union1d(hidden, seen.item[allowed(seen.basis, granted)]).astype(np.int32)
        if (rows.weights > 0).any():
            roots = _roots(stored, np.concatenate([hidden, todays.item]), granted)
            parts = self._lists(rows, hidden, roots, bits, max(self._scale.moment, int(rows.last.max())))
        session = self._session(todays, hidden)
        instead = tower if parts else []
        every = [*parts, session[0]] if session else parts
        ways = joined(stored, every, self._sensitive, granted, granted_today, instead)
        if session:
            _name_causes(ways, *session, parts, allowed(ways.basis, granted, granted_today))
        if len(todays.gifts):  # what was for somebody else says nothing of this person
            ways.evidence[np.isin(ways.evidence, todays.gifts)] = NO_ITEM
        return ways

    def vector(self, sums: Sums, granted: int) -> NDArray[np.float32]:
        """(D,) the person on the groups of events that some grants allow."""
        return self._encoder.one(sums.sums, sums.weights, sums.last, self._vocabulary.group_bases[sums.group], granted)

    def mass(self, sums: Sums) -> float:
        """Of all that the person wanted, faded by the night's time."""
        weights = sums.weights[:, self._scale.decay]
        return float(faded(weights, sums.last, self._scale.moment, self._rate).sum())

    def _rows_of_today(self, todays: Todays) -> _Rows:
        """Each event as a group of its own: the sums are linear, so it is the same."""
        decays = self._encoder.decays
        vectors = self._vectors[todays.item] * todays.weight[:, None]
        return _Rows(np.tile(vectors, decays), np.repeat(todays.weight[:, None], decays, axis=1), todays.ts)

    def _without_gifts(self, record: UserRecord, granted: int, todays: Todays) -> Sums:
        """The stored sums less the last purchases of what turned out to be gifts, to the rounding of float32.

        A purchase is found where the cadence knows its source; one that several sources speak for stays until the next night.
        """
        sums = record.sums
        if not len(todays.gifts):
            return sums
        known = record.cadence
        weights, totals = sums.weights.copy(), sums.sums.copy()
        for item in todays.gifts.tolist():
            found = np.flatnonzero((known.item == item) & allowed(known.basis, granted))
            bits = int(known.basis[found[0]]) & self._vocabulary.purchase_groups if len(found) else 0
            if bits.bit_count() != 1:
                continue
            group = bits.bit_length() - 1 + DELICATE * bool(self._sensitive[item])
            for row in np.flatnonzero(sums.group == group):
                age = (sums.last[row] - known.last[found[0]]) / MICROSECONDS_A_DAY
                less = (
                    (1 - self._scale.gift_weight)
                    * self._scale.event_weights[PURCHASE]
                    * np.exp(-self._rates * max(age, 0.0))
                )
                left = weights[row] - less.astype(np.float32)
                gone = left <= _ROUNDING * weights[row]
                taken = less[:, None].astype(np.float32) * self._vectors[item]
                rest = totals[row].reshape(len(less), -1) - taken
                rest[gone] = 0.0
                weights[row], totals[row] = np.where(gone, 0, left), rest.ravel()
        return Sums(sums.group, sums.last, weights, totals)

    def _session(self, todays: Todays, hidden: NDArray[np.int32]) -> tuple[Part, NDArray[np.float64]] | None:
        """What goes with what was looked at today: as the lane `similar` of the night, over these events alone.

        Its evidence is the strongest of them; beside it, what each item would score had the evidence not been looked at.
        """
        strength = todays.strength
        near, like = self._neighbour[todays.item], self._likeness[todays.item]
        source, place = np.nonzero((near != NO_ITEM) & (like > 0))
        found, value = near[source, place], strength[source] * like[source, place]
        open_ = ~np.isin(found, np.concatenate([hidden, todays.item]))
        source, found, value = source[open_], found[open_], value[open_]
        order = np.lexsort((todays.item[source], -value, found))
        source, found, value = source[order], found[order], value[order]
        starts = np.flatnonzero(np.diff(found, prepend=-1))
        if not len(starts):
            return None
        sizes = np.diff(np.append(starts, len(found)))
        nth = np.arange(len(found)) - np.repeat(starts, sizes)
        score = np.add.reduceat(np.where(nth < _REASONS, value, 0), starts)
        around, scale = strength * like.sum(1), todays.trust * self._scale.fresh_rate
        expected = scale * score / np.sqrt(max(float(around.sum()), 1.0))
        plain, delicate = self._bases_of(todays.bits)
        evidence = todays.item[source[starts]].astype(np.int32)
        # An item may have been looked at more than once.
        other = todays.item[source] != np.repeat(evidence, sizes)
        nth = np.cumsum(other) - np.repeat((np.cumsum(other) - other)[starts], sizes)
        left = np.add.reduceat(np.where(other & (nth <= _REASONS), value, 0), starts)
        looked, at = np.unique(todays.item, return_inverse=True)
        rest = around.sum() - np.bincount(at, around)[np.searchsorted(looked, evidence)]
        part = Part(found[starts].astype(np.int32), expected.astype(np.float32), _SESSION, plain, delicate, evidence)
        return part, scale * left / np.sqrt(np.maximum(rest, 1.0))

    def _lists(
        self, stored: _Rows, hidden: NDArray[np.int32], roots: NDArray[np.int32], bits: int, moment: int
    ) -> list[Part]:
        """What each lane of the tower finds for events that rely on some grants.

        Args:
            hidden: items that are not to be found. roots: items from which to go on where the catalogue is large.
            moment: microseconds since the epoch, no earlier than the events.
        """
        vector = self._encoder.one(stored.sums, stored.weights, stored.last, np.zeros(len(stored.last), np.uint64), 0)
        faint = faded(stored.weights[:, self._scale.decay], stored.last, moment, self._rate)
        mass = np.array([max(float(faint.sum()), ONLOOKER)])
        room = slack(vector, self._longest)
        rows: NDArray[np.int32] | None = None
        if self._live:
            rough = rough_scores(vector, self._vectors, room)
        else:
            rows, rough = self._led_to(vector, roots, hidden, room)
        if self._live and np.isfinite(room):
            total = log_sum(rough[None, :: self._step], len(rough))
        else:
            total = log_mass(vector[None], self._sample, len(self._vectors))
        if rows is None:
            rough[hidden] = -np.inf
        found = []
        plain, delicate = self._bases_of(bits)
        for lane, tail, keep, rate in self._lanes:
            among, part = rows, rough
            if tail and rows is None:
                among, part = self._tail_rows, rough[self._tail_rows]
            elif tail and rows is not None:
                within = self._tail[rows]
                among, part = rows[within], rough[within]
            item, score = best(vector, self._vectors, part, keep, room, among)
            found.append(Part(item, expected_wants(score[None], total, mass, rate)[0], lane, plain, delicate))
        return found

    def _led_to(
        self, vector: NDArray[np.float32], roots: NDArray[np.int32], hidden: NDArray[np.int32], room: float
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Items that what may be looked at leads to, and their rough scores: an item known by what was withdrawn alone would tell
        of it by being there.

        From what the grants justify and its neighbours, and what is popular, on to the neighbours of the best of them.
        """
        known = np.zeros(len(self._vectors), bool)
        known[hidden] = True
        rows, rough = np.empty(0, np.int32), np.empty(0, np.float32)
        for step in range(_STEPS):
            near = self._neighbour[roots]
            every = np.concatenate([roots, near[near != NO_ITEM], self._popular[: 0 if step else None]])
            new = np.unique(every[~known[every]])
            known[new] = True
            rows = np.concatenate([rows, new])
            rough = np.concatenate([rough, rough_scores(vector, self._vectors[new], room)])
            roots = rows[np.argpartition(rough, -_BEST)[-_BEST:]] if len(rows) > _BEST else rows
        return rows, rough

    def _bases_of(self, bits: int) -> tuple[np.uint64, np.uint64]:
        """What an item found on some groups relies on, and what a sensitive one does."""
        known = self._bases.get(bits)
        if known is None:
            if len(self._bases) >= _BASES_KEPT:
                self._bases.clear()
            plain = np.array([bits], np.uint64)
            known = self._bases[bits] = plain[0], self._vocabulary.with_sensitive(plain)[0]
        return known


def _name_causes(
    ways: Ways, session: Part, left: NDArray[np.float64], parts: Sequence[Part], may: NDArray[np.bool_]
) -> None:
    """Take the evidence off what a session found where it would stand no lower without it, as the night does.

    Args:
        left: (n,) what the items of the session would score. parts: what else was found for them. may: which ways are allowed.
    """
    rows, rests_on = np.flatnonzero(ways.lane[:, -1] == _SESSION), ways.evidence[:, -1].copy()
    order = np.argsort(-ways.score[rows, -1], kind="stable")
    ways.evidence[rows[order[_REASONED:]], -1] = NO_ITEM
    rows = rows[order[:_REASONED]]
    others = np.where(may[:, :-1], ways.score[:, :-1], 0).max(1, initial=0)
    for part in parts:
        real = part.score > 0
        at = np.searchsorted(ways.item, part.item[real])
        others[at] = np.maximum(others[at], part.score[real])
    left = np.maximum(left[np.searchsorted(session.item, ways.item[rows])], others[rows])
    rows, left = rows[left > 0], left[left > 0]
    standing = np.where(may, ways.score, 0).max(1)
    near = np.flatnonzero(standing > left.min(initial=np.inf))
    proof, standing = rests_on[rows, None], standing[near]
    passing = (standing > left[:, None]) & (standing < ways.score[rows, -1:])
    passing &= (rests_on[near] != proof) & (ways.item[near] != proof)
    ways.evidence[rows[~passing.any(1)], -1] = NO_ITEM


def _roots(candidates: Candidates | None, hidden: NDArray[np.int32], may: int) -> NDArray[np.int32]:
    """What the grants justify, with its evidence, and what is hidden for their sake."""
    if candidates is None:
        return hidden
    inside = allowed(candidates.basis, may)
    proof = candidates.evidence[inside]
    return np.concatenate([candidates.item[inside.any(1)], proof[proof != NO_ITEM], hidden])


def _relied(needs: NDArray[np.uint64], granted: int) -> int:
    """The grants that those groups of events rely on which are allowed."""
    return int(np.bitwise_or.reduce(needs[allowed(needs, granted)], initial=np.uint64(0)))
