"""Why a list is what it is: what each rule did, how much each of them and each lane decides, and what the person can do about it.

Nothing is estimated: rules are left out, grants taken back and the dial turned down on the very list, and it is seen what
changes. What the person has not granted is not looked at for it, nor is it told that it was there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from engine.consent.vocabulary import PROFILE, Level
from engine.errors import UnknownThing
from engine.policy import Act, Chain, Outcome, Step, acts_on, acts_on_all
from engine.schema import LANES
from engine.serving.asking import Answer, Ask
from engine.serving.footing import Footing
from engine.serving.policies import HeldPolicies
from engine.serving.reasons import Why
from engine.serving.recommend import Call, Made, Recommender
from engine.serving.replica import Replica

_KEPT, _KEPT_SECONDS = 4096, 3600.0
_OLDER = 10  # sets of parameters that held before
_LOWER = ((Level.PURCHASES, "purchases"), (Level.SESSION, "session"), (Level.NONE, "none"))
_BY_PURCHASE = ("because_you_bought", "due_again")
# By lane: under which name its places count, and what that is.
_LANE_PARAMETERS = {
    "two_tower": ("taste", "How near an item is to what you bought and looked at."),
    "similar": ("taste", "How near an item is to what you bought and looked at."),
    "usual": ("repeat_needs", "What you buy again and again, when it is due."),
    "session": ("today", "What you looked at today."),
    "popular": ("popularity", "What many people want."),
    "discovery": ("discovery_lane", "What is unlike what you know, and may suit you."),
    "pinned": ("shop", "What the shop itself puts in front."),
    "other": ("other", "Candidates of the shop's own making."),
}


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter, and its share of what decides a list."""

    name: str
    weight: float
    description: str


@dataclass(frozen=True, slots=True)
class Explained:
    """What the proto's ExplainResponse holds, in the engine's own words."""

    acts: Sequence[Act]
    weights: Sequence[Weight]
    would_change: Sequence[str]
    since: datetime | None
    before: Sequence[tuple[datetime, Sequence[Weight]]]
    why: Why | None
    answer: Answer


