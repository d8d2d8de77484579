"""A whole list: what is the person's, and where that is short, what anybody may see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.policy.chain import Chain, Outcome
from engine.policy.rules.consent import allowed
from engine.policy.slate import Alternatives, Moment, Slate


def make_list(chain: Chain, candidates: Alternatives, popular: Slate, moment: Moment) -> Outcome:
    """Run the chain over a person's candidates, then over the popular items for the places that are left.

    Args:
        candidates: the person's, with the ways in which each may be justified.
        popular: a list that relies on nobody's grants, best first.
        moment: the request.

    Returns:
        at most `moment.limit` items, none twice; effects of both runs, none counted twice.
    """
    own = chain.run(candidates, moment)
    left = moment.limit - len(own.slate)
    if left <= 0:
        return own
    ways = candidates.basis if candidates.basis.ndim == 2 else candidates.basis[:, None]
    # What the rules let through or removed already is not offered, and counted, a second time.
    taken = candidates.item[allowed(ways, moment.granted).any(axis=1)]
    rest = popular.take(np.flatnonzero(~np.isin(popular.item, taken)))
    more = chain.run(rest, replace(moment, limit=left))
    return Outcome(own.slate.then(more.slate), own.effects + more.effects)
