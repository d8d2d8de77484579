"""A block of people and the shop, as every lane sees them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import SettingsError
from engine.kernels.encode_user import ONLOOKER, Encoder, UserTower, faded, nearest_decay
from engine.ranking.kinds import Dismissed, Kinds
from engine.ranking.settings import RankSettings
from engine.schema import DELICATE, EVENTS, NEVER, PURCHASE
from engine.two_tower.encoding import GroupSums
from engine.two_tower.histories import Histories

_DAY = 86_400_000_000
_PLAIN = np.concatenate([np.uint64(1) << np.arange(DELICATE, dtype=np.uint64), np.full(DELICATE, NEVER, np.uint64)])
GROUPS = DELICATE  # what hides an item hides it whether or not it is sensitive


@dataclass(frozen=True, slots=True, eq=False)
class Shop:
    """The catalogue as lanes see it, I items: vectors (I, D); neighbour, likeness (I, N); hazard (I,), the wants per decayed
    want of people who had it; popularity (I,), shares that add up to 1; tail (I,); fresh_rate, new wants per square root of
    decayed mass.
    """

    vectors: NDArray[np.float32]
    neighbour: NDArray[np.int32]
    likeness: NDArray[np.float32]
    hazard: NDArray[np.float64]
    popularity: NDArray[np.float64]
    tail: NDArray[np.bool_]
    fresh_rate: float

    @property
    def size(self) -> int:
        """I."""
        return len(self.vectors)


@dataclass(frozen=True, slots=True, eq=False)
class ProfileVectors:
    """People encoded on one stored profile: rows (P,) of the block; basis (P,); vectors (P, D); mass (P,) of their wants, at
    least ONLOOKER: interest weights faded by the decay of the tower that is nearest to mass_days. groups: the mask of events that
    the profile may read.
    """

    name: str
    groups: int
    rows: NDArray[np.int64]
    basis: NDArray[np.uint64]
    vectors: NDArray[np.float32]
    mass: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """A block of U people: their histories, what is hidden from lanes (starts (U + 1,), item), and their stored profiles."""

    histories: Histories
    seen_starts: NDArray[np.int64]
    seen_item: NDArray[np.int32]
    seen_basis: NDArray[np.uint64]
    profiles: tuple[ProfileVectors, ...]
    moment: int
    settings: RankSettings
    bases: NDArray[np.uint64]  # (128,) the grants that each group of events asks for
    dismissed: Dismissed  # categories of which they want nothing, in any lane
    device: str = "cpu"  # where exact top-K is taken

    def unseen(
        self,
        owner: NDArray[np.integer],
        item: NDArray[np.integer],
        items: int,
        group: NDArray[np.integer],
    ) -> NDArray[np.bool_]:
        """Which (person, item) pairs no event of the given group hides. Hiding tells of an event, and needs its grant too."""
        first, last = int(owner.min(initial=self.histories.users)), int(owner.max(initial=-1)) + 1
        starts = self.seen_starts[first : last + 1] if len(owner) else self.seen_starts[:1]
        rows = slice(starts[0], starts[-1])  # of the people asked for alone: a lane asks for a few of a shard at a time
        hider = np.log2(self.seen_basis[rows].astype(np.float64)).astype(np.int64)  # one bit a row, so exact
        owners = np.repeat(np.arange(first, first + len(starts) - 1), np.diff(starts))
        hidden = (owners * items + self.seen_item[rows]) * GROUPS + hider
        code = (owner.astype(np.int64) * items + item) * GROUPS + group % GROUPS
        if not len(hidden):
            return np.ones(len(code), bool)
        place = np.minimum(np.searchsorted(hidden, code), len(hidden) - 1)
        result: NDArray[np.bool_] = hidden[place] != code
        return result


def gather(
    histories: Histories,
    sums: GroupSums,
    tower: UserTower,
    profiles: tuple[tuple[str, int], ...],
    items: int,
    moment: int,
    settings: RankSettings,
    device: str = "cpu",
    bases: NDArray[np.uint64] | None = None,
    kinds: Kinds | None = None,
) -> People:
    """Encode a block of people on every stored profile, and find what is hidden from them.

    Args:
        profiles: (name, mask of grants), the full one first; a profile that equals an earlier one for a person is not
            stored again.
        items: I.
        moment: the night's time, microseconds since the epoch.
        device: where exact top-K is taken.
        bases: the grants that each group of events asks for, Vocabulary.group_bases; None: each its own bit, and events of
            sensitive items, where they are groups apart, count nowhere.
        kinds: the categories; None: there are none, and nobody can have dismissed one.
    """
    starts, item, basis = _seen(histories, items, moment, settings)
    encoder, decay = Encoder(tower), nearest_decay(tower.rates, settings.mass_days)
    flat = sums.sums.reshape(len(sums.sums), sums.sums.shape[1] * sums.sums.shape[2])
    edges = np.searchsorted(sums.owner, np.arange(histories.users + 1))
    wants = faded(sums.weights[:, decay], sums.last, moment, float(tower.rates[decay]))
    bases = _PLAIN if bases is None else bases
    needs = bases[sums.group]
    encoded: list[ProfileVectors] = []
    taken = np.zeros((len(profiles), histories.users), np.uint64)
    for number, (name, mask) in enumerate(profiles):
        inside = (needs & ~np.uint64(mask)) == 0
        bits = np.zeros(histories.users, np.uint64)
        np.bitwise_or.at(bits, sums.owner[inside], needs[inside])
        taken[number] = bits
        rows = np.flatnonzero((bits > 0) & (taken[:number] != bits).all(0))
        vectors = encoder.many(flat, sums.weights, sums.last, needs, edges[rows], edges[rows + 1], mask)
        mass = np.bincount(sums.owner[inside], wants[inside], histories.users)[rows]
        encoded.append(ProfileVectors(name, mask, rows, bits[rows], vectors, np.maximum(mass, ONLOOKER)))
    dismissed = Dismissed.of(histories, kinds or Kinds.none(items))
    return People(histories, starts, item, basis, tuple(encoded), moment, settings, bases, dismissed, device)


def _seen(
    histories: Histories, items: int, moment: int, settings: RankSettings
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint64]]:
    """Hidden (person, item) pairs, sorted; one row for each group of events that says so, whose grant it needs alone."""
    hides = np.zeros(len(histories.item), bool)
    for name, days in settings.seen.items():
        if name not in EVENTS:
            near = difflib.get_close_matches(name, EVENTS, 1)
            raise SettingsError(
                f"rank.seen: there is no event '{name}'" + (f"; did you mean '{near[0]}'?" if near else "."),
                f"Use {', '.join(EVENTS)}.",
            )
        recent = histories.ts > moment - int(days * _DAY) if days else True
        hides |= (histories.event == EVENTS.index(name)) & recent
    owner, group = histories.owner[hides], histories.group[hides].astype(np.int64) % GROUPS
    code = np.unique((owner * items + histories.item[hides]) * GROUPS + group)
    pair = code // GROUPS
    starts = np.searchsorted(pair, np.arange(histories.users + 1) * items)
    item = (pair % max(items, 1)).astype(np.int32)
    return starts.astype(np.int64), item, np.uint64(1) << (code % GROUPS).astype(np.uint64)


def is_purchase(histories: Histories) -> NDArray[np.bool_]:
    """(E,) which events are purchases."""
    bought: NDArray[np.bool_] = histories.event == PURCHASE
    return bought