class Lately:
    """What lists of the last hour were asked for, by their id; in memory alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, tuple[Ask, int, float]] = OrderedDict()

    def remember(self, name: str, ask: Ask, made_us: int) -> None:
        """A list was made."""
        now = time.monotonic()
        with self._lock:
            self._asked[name] = ask, made_us, now
            while len(self._asked) > _KEPT or next(iter(self._asked.values()))[2] < now - _KEPT_SECONDS:
                self._asked.popitem(last=False)

    def of(self, name: str, user_id: str) -> tuple[Ask, int]:
        """What was asked, and when the list was made.

        Raises:
            UnknownThing: no such list was made for this user here lately; whose it is is not told.
        """
        with self._lock:
            found = self._asked.get(name)
        if found is None or found[0].user_id != user_id or found[2] < time.monotonic() - _KEPT_SECONDS:
            raise UnknownThing(
                "This replica made no such list for this user within the hour.",
                "Leave the id out and send the context: a list made now is explained.",
                "recommendation_id",
            )
        return found[0], found[1]


def explain(replica: Replica, recommender: Recommender, ask: Ask, item_id: str, now_us: int | None = None) -> Explained:
    """Explain a list, or one item in it or not in it.

    Args:
        ask: of the list. item_id: '' for the list as a whole.
        now_us: as of when the list is made; None is this moment.

    Raises:
        UnknownThing: the snapshot lacks the item. As `Recommender.recommend` besides.
    """
    steps: list[Step] = []
    with recommender.call(ask, now_us, steps) as call:
        items = call.served.snapshot.items
        code = items.code_of(item_id) if item_id else -1
        if item_id and code < 0:
            raise UnknownThing(f"There is no item '{item_id}' in the snapshot.", "Ask for one of a list.", "item_id")
        stand, made = recommender.settled(call)
        answer = recommender.answer(call, stand, made)
        place = next((row for row, line in enumerate(answer.lines) if line.item_id == item_id), None)
        why = answer.lines[place].why if place is not None else None
        held: HeldPolicies = replica.held
        older = [(since, chains[call.chain.name]) for since, chains in held.before() if call.chain.name in chains]
        older = [each for each in older if each[1].version != call.chain.version][:_OLDER]
        bare = replace(call, trace=None)
        return Explained(
            acts=acts_on(code, steps, call.chain, made.moment) if item_id else acts_on_all(steps),
            weights=_weights(call.chain, made.outcome, made),
            would_change=[*_tried(recommender, bare, stand, made, code), *_said(call, stand, code, why)],
            since=held.since,
            before=[(since, _weights(chain, made.again(chain), made)) for since, chain in older],
            why=why,
            answer=answer,
        )


def _weights(chain: Chain, outcome: Outcome, made: Made) -> list[Weight]:
    """By lane the items of the list, and by rule what it changes in it, as shares of all that."""
    items, amounts, told = outcome.slate.item, dict[str, float](), dict[str, str]()
    for lane in outcome.slate.lane.tolist():
        name, description = _LANE_PARAMETERS[LANES[lane]]
        amounts[name] = amounts.get(name, 0.0) + 1.0
        told[name] = description
    for place, rule in enumerate(chain.rules[:-1]):
        other = made.again(chain.without(place)).slate.item
        amounts[rule.name] = amounts.get(rule.name, 0.0) + _changed(items, other)
        told[rule.name] = _first_sentence(type(rule).__doc__)
    whole = sum(amounts.values())
    weights = [Weight(name, amount / whole if whole else 0.0, told[name]) for name, amount in amounts.items()]
    return sorted(weights, key=lambda each: (-each.weight, each.name))


def _changed(items: np.ndarray, others: np.ndarray) -> float:
    """How much of a list another one is not: 1 for each item that is not in it, and for the others how far they moved, as a share
    of the list.
    """
    places = {code: place for place, code in enumerate(others.tolist())}
    far = [abs(place - places.get(code, len(items) + place)) for place, code in enumerate(items.tolist())]
    return sum(min(1.0, distance / len(items)) for distance in far)


def _unlike(items: np.ndarray, others: np.ndarray) -> int:
    """Places that hold another item."""
    both = min(len(items), len(others))
    return int(np.count_nonzero(items[:both] != others[:both])) + abs(len(items) - len(others))


def _tried(recommender: Recommender, call: Call, stand: Footing, made: Made, code: int) -> list[str]:
    """Grants taken back one source at a time, and lower steps of the dial, as far as they change the list or the item's place."""
    if stand.granted | stand.today == 0:
        return []
    vocabulary = call.served.vocabulary
    others: list[tuple[str, Footing]] = []
    for source in vocabulary.sources:
        bits = vocabulary.mask(PROFILE, source)
        if (stand.granted | stand.today) & bits:
            others.append((f"withdraw_source:{source}", _narrowed(stand, bits, vocabulary.groups)))
    others += [(f"level:{name}", recommender.footing(call, level)) for level, name in _LOWER if level < stand.level]
    before = made.outcome.slate.item
    changed = []
    for name, other in others:
        after = recommender.make(call, other).outcome.slate.item
        if _place(before, code) != _place(after, code) if code >= 0 else _unlike(before, after):
            changed.append(name)
    return changed


def _narrowed(stand: Footing, bits: int, groups: int) -> Footing:
    """What is left to stand on without some grants."""
    left = replace(stand, granted=stand.granted & ~bits, allowed=stand.allowed & ~bits, today=stand.today & ~bits)
    return left if left.allowed & groups else replace(left, reason="no_consent", granted=0, today=0)


def _place(items: np.ndarray, code: int) -> int:
    found = np.flatnonzero(items == code)
    return int(found[0]) if len(found) else -1


def _said(call: Call, stand: Footing, code: int, why: Why | None) -> list[str]:
    """What can be told by an event about an item in the list, which the next list obeys."""
    if why is None or not call.ask.user_id or not stand.today:
        return []
    path = call.served.snapshot.items.category_path(code)
    said = ["dismiss", *(f"dismiss_category:{name}" for name in path[-1:])]
    return [*said, *(f"gift:{name}" for name in why.evidence if why.code in _BY_PURCHASE)]


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".") + "."
