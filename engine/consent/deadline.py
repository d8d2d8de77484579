"""Until when the call that a thread makes must have been answered, whatever the store does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic

_call = threading.local()


@contextmanager
def answered_within(seconds: float) -> Iterator[None]:
    """Bound all waiting of this thread inside the block, together; an outer block that ends sooner holds."""
    before = until()
    _call.until = min(before, monotonic() + seconds)
    try:
        yield
    finally:
        _call.until = before


def lift() -> None:
    """Let the rest of the block take its time: the store has answered, and there is much to read or to write."""
    _call.until = inf


def until() -> float:
    """The moment, of the monotonic clock, at which this thread gives up; infinite outside of every block."""
    return getattr(_call, "until", inf)
