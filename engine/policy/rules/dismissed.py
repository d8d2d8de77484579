"""Dismissed: nothing of the categories that the person does not want to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.policy.paths import within
from engine.policy.positions import unmarked
from engine.policy.rules.consent import allowed
from engine.policy.slate import Moment, Slate, Verdict, everyone
from engine.snapshot import ItemTable, Mix

DISMISSED = -1.0  # stands in a mix where a share does, for a category of which the person wants nothing


@dataclass(frozen=True, slots=True)
class Dismissed:
    """Removes what has a dismissed category anywhere in its path."""

    name: ClassVar[str] = "dismissed"

    def __call__(self, slate: Slate, moment: Moment) -> Verdict:
        """Keep the order."""
        count = len(slate.item)
        if not len(moment.dismissed):
            return Verdict(everyone(count))
        paths = moment.items.paths
        kept = unmarked(within(slate.item, paths.offsets, paths.codes, moment.dismissed, len(paths.names)))
        return Verdict(kept, {"category_dismissed": count - len(kept)})


def dismissed_of(mix: Mix, granted: int, categories: Sequence[str], items: ItemTable) -> NDArray[np.int32]:
    """(c,) codes of `items.paths.names`, ascending, of which a person wants nothing, as far as it may be known.

    Args:
        granted: mask of what the person allows. categories: names of the mix's categories.
    """
    rows = mix.category[(mix.share == DISMISSED) & allowed(mix.basis, granted)]
    by_name = items.paths.by_name
    names = [categories[row] for row in rows.tolist()]
    return np.array(sorted(by_name[name] for name in names if name in by_name), np.int32)
