"""A surface's rules in their order, from candidates to a list, with an account of everything that went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.consent.vocabulary import Level
from engine.errors import PolicyError
from engine.policy.rules.consent import NOT_GRANTED, Consent, resolve
from engine.policy.slate import Alternatives, Moment, Rule, Slate, Verdict

LIMIT = "limit"  # stands where a rule's name does, for what was only too far down
BEYOND_LIMIT = "beyond_limit"


@dataclass(frozen=True, slots=True)
class Effect:
    """How many candidates one rule removed for one reason."""

    rule: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A list, and what it cost: the slate and the effects' counts add up to the candidates."""

    slate: Slate
    effects: tuple[Effect, ...]


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

    def __post_init__(self) -> None:
        if not self.rules or type(self.rules[-1]) is not Consent:
            last = f"'{self.rules[-1].name}'" if self.rules else "missing"
            raise PolicyError(
                f"Policy '{self.name}': the last rule is {last}.",
                "End the rules with `- name: consent`: nothing may pass it by.",
            )
        if self.default_limit < 1:
            raise PolicyError(f"Policy '{self.name}': limit is {self.default_limit}.", "Show at least one item.")

    def run(self, candidates: Alternatives, moment: Moment) -> Outcome:
        """Make the list: settle each candidate's basis, apply the rules, cut to the limit.

        Args:
            candidates: one person's, or a Slate of anyone's; items of `moment.items`, none twice.
            moment: the request, its limit at least 1.

        Returns:
            at most `moment.limit` candidates, best first, each justified inside `moment.granted`; and the effects, in
            the order in which they came about, without those of nothing.

        Raises:
            PolicyError: a rule does not account for every candidate, or the limit is below 1.
        """
        if moment.limit < 1:
            raise PolicyError(f"Policy '{self.name}': asked for {moment.limit} items.", "Ask for at least one.")
        slate = resolve(candidates, moment.granted)
        effects = []
        if len(slate) < len(candidates.item):
            effects.append(Effect(Consent.name, NOT_GRANTED, len(candidates.item) - len(slate)))
        for rule in self.rules:
            verdict = rule(slate, moment)
            _check(rule, verdict, len(slate))
            effects += [Effect(rule.name, reason, count) for reason, count in verdict.removed.items() if count]
            slate = slate.take(verdict.kept)
        if len(slate) > moment.limit:
            effects.append(Effect(LIMIT, BEYOND_LIMIT, len(slate) - moment.limit))
            slate = slate.take(np.arange(moment.limit))
        return Outcome(slate, tuple(effects))


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


_MEND = "Mend the rule: kept positions are distinct, and with the removed counts they add up to the slate."
