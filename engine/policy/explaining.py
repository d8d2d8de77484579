"""What rules did to an item, and how much of a list each of them decides: answers for people, not for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.policy.chain import Chain, Step
from engine.policy.slate import Moment, Rule, Slate

KEPT, MOVED, REMOVED = "kept", "moved", "removed"


@dataclass(frozen=True, slots=True)
class Act:
    """What one rule did to an item. Ranks are 1-based, 0: not in the list; count: candidates, of a whole list."""

    rule: str
    effect: str
    before: int = 0
    after: int = 0
    reason: str = ""
    count: int = 0


def acts_on(item: int, steps: Sequence[Step], chain: Chain, moment: Moment) -> list[Act]:
    """What each rule did to one item, in their order, up to the one that removed it; empty if it was no candidate.

    Args:
        item: code. steps: of `Chain.run`, under this chain and moment.
    """
    rules = {rule.name: rule for rule in chain.rules}
    acts = []
    for step in steps:
        at, then = _rank(step.before, item), _rank(step.after, item)
        if not at:
            break
        if then:
            acts.append(Act(step.rule, KEPT if then == at else MOVED, at, then))
        else:
            acts.append(Act(step.rule, REMOVED, at, 0, _reason(step, rules.get(step.rule), at, moment)))
    return acts


def acts_on_all(steps: Sequence[Step]) -> list[Act]:
    """What each rule did to the list: how many it removed, by reason, and how many others it moved."""
    acts = []
    for step in steps:
        acts += [Act(step.rule, REMOVED, reason=reason, count=count) for reason, count in step.removed.items() if count]
        stays = np.isin(step.before.item, step.after.item)
        left = step.before.item[stays]
        moved = int((left != step.after.item).sum()) if len(left) == len(step.after.item) else 0
        if moved:
            acts.append(Act(step.rule, MOVED, count=moved))
    return acts


def _rank(slate: Slate, item: int) -> int:
    found = np.flatnonzero(slate.item == item)
    return int(found[0]) + 1 if len(found) else 0


def _reason(step: Step, rule: Rule | None, rank: int, moment: Moment) -> str:
    """Where a rule gave several reasons, it is asked about the one item: filters look at nothing else."""
    reasons = [reason for reason, count in step.removed.items() if count]
    if len(reasons) > 1 and rule is not None:
        alone = rule(step.before.take(np.array([rank - 1])), moment)
        reasons = [reason for reason, count in alone.removed.items() if count] or reasons
    return reasons[0] if reasons else ""
