"""One list for one person: consent, candidates, rules, consent again.

footing -> stored record -> alternatives that the grants allow -> the surface's chain -> popular items where short
        -> footing again: a grant withdrawn meanwhile makes the list anew -> reply
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.consent.changes import micros
from engine.consent.vocabulary import Level
from engine.errors import NotBuilt, SnapshotCorrupt
from engine.policy import Chain, Effect, Moment, Slate, allowed, make_list
from engine.schema import LANES, NOBODY
from engine.serving.footing import Footing, Signals, footing
from engine.serving.reasons import Reasons, Why, popular_in
from engine.serving.replica import Replica, Served
from engine.snapshot import Manifest, Seen, Snapshot, UserRecord

PROFILED, LIMITED, NON_PROFILED = "PROFILED", "LIMITED", "NON_PROFILED"
POPULAR = LANES.index("popular")
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked, in the words of the proto."""

    user_id: str = ""
    surface: str = ""
    region: str = ""
    item_id: str = ""
    basket: Sequence[str] = ()
    global_privacy_control: bool = False
    minor: bool = False
    limit: int = 0
    level: int = Level.UNSET
    exclude: Sequence[str] = ()
    only_categories: Sequence[str] = ()
    diversity: float | None = None
    page_token: str = ""
    consent_token: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One item of a list."""

    item_id: str
    score: float
    lane: str
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A list, and how it was made."""

    lines: list[Line]
    mode: str
    reason: str
    level: int
    profile: str
    manifest: Manifest
    sequence: int
    made_us: int  # microseconds since the epoch
    policy: str
    global_privacy_control: bool
    withheld: Sequence[Effect]


@dataclass(frozen=True, slots=True)
class _Made:
    slate: Slate
    effects: tuple[Effect, ...]
    mode: str
    reason: str
    profile: str


