"""What may be chosen about the simulated shop, and which choices are refused."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, fields

from engine.activity.simulator.shelves import SHELVES
from engine.errors import SettingsError

_SHARE = (0.0, 1.0)
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "days": (1, 3650),
    "users": (1, 10_000_000),
    "items": (len(SHELVES), 10_000_000),
    "sessions_per_day": (0.0, 50.0),
    "page": (1, 100),
    "popularity_slope": (0.0, 3.0),
    "newcomer_days": (1, 3650),
    "seasons": (0.0, 2.0),
}
_SEGMENTS = ("newcomer_share", "no_consent_share", "gift_burst_share", "partial_consent_share")


@dataclass(frozen=True, slots=True)
class ShopSettings:
    """A shop, its people and a stretch of days. The defaults make about 150,000 events in a few seconds.

    Raises:
        SettingsError: a value is of the wrong type, out of range, or contradicts another.
    """

    seed: int = 0
    start: dt.date = dt.date(2026, 1, 1)
    days: int = 60
    users: int = 2_000
    items: int = 1_500  # at least one for each shelf
    sessions_per_day: float = 0.22  # mean per person; few people make most of them
    page: int = 12  # items shown in a session
    popularity_slope: float = 0.8  # exponent of Zipf's law over the items
    drift: float = 0.6  # how far interests may change places over the days, 0..1
    seasons: float = 1.0  # strength of the year on the shelves; 0: none
    sources: tuple[str, ...] = ("web", "app", "store", "partner")
    source_shares: tuple[float, ...] = (0.45, 0.33, 0.12, 0.10)
    # People: the rest are regulars who granted every source.
    newcomer_share: float = 0.08
    no_consent_share: float = 0.10
    gift_burst_share: float = 0.06
    partial_consent_share: float = 0.15
    newcomer_days: int = 5  # newcomers come on one of the last days
    repeat_share: float = 0.5  # people with something that they buy again and again; never newcomers
    minor_share: float = 0.03
    wavering_share: float = 0.08  # regulars with all grants who change their mind while the log runs
    group_contrast: float = 1.0  # how far the groups of people differ in activity and taste; 0: alike
    # What a visit does to the next one.
    returning: float = 0.0  # at 1, who is always satisfied comes twice as often, and who never is, half as often
    churn: float = 0.0  # chance that somebody who is never satisfied leaves for good after a visit
    # Events.
    anonymous_share: float = 0.12
    gift_flag_share: float = 0.4  # gift carts and purchases that the log marks as such
    # Items.
    late_share: float = 0.06  # added while the log runs, a few each day
    ended_share: float = 0.03  # end for good while the log runs, a few each day
    clickbait_share: float = 0.04  # promise more than they hold
    sensitive_share: float = 0.02
    limited_share: float = 0.04  # sold in some regions or for some time only

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise _refused(field.name, value, "a whole number")
            if field.type == "float" and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise _refused(field.name, value, "a number")
            low, high = _RANGES.get(field.name, _SHARE)
            if field.type in ("int", "float") and not low <= value <= high:
                raise _refused(field.name, value, f"within {low:,}..{high:,}")
        if type(self.start) is not dt.date:
            raise _refused("start", self.start, "a date without a time, such as 2026-01-01")
        if not dt.date(1971, 1, 1) <= self.start <= dt.date(2250, 1, 1):
            raise _refused("start", self.start, "within 1971-01-01..2250-01-01")
        self._check_sources()
        together = sum(getattr(self, name) for name in _SEGMENTS)
        if together > 1 + 1e-9:
            raise SettingsError(
                f"Nobody belongs to two segments, yet {' + '.join(_SEGMENTS)} = {together:g}.",
                "Lower them to at most 1 together.",
            )

    def _check_sources(self) -> None:
        names, shares = self.sources, self.source_shares
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise _refused("sources", names, "a tuple of names")
        if not names or len(set(names)) < len(names):
            raise _refused("sources", names, "at least one name, none twice")
        if not isinstance(shares, tuple) or len(shares) != len(names):
            raise _refused("source_shares", shares, f"a tuple of {len(names)} numbers, one for each of sources")
        if not all(isinstance(share, (int, float)) and math.isfinite(share) and share > 0 for share in shares):
            raise _refused("source_shares", shares, "positive numbers")


def _refused(name: str, value: object, expected: str) -> SettingsError:
    return SettingsError(
        f"Shop setting '{name}': expected {expected}, found {value!r}.", f"Change '{name}' or leave it out."
    )
