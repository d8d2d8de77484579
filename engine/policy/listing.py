"""A whole list: what is the person's, and for the places it leaves, what anybody may see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.policy.chain import Chain, Effect, Outcome
from engine.policy.rules.consent import NOT_GRANTED, Consent, resolve
from engine.policy.slate import Alternatives, Moment, Slate


def make_list(chain: Chain, candidates: Alternatives, popular: Slate, moment: Moment) -> Outcome:
    """Run the chain once over a person's candidates with the popular items behind them.

    Once, so that every rule sees the whole list: a cap on a category must not give way while items of others stand ready.

    Args:
        candidates: the person's, with the ways in which each may be justified.
        popular: a list that relies on nobody's grants, best first; scored on a scale of its own.
        moment: the request.

    Returns:
        at most `moment.limit` items, none twice, and the effects.
    """
    own = resolve(candidates, moment.granted)
    rest = popular.take(np.flatnonzero(~np.isin(popular.item, own.item)))
    if len(own) and len(rest):
        # Shares of the shop's wants say nothing beside a person's scores: they keep their order, behind.
        scale = 0.999 * own.score.min() / max(float(rest.score.max()), 1e-30)
        rest = replace(rest, score=(rest.score * scale).astype(np.float32))
    outcome = chain.run(own.then(rest), moment)
    missing = len(candidates.item) - len(own)
    return replace(
        outcome, effects=(Effect(Consent.name, NOT_GRANTED, missing), *outcome.effects) if missing else outcome.effects
    )
