"""What the shop itself decides about single items, always until a day: terms that run out, so that none is forgotten."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import PolicyError

_DAY = 86_400_000_000
_EPOCH = dt.date(1970, 1, 1)


def ends(rule: str, until: object) -> int:
    """The moment at which a term is over, microseconds since the epoch: the end of its last day, in UTC.

    Raises:
        PolicyError: it is no date.
    """
    try:
        day = until if type(until) is dt.date else dt.date.fromisoformat(str(until))
    except ValueError:
        raise PolicyError(f"{rule}: until is {until!r}.", "Write the last day, as 2026-12-31.") from None
    return ((day - _EPOCH).days + 1) * _DAY


def checked(
    rule: str, terms: Any, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[Mapping[str, Any], ...]:
    """Terms as they stand in conf, each with what it needs and nothing else.

    Raises:
        PolicyError: one lacks something, or has something unknown.
    """
    if isinstance(terms, (str, Mapping)):
        raise PolicyError(f"{rule}: expected a list, found {terms!r}.", f"Write [{{{', '.join(needed)}}}].")
    for term in terms:
        if not isinstance(term, Mapping):
            raise PolicyError(f"{rule}: an entry is {term!r}.", f"Write it as {{{', '.join(needed)}}}.")
        lacking = [name for name in needed if not term.get(name)]
        strange = [str(name) for name in term if name not in (*needed, *optional)]
        if lacking or strange:
            told = f"lacks {', '.join(lacking)}" if lacking else f"has an unknown {', '.join(strange)}"
            raise PolicyError(
                f"{rule}: an entry {told}.", f"Give {', '.join(needed)}; {', '.join(optional) or 'no more'}."
            )
    return tuple(dict(term) for term in terms)


class Terms:
    """Terms in the order in which they run out."""

    def __init__(self, rule: str, terms: Sequence[Mapping[str, Any]]) -> None:
        self._terms = sorted(terms, key=lambda term: ends(rule, term["until"]))
        self._ends = [ends(rule, term["until"]) for term in self._terms]

    def over(self, now_us: int) -> int:
        """How many are over at a moment: with the same number the same ones are left."""
        return bisect_right(self._ends, now_us)

    def left(self, over: int) -> list[Mapping[str, Any]]:
        """Those that hold when so many are over."""
        return self._terms[over:]
