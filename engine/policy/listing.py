"""A whole list: what is the person's, and for the places it leaves, what anybody may see."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.policy import compiled
from engine.policy.chain import Chain, Outcome, Step
from engine.policy.compiled import GRANTABLE
from engine.policy.rules.consent import NOT_GRANTED, Consent
from engine.policy.slate import Alternatives, Moment, Slate

_KINDS = {"item": np.int32, "lane": np.uint8, "basis": np.uint64, "score": np.float32, "evidence": np.int32}


def make_list(
    chain: Chain, candidates: Alternatives, popular: Slate, moment: Moment, trace: list[Step] | None = None
) -> Outcome:
    """Run the chain once over a person's candidates with the popular items behind them.

    Once, so that every rule sees the whole list: a cap on a category must not give way while items of others stand ready.

    Args:
        candidates: the person's, with the ways in which each may be justified.
        popular: a list that relies on nobody's grants, best first; scored on a scale of its own, which says nothing beside a
            person's scores: its items keep their order, behind.
        moment: the request.
        trace: as `Chain.run` has it.

    Returns:
        at most `moment.limit` items, none twice, and the effects.
    """
    *columns, unlike, _ = _joined(candidates, popular, moment.granted, moment.granted_today)
    slate = Slate(*columns)
    missing = len(candidates.item) + unlike - len(slate)
    if trace is not None:
        trace.append(Step(Consent.name, slate, slate, {NOT_GRANTED: missing}))
    return chain.apply(slate, moment, missing, trace)


def _joined(candidates: Alternatives, popular: Slate, granted: int, granted_today: int) -> Any:
    masks = granted & GRANTABLE, granted_today & GRANTABLE
    rest = popular.item, popular.lane, popular.basis, popular.score, popular.evidence
    try:
        return compiled.join(
            candidates.item, candidates.lane, candidates.basis, candidates.score, candidates.evidence, *rest, *masks
        )
    except TypeError:  # of another layout or kind than a snapshot's
        own = [np.ascontiguousarray(getattr(candidates, name), kind) for name, kind in _KINDS.items()]
        rest_own = [np.ascontiguousarray(column, kind) for column, kind in zip(rest, _KINDS.values(), strict=True)]
        columns: list[Any] = [*own, *rest_own, *masks]
        return compiled.join(*columns)
