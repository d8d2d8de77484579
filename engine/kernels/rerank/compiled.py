"""How the inner functions of the compiled paths are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def inner(fastmath: bool | set[str] = False) -> Callable[[Compiled], Compiled]:
    """A decorator for what makes no array and raises nothing: without reference counts, which would take longer than its work.

    Args:
        fastmath: as `numba.njit` has it.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "fastmath": fastmath}
    compiled: Callable[[Compiled], Compiled] = njit(**options)
    return compiled
