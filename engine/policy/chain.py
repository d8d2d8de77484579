"""A surface's rules in their order, from candidates to a list, with an account of everything that went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.consent.vocabulary import Level
from engine.errors import PolicyError
from engine.policy.rules.consent import NOT_GRANTED, Consent, resolve
from engine.policy.slate import Alternatives, Moment, Rule, Slate, Verdict, everyone

LIMIT = "limit"  # stands where a rule's name does, for what was only too far down
BEYOND_LIMIT = "beyond_limit"


@dataclass(slots=True, unsafe_hash=True)
class Effect:
    """How many candidates one rule removed for one reason. As with Verdict, only the type checker keeps the fields."""

    rule: Final[str]
    reason: Final[str]
    count: Final[int]


@dataclass(slots=True, eq=False)
class Outcome:
    """A list, and what it cost: the slate and the effects' counts add up to the candidates.

    Args:
        propensity: (n,) the chance that each item stood where it stands, over all seeds; None: nothing was drawn, all are 1.
    """

    slate: Final[Slate]
    effects: Final[tuple[Effect, ...]]
    propensity: Final[NDArray[np.float32] | None] = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one rule did. before, after: the candidates in their order; removed: how many went, by reason."""

    rule: str
    before: Slate
    after: Slate
    removed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Chain:
    """The policy of one surface.

    Args:
        name: of the surface.
        version: eight hex digits that change with any rule, parameter or default.
        rules: in the order in which they run; Consent is the last.
        default_limit: length of a list where the request names none.
        default_level: how much of a person a list uses where neither the request nor the person says.

    Raises:
        PolicyError: the last rule is another one, or the limit is below 1.
    """

    name: str
    version: str
    rules: Sequence[Rule]
    default_limit: int
    default_level: Level
    _steps: tuple[tuple[Rule, bool], ...] = field(init=False, repr=False, compare=False)  # and whether it is ours

    def __post_init__(self) -> None:
        if not self.rules or type(self.rules[-1]) is not Consent:
            last = f"'{self.rules[-1].name}'" if self.rules else "missing"
            raise PolicyError(
                f"Policy '{self.name}': the last rule is {last}.",
                "End the rules with `- name: consent`: nothing may pass it by.",
            )
        if self.default_limit < 1:
            raise PolicyError(f"Policy '{self.name}': limit is {self.default_limit}.", "Show at least one item.")
        # Tests hold our own rules to account for every candidate, for any input: looking again costs more than most of them.
        ours = tuple((rule, type(rule).__module__.startswith(_OURS)) for rule in self.rules)
        object.__setattr__(self, "_steps", ours)

    def run(self, candidates: Alternatives, moment: Moment, trace: list[Step] | None = None) -> Outcome:
        """Make the list: settle each candidate's basis, apply the rules, cut to the limit.

        Args:
            candidates: one person's, or a Slate of anyone's; items of `moment.items`, none twice.
            moment: the request, its limit at least 1.
            trace: takes what each rule did, in their order, with `consent` first and `limit` last. What has no way that is
                granted stands in none of its slates: that it was a candidate at all says something of the person.

        Returns:
            at most `moment.limit` candidates, best first, each justified inside `moment.granted`; and the effects, in
            the order in which they came about, without those of nothing.

        Raises:
            PolicyError: a rule does not account for every candidate, or the limit is below 1.
        """
        slate = resolve(candidates, moment.granted, moment.granted_today)
        missing = len(candidates.item) - len(slate.item)
        if trace is not None:
            trace.append(Step(Consent.name, slate, slate, {NOT_GRANTED: missing}))
        return self.apply(slate, moment, missing, trace)

    def apply(self, slate: Slate, moment: Moment, missing: int = 0, trace: list[Step] | None = None) -> Outcome:
        """`run` of candidates whose way is settled; missing: how many had none that is granted."""
        limit = moment.limit
        if limit < 1:
            raise PolicyError(f"Policy '{self.name}': asked for {limit} items.", "Ask for at least one.")
        effects = [Effect(Consent.name, NOT_GRANTED, missing)] if missing else []
        propensity: NDArray[np.float32] | None = None
        for rule, ours in self._steps:
            verdict = rule(slate, moment)
            if not ours:
                _check(rule, verdict, len(slate.item))
            for reason, count in verdict.removed.items():
                if count:
                    effects.append(Effect(rule.name, reason, count))
            kept, drawn = verdict.kept, verdict.propensity
            after = slate.take(kept)
            if propensity is not None and after is not slate:
                propensity = propensity.take(kept)
            if drawn is not None:
                propensity = drawn if propensity is None else propensity * drawn
            if trace is not None:
                trace.append(Step(rule.name, slate, after, verdict.removed))
            slate = after
        if (count := len(slate.item) - limit) > 0:
            effects.append(Effect(LIMIT, BEYOND_LIMIT, count))
            after = slate.take(everyone(limit))
            if propensity is not None:
                propensity = propensity[:limit]
            if trace is not None:
                trace.append(Step(LIMIT, slate, after, {BEYOND_LIMIT: count}))
            slate = after
        return Outcome(slate.whole(), tuple(effects), propensity)

    def without(self, place: int) -> Chain:
        """The same but for one rule; consent, the last, always stays.

        Args:
            place: of the rule.

        Raises:
            PolicyError: it is the last.
        """
        return replace(self, rules=(*self.rules[:place], *self.rules[place + 1 :]))


def _check(rule: Rule, verdict: Verdict, count: int) -> None:
    """Rules come from anyone: one that shows an item twice, or loses one without a word, is refused."""
    kept, removed = verdict.kept, sum(verdict.removed.values())
    marks = np.zeros(count, np.bool_)
    try:
        marks[kept] = True
    except IndexError as error:
        raise PolicyError(f"Rule '{rule.name}' kept a position outside its slate of {count}.", _MEND) from error
    if np.count_nonzero(marks) != len(kept):
        raise PolicyError(f"Rule '{rule.name}' kept a candidate twice.", _MEND)
    if len(kept) + removed != count:
        raise PolicyError(
            f"Rule '{rule.name}' kept {len(kept)} and removed {removed} of {count} candidates.",
            _MEND,
        )
    drawn = verdict.propensity
    if drawn is not None and not (drawn.shape == (len(kept),) and ((drawn > 0) & (drawn <= 1)).all()):
        raise PolicyError(
            f"Rule '{rule.name}' gave {drawn.shape} chances for {len(kept)} candidates, or one that is none.",
            "Give each kept candidate one over 0 and up to 1.",
        )


_OURS = "engine.policy.rules."
_MEND = "Mend the rule: kept positions are distinct, and with the removed counts they add up to the slate."