class Recommender:
    """Makes lists from what a replica holds. Threads share it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._reasons = Reasons(replica.vocabulary)

    def recommend(self, ask: Ask, now_us: int | None = None) -> Answer:
        """One list.

        Args:
            now_us: microseconds since the epoch; None is this moment. What is shown follows from it, the snapshot, the
                person's consent and the ask.

        Raises:
            RequestError: the user id, the token or the surface is wrong.
            NoSnapshot: nothing is served yet.
            NotBuilt: a page token was sent.
        """
        if ask.page_token:
            raise NotBuilt("Paging is not built yet.", "Leave page_token empty and raise limit.", "page_token")
        made_us = time.time_ns() // 1000 if now_us is None else now_us
        chain = self._replica.chain(ask.surface, "context.surface")
        with self._replica.lease() as served:
            key = served.keys.stable.derive(ask.user_id) if ask.user_id else None
            signals = Signals(key, ask.level, ask.consent_token, ask.global_privacy_control, ask.minor)
            stand = footing(self._replica, signals, chain.default_level, served.vocabulary)
            for _ in range(_TRIES):
                made = self._make(served, chain, ask, made_us, stand)
                if made.mode == NON_PROFILED:
                    break
                # Last of all: what was withdrawn while the list was made must not be in it.
                now = footing(self._replica, signals, chain.default_level, served.vocabulary)
                if now == stand:
                    break
                stand = now
            else:
                stand = Footing("consent_changing", Level.NONE, sequence=stand.sequence)
                made = self._make(served, chain, ask, made_us, stand)
            return self._answer(served, chain, ask, made_us, stand, made)

    def _make(self, served: Served, chain: Chain, ask: Ask, made_us: int, stand: Footing) -> _Made:
        try:
            record = self._record(served, ask, stand)
            if record is not None:
                return self._personal(served, chain, ask, made_us, stand, record)
        except SnapshotCorrupt as error:
            # One person's block says nothing of another's: the list is a stranger's, and operators are told.
            self._replica.damaged(served, error)
            return self._strangers(served, chain, ask, made_us, "record_damaged")
        return self._strangers(served, chain, ask, made_us, stand.reason or "unknown_user")

    def _strangers(self, served: Served, chain: Chain, ask: Ask, made_us: int, reason: str) -> _Made:
        outcome = chain.run(_anyone(served.snapshot, ask), _moment(served.snapshot, chain, ask, made_us, NOBODY, None))
        return _Made(outcome.slate, outcome.effects, NON_PROFILED, reason, "")

    def _personal(
        self, served: Served, chain: Chain, ask: Ask, made_us: int, stand: Footing, record: UserRecord
    ) -> _Made:
        snapshot = served.snapshot
        candidates = record.candidates
        bases = candidates.basis
        within = allowed(bases, stand.granted)
        # Sensitive items ask for a grant of their own; without it they are withheld, and the profile is as whole as ever.
        best = bases[:, 0] & np.uint64(served.vocabulary.groups)
        narrowed = not allowed(best, stand.granted).all()
        used = bases[within & (bases != NOBODY)]
        if not len(used):
            # Nothing personal is left, so nothing may differ from what a stranger gets.
            return self._strangers(served, chain, ask, made_us, "grants_missing" if narrowed else "no_candidates")
        moment = _moment(snapshot, chain, ask, made_us, stand.granted, record.seen)
        outcome = make_list(chain, candidates, _anyone(snapshot, ask), moment)
        slate, effects = outcome.slate, outcome.effects
        if not narrowed:
            return _Made(slate, effects, PROFILED, "", served.profiles[0].name if served.profiles else "")
        by_dial = allowed(best, stand.allowed).all()
        reason = "level_purchases" if by_dial else "grants_missing"
        return _Made(slate, effects, LIMITED, reason, self._profile(served, used))

    def _record(self, served: Served, ask: Ask, stand: Footing) -> UserRecord | None:
        """What the snapshot holds of the person, as far as it may be looked at.

        Raises:
            SnapshotCorrupt: it is not what was written.
        """
        manifest = served.snapshot.manifest
        if not stand.profiled or stand.forgets(micros(manifest.as_of), manifest.lineage.ledger_sequence):
            return None
        return served.snapshot.user(served.keys.rotating.derive(ask.user_id))

    def _profile(self, served: Served, bases: NDArray[np.uint64]) -> str:
        """The smallest declared profile that holds everything relied on."""
        used = int(np.bitwise_or.reduce(bases)) & served.vocabulary.groups
        holding = [profile for profile in served.profiles if not used & ~profile.groups]
        return min(holding, key=lambda profile: profile.groups.bit_count()).name if holding else ""

    def _answer(self, served: Served, chain: Chain, ask: Ask, made_us: int, stand: Footing, made: _Made) -> Answer:
        items, slate = served.snapshot.items, made.slate
        same = served.vocabulary is self._replica.vocabulary
        reasons = self._reasons if same else Reasons(served.vocabulary)
        popular_why = popular_in(tuple(ask.only_categories))
        lines = []
        for item, lane, basis, score, evidence in zip(
            slate.item.tolist(),
            slate.lane.tolist(),
            slate.basis.tolist(),
            slate.score.tolist(),
            slate.evidence.tolist(),
            strict=True,
        ):
            why = popular_why if lane == POPULAR else reasons.of(items, lane, basis, evidence)
            lines.append(Line(items.id_of(item), score, LANES[lane], why))
        return Answer(
            lines=lines,
            mode=made.mode,
            reason=made.reason,
            level=stand.level,
            profile=made.profile,
            manifest=served.snapshot.manifest,
            sequence=stand.sequence,
            made_us=made_us,
            policy=f"{chain.name}@{chain.version}",
            global_privacy_control=ask.global_privacy_control,
            withheld=merged(made.effects),
        )


def popular(snapshot: Snapshot, only_categories: Sequence[str] = (), region: str = "") -> Slate:
    """What may be shown to anybody, best first: the list of the region, or those of some categories before it."""
    codes = [snapshot.categories.index(name) for name in only_categories if name in snapshot.categories]
    lists = [snapshot.fallback(code) for code in sorted(set(codes))] + [snapshot.fallback(region=region)]
    item = np.concatenate([each for each, _ in lists])
    score = np.concatenate([each for _, each in lists])
    if codes:
        best = np.lexsort((item, -score))
        item, score = item[best], score[best]
        first = np.sort(np.unique(item, return_index=True)[1])
        item, score = item[first], score[first]
    return Slate.of_anyone(item, score, POPULAR)


def merged(effects: Sequence[Effect]) -> list[Effect]:
    """Effects with those of one rule and reason added up, in the order in which they first came."""
    counts: Counter[tuple[str, str]] = Counter()
    for effect in effects:
        counts[effect.rule, effect.reason] += effect.count
    return [Effect(rule, reason, count) for (rule, reason), count in counts.items() if count]


def _moment(snapshot: Snapshot, chain: Chain, ask: Ask, made_us: int, granted: int, seen: Seen | None) -> Moment:
    names = {*ask.exclude, *ask.basket, ask.item_id} - {""}
    return Moment(
        items=snapshot.items,
        categories=snapshot.categories,
        now_us=made_us,
        surface=chain.name,
        region=ask.region,
        granted=granted,
        limit=ask.limit or chain.default_limit,
        exclude=frozenset(code for name in names if (code := snapshot.items.code_of(name)) >= 0),
        only_categories=frozenset(ask.only_categories),
        diversity=ask.diversity,
        seen=seen,
    )


def _anyone(snapshot: Snapshot, ask: Ask) -> Slate:
    """What may be shown to anybody; to a minor, who is never profiled, without sensitive items."""
    slate = popular(snapshot, ask.only_categories, ask.region)
    return slate.take(np.flatnonzero(~snapshot.items.sensitive[slate.item])) if ask.minor else slate
