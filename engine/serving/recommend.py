"""One list for one person: consent, candidates, today's events, rules, consent again.

footing -> stored record -> encoded again where grants are missing or events are new -> alternatives that the grants allow
        -> the surface's chain -> popular items where short
        -> footing again: a grant withdrawn meanwhile makes the list anew -> reply
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from engine.consent.changes import micros
from engine.consent.vocabulary import Level
from engine.errors import SnapshotCorrupt
from engine.kernels.encode_user import Scale
from engine.policy import Alternatives, Chain, Moment, Outcome, Slate, Step, allowed, make_list
from engine.schema import LANES, NOBODY
from engine.serving.asking import LIMITED, NON_PROFILED, PROFILED, Answer, Ask, Line
from engine.serving.encoding import GRANTED, LiveTower
from engine.serving.footing import STRANGER, Footing, Signals, footing
from engine.serving.moments import NOBODY_KNOWN, POPULAR, Person, anyone, merged, moment_of
from engine.serving.pages import Page, page_of, token_of
from engine.serving.reasons import Reasons, popular_in
from engine.serving.replica import Replica, Served
from engine.serving.todays import Reader, Session
from engine.serving.ways import Ways
from engine.snapshot import Snapshot

NOTHING = Slate.of_anyone(np.empty(0, np.int32), np.empty(0, np.float32), POPULAR)
_TRIES = 3
_HOUR = 3_600_000_000  # microseconds
_WEIGHTLESS = Scale(0, 0.0, 0, {})  # of a night that did not say what events weigh: they hide, and lead to nothing
_KEPT = 256  # candidates of people that today's events changed, some 50 kB each


@dataclass(frozen=True, slots=True)
class Made:
    """A list, and `again`: what another chain makes of the same candidates for the same moment."""

    outcome: Outcome
    mode: str
    reason: str
    profile: str
    today: int
    moment: Moment
    again: Callable[[Chain], Outcome]


@dataclass(frozen=True, slots=True)
class Call:
    """One request on one snapshot. trace: takes what each rule did."""

    served: Served
    chain: Chain
    ask: Ask
    made_us: int
    page: Page
    signals: Signals
    trace: list[Step] | None = None

    def moment(
        self,
        popular: Slate,
        offered: Alternatives = NOTHING,
        stand: Footing = STRANGER,
        person: Person = NOBODY_KNOWN,
        mass: float = 1.0,
    ) -> Moment:
        """What the rules may look at; without a person, nothing of anybody."""
        items = self.served.snapshot.items
        shown = self.page.among(items, np.concatenate([offered.item, popular.item])) if self.page.shown else frozenset()
        ask = replace(self.ask, seed=self.page.seed)
        return moment_of(self.served.snapshot, self.chain, ask, self.made_us, stand, person, shown, mass)


class Recommender:
    """Makes lists from what a replica holds. Threads share it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._reasons = Reasons(replica.vocabulary)
        self._lock = threading.Lock()
        # Each ends with its snapshot.
        self._towers: WeakKeyDictionary[Snapshot, LiveTower | None] = WeakKeyDictionary()
        self._readers: WeakKeyDictionary[Snapshot, Reader] = WeakKeyDictionary()
        self._lately: OrderedDict[Hashable, Ways] = OrderedDict()

    def recommend(self, ask: Ask, now_us: int | None = None) -> Answer:
        """One list.

        Args:
            now_us: microseconds since the epoch; None is this moment. What is shown follows from it, the snapshot, the
                person's consent and the ask.

        Raises:
            RequestError: the user id, the token or the surface is wrong.
            NoSnapshot: nothing is served yet.
        """
        with self.call(ask, now_us) as call:
            stand, made = self.settled(call)
            answer = self.answer(call, stand, made)
            full = len(answer.lines) == made.moment.limit
            after = call.page.then(line.item_id for line in answer.lines)
            stable, key = call.served.keys.stable, call.signals.key or b""
            return replace(answer, next_page=token_of(after, stable, key, call.chain.name) if full else "")

    @contextmanager
    def call(self, ask: Ask, now_us: int | None = None, trace: list[Step] | None = None) -> Iterator[Call]:
        """A request as what is served now sees it; the snapshot stays open for the block. Raises as `recommend`."""
        made_us = time.time_ns() // 1000 if now_us is None else now_us
        chain = self._replica.chain(ask.surface, "context.surface")
        with self._replica.lease() as served:
            stable = served.keys.stable
            key = stable.derive(ask.user_id) if ask.user_id else None
            page = page_of(ask.page_token, stable, key or b"", chain.name) if ask.page_token else Page(ask.seed)
            signals = Signals(key, ask.level, ask.consent_token, ask.global_privacy_control, ask.minor)
            yield Call(served, chain, ask, made_us, page, signals, trace)

    def settled(self, call: Call) -> tuple[Footing, Made]:
        """A list, and what it stands on after a last look at the person's consent."""
        stand = self.footing(call)
        for _ in range(_TRIES):
            made = self.make(call, stand)
            if made.mode == NON_PROFILED:
                return stand, made
            # Last of all: what was withdrawn while the list was made must not be in it.
            now = self.footing(call)
            if now == stand:
                return stand, made
            stand = now
        stand = Footing("consent_changing", Level.NONE, sequence=stand.sequence)
        return stand, self.make(call, stand)

    def footing(self, call: Call, level: int | None = None) -> Footing:
        """What a list may stand on now; level: of the dial, in place of the request's."""
        signals = call.signals if level is None else replace(call.signals, level=level)
        return footing(self._replica, signals, call.chain.default_level, call.served.vocabulary)

    def make(self, call: Call, stand: Footing) -> Made:
        """A list on a footing."""
        if call.trace is not None:
            call.trace.clear()
        try:
            person = self._person(call, stand)
            if person.record is not None or person.todays is not None:
                return self._personal(call, stand, person)
        except SnapshotCorrupt as error:
            # One person's block says nothing of another's: the list is a stranger's, and operators are told.
            self._replica.damaged(call.served, error)
            return self._strangers(call, "record_damaged")
        return self._strangers(call, stand.reason or "unknown_user")

    def _strangers(self, call: Call, reason: str) -> Made:
        popular = anyone(call.served.snapshot, call.chain, call.ask, call.made_us)
        moment = call.moment(popular)
        outcome = call.chain.run(popular, moment, call.trace)
        return Made(outcome, NON_PROFILED, reason, "", 0, moment, lambda chain: chain.run(popular, moment))

    def _personal(self, call: Call, stand: Footing, person: Person) -> Made:
        served, todays = call.served, person.todays
        snapshot, vocabulary = served.snapshot, served.vocabulary
        candidates: Alternatives = NOTHING
        narrowed, by_dial = stand.reason == "level_session", False
        if person.record is not None:
            candidates = person.record.candidates
            # Sensitive items ask for a grant of their own; without it they are withheld, and the profile is as whole as ever.
            # What others ask for besides their events' grants is for evidence of sensitive items.
            delicate = snapshot.items.sensitive[candidates.item]
            best = np.where(delicate, candidates.basis[:, 0] & np.uint64(vocabulary.groups), candidates.basis[:, 0])
            narrowed = not bool(allowed(best, stand.granted).all())
            by_dial = bool(allowed(best, stand.allowed).all())
        elif not narrowed and todays is not None:
            narrowed = todays.lacking > 0
        ways = self._ways(served, stand, person, narrowed)
        bases = (candidates if ways is None else ways).basis
        used = bases[allowed(bases, stand.granted, stand.today) & (bases != NOBODY)]
        if not len(used) and todays is None:
            # Nothing personal is left, so nothing may differ from what a stranger gets.
            return self._strangers(call, "grants_missing" if narrowed else "no_candidates")
        offered = candidates if ways is None else ways
        popular = anyone(snapshot, call.chain, call.ask, call.made_us)
        tower = self._tower(served) if person.record is not None and todays is not None else None
        mass = tower.mass(person.record.sums) if tower is not None and person.record is not None else 1.0
        moment = call.moment(popular, offered, stand, person, mass)
        outcome = make_list(call.chain, offered, popular, moment, call.trace)
        count = todays.used if todays is not None else 0
        if narrowed:
            mode, reason = LIMITED, stand.reason or ("level_purchases" if by_dial else "grants_missing")
            profile = GRANTED if ways is not None or not len(used) else self._profile(served, used)
        else:
            first = served.profiles[0].name if served.profiles else ""
            mode, reason, profile = PROFILED, "", first if ways is None else GRANTED
        return Made(
            outcome, mode, reason, profile, count, moment, lambda chain: make_list(chain, offered, popular, moment)
        )

    def _ways(self, served: Served, stand: Footing, person: Person, narrowed: bool) -> Ways | None:
        """Candidates made on the spot; None where the stored ones will do."""
        record, todays = person.record, person.todays
        tower = self._tower(served) if narrowed or todays is not None else None
        if tower is None:
            return None
        if todays is None or (not len(todays.item) and not len(todays.gifts)):
            return (
                tower.again(record.candidates, record, stand.granted, served.profiles) if record and narrowed else None
            )
        # Lists come in runs, of several surfaces and pages: what an event changed is reckoned once.
        key = (served.name, served.copy, person.version, stand.granted, stand.today, stand.erased_at)
        with self._lock:
            known = self._lately.get(key)
        if known is None:
            known = tower.with_today(record, stand.granted, stand.today, todays)
            with self._lock:
                self._lately[key] = known
                while len(self._lately) > _KEPT:
                    self._lately.popitem(last=False)
        return known

    def _tower(self, served: Served) -> LiveTower | None:
        """What encodes again on this snapshot, laid out for the first list that needs it; None where it cannot be done."""
        snapshot = served.snapshot
        with self._lock:
            if snapshot not in self._towers:
                self._towers[snapshot] = LiveTower.of(snapshot, served.vocabulary)
            return self._towers[snapshot]

    def _person(self, call: Call, stand: Footing) -> Person:
        """What the snapshot holds of somebody, and what they did since, as far as it may be looked at.

        Raises:
            SnapshotCorrupt: it is not what was written.
        """
        served, snapshot, manifest = call.served, call.served.snapshot, call.served.snapshot.manifest
        stored = stand.profiled and not stand.forgets(micros(manifest.as_of), manifest.lineage.ledger_sequence)
        if not stored and not stand.today:
            return Person(None, None, None)
        keys, record = served.keys.filed_under(call.ask.user_id, stand.person), None
        if stored:
            found = (snapshot.user(key) for key in keys)
            record = next((each for each in found if each is not None), None)
        today = self._replica.live.today(keys) if stand.today else None
        if today is None:
            return Person(record, None, None)
        todays = self._reader(served).read(today, stand.today, stand.erased_at)
        return Person(record, todays, (keys[0], today.version))

    def _reader(self, served: Served) -> Reader:
        """What reads today's events for this snapshot."""
        snapshot = served.snapshot
        with self._lock:
            if snapshot not in self._readers:
                live = self._replica.settings.live
                self._readers[snapshot] = Reader(
                    snapshot.items,
                    served.vocabulary,
                    micros(snapshot.manifest.as_of),
                    Scale.of(snapshot.tower) or _WEIGHTLESS,
                    Session(live.trust, live.half_life_hours),
                    int(live.hours * _HOUR),
                )
            return self._readers[snapshot]

    def _profile(self, served: Served, bases: NDArray[np.uint64]) -> str:
        """The smallest declared profile that holds everything relied on."""
        used = int(np.bitwise_or.reduce(bases)) & served.vocabulary.groups
        holding = [profile for profile in served.profiles if not used & ~profile.groups]
        return min(holding, key=lambda profile: profile.groups.bit_count()).name if holding else ""

    def answer(self, call: Call, stand: Footing, made: Made) -> Answer:
        """A list in words."""
        served, ask = call.served, call.ask
        items, slate = served.snapshot.items, made.outcome.slate
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
            made_us=call.made_us,
            policy=f"{call.chain.name}@{call.chain.version}",
            global_privacy_control=ask.global_privacy_control,
            withheld=merged(made.outcome.effects),
            propensity=made.outcome.propensity.tolist() if made.outcome.propensity is not None else (),
            seed=call.page.seed,
            today=made.today,
        )
