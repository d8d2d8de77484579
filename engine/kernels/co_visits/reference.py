"""What a co-visit count is, in plain NumPy, one person at a time: for reading and for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def co_visits(starts: NDArray[np.int64], item: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """(count, count) how many people wanted both items; the diagonal holds how many wanted the item."""
    total = np.zeros((count, count))
    for person in range(len(starts) - 1):
        wanted = np.unique(item[starts[person] : starts[person + 1]])
        total[np.ix_(wanted, wanted)] += 1
    return total
