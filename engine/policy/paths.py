"""Which items have some categories in their path, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from engine.kernels.rerank.compiled import inner

_I1 = types.Array(types.int32, 1, "C", readonly=True)


@inner()
def _has(at: Any, offsets: Any, codes: Any, marks: Any) -> Any:
    for k in range(offsets[at], offsets[at + np.uint64(1)]):  # noqa: SIM110  what is compiled takes no generator
        if marks[np.uint64(codes[k])]:
            return True
    return False


@njit(types.bool_[::1](_I1, _I1, _I1, _I1, types.int64), cache=True)
def within(items: Any, offsets: Any, codes: Any, wanted: Any, names: Any) -> Any:
    """(n,) which items have one of some categories in their path; arguments as snapshot.Paths has them, names: how many."""
    marks, found = np.zeros(names, np.bool_), np.empty(len(items), np.bool_)
    for code in wanted:
        if not 0 <= code < names:
            raise IndexError("a category lies outside the snapshot")
        marks[np.uint64(code)] = True
    for i in range(len(items)):
        if not 0 <= items[i] < len(offsets) - 1:
            raise IndexError("an item code lies outside the snapshot")
        found[i] = _has(np.uint64(items[i]), offsets, codes, marks)
    return found
