"""An IAB TCF v2 consent string: what somebody agreed to in a consent platform, for which vendors, and which they were shown.

Source: IAB Tech Lab, "Transparency and Consent String with Global Vendor & CMP List Formats", version 2 as of TCF v2.3, whose
strings have to name the vendors disclosed. The publisher's own segment grants nothing to a vendor and is not read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from engine.errors import ConsentError

_VERSION = 2
# TCF v2.2; its purposes are not those that older strings were asked with.
LEAST_POLICY = 4
# From which on TCF v2.3 is in force, and a string without the segment of disclosed vendors is none.
DISCLOSURE_NEEDED = datetime(2026, 3, 1, tzinfo=UTC)
_DISCLOSED = 1  # that segment's type
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_LONGEST = 1 << 16  # characters; platforms write some thousand at most
_REQUIRE_CONSENT = 1  # the one kind of publisher restriction that consent answers to
# As spans, ascending or as written: a few bytes of a string may speak of every vendor there can be, over and over.
Vendors = tuple[range, ...]


@dataclass(frozen=True, slots=True)
class TcfConsent:
    """What one vendor may rely on: whether it was consented to, and the purposes and special features by number."""

    vendor: bool
    purposes: frozenset[int]
    special_features: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcString:
    """The core segment, by the names of the specification. Sets and spans hold numbers from 1 on.

    publisher_restrictions: by (purpose, type), the vendors that the restriction is for; type 0 is not allowed, 1 require
    consent, 2 require legitimate interest. disclosed_vendors: of the segment of that name; None: there is none.
    """

    version: int
    created: datetime
    last_updated: datetime
    cmp_id: int
    cmp_version: int
    consent_screen: int
    consent_language: str
    vendor_list_version: int
    tcf_policy_version: int
    is_service_specific: bool
    use_non_standard_texts: bool
    special_feature_opt_ins: frozenset[int]
    purposes_consent: frozenset[int]
    purposes_li_transparency: frozenset[int]
    purpose_one_treatment: bool
    publisher_cc: str
    vendor_consent: Vendors
    vendor_legitimate_interest: Vendors
    publisher_restrictions: Mapping[tuple[int, int], Vendors]
    disclosed_vendors: Vendors | None

    def consent(self, vendor: int) -> TcfConsent:
        """What a vendor may rely on: without what the publisher does not let it do on consent.

        Args:
            vendor: its number on the Global Vendor List.

        Raises:
            ConsentError: the string is of before TCF v2.2, not for one service, or written since TCF v2.3 without the vendors
                disclosed: it is not valid.
        """
        if self.tcf_policy_version < LEAST_POLICY:
            raise ConsentError(
                f"The TC string was asked for under policy version {self.tcf_policy_version}, the mapping is of "
                f"version {LEAST_POLICY} (TCF v2.2) on.",
                "Have the consent platform ask again.",
            )
        if not self.is_service_specific:
            raise ConsentError(
                "The TC string is of global scope, which TCF v2.2 no longer has.",
                "Have the consent platform ask for this service.",
            )
        disclosed = self.disclosed_vendors
        if disclosed is None and self.last_updated >= DISCLOSURE_NEEDED:
            raise ConsentError(
                f"The TC string was written on {self.last_updated:%Y-%m-%d} and does not name the vendors disclosed, as TCF "
                "v2.3 has it.",
                "Have the consent platform add the segment, and ask again.",
            )
        refused = {
            purpose
            for (purpose, kind), vendors in self.publisher_restrictions.items()
            if kind != _REQUIRE_CONSENT and _names(vendors, vendor)
        }
        shown = disclosed is None or _names(disclosed, vendor)
        return TcfConsent(
            shown and _names(self.vendor_consent, vendor), self.purposes_consent - refused, self.special_feature_opt_ins
        )


def decode(text: str) -> TcString:
    """Read a TC string.

    Args:
        text: as consent platforms give it, with or without further segments.

    Raises:
        ConsentError: it is not a TC string of format 2, or is cut off. The text is not repeated: it tells of a person.
    """
    if len(text) > _LONGEST:
        raise _unreadable(f"it has {len(text)} characters")
    core, *others = text.split(".")
    bits = _Bits(_bytes(core))
    if (version := bits.number(6)) != _VERSION:
        raise _unreadable(f"its format is {version}, {_VERSION} is read")
    return TcString(
        version=version,
        created=_moment(bits.number(36)),
        last_updated=_moment(bits.number(36)),
        cmp_id=bits.number(12),
        cmp_version=bits.number(12),
        consent_screen=bits.number(6),
        consent_language=bits.letters(2),
        vendor_list_version=bits.number(12),
        tcf_policy_version=bits.number(6),
        is_service_specific=bits.flag(),
        use_non_standard_texts=bits.flag(),
        special_feature_opt_ins=bits.field(12),
        purposes_consent=bits.field(24),
        purposes_li_transparency=bits.field(24),
        purpose_one_treatment=bits.flag(),
        publisher_cc=bits.letters(2),
        vendor_consent=bits.vendors(),
        vendor_legitimate_interest=bits.vendors(),
        publisher_restrictions=bits.restrictions(),
        disclosed_vendors=_disclosed(others),
    )


def _disclosed(segments: Iterable[str]) -> Vendors | None:
    """The vendors of the segment that names those disclosed, where there is one."""
    found = None
    for segment in segments:
        bits = _Bits(_bytes(segment))
        if bits.number(3) == _DISCLOSED:
            if found is not None:
                raise _unreadable("it names the vendors disclosed twice")
            found = bits.vendors()
    return found


class _Bits:
    """Reads fields from the left; what lies past the end is an error, never a zero."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def number(self, width: int) -> int:
        self._left -= width
        if self._left < 0:
            raise _unreadable("it is cut off")
        return self._value >> self._left & (1 << width) - 1

    def flag(self) -> bool:
        return bool(self.number(1))

    def letters(self, count: int) -> str:
        codes = [self.number(6) for _ in range(count)]
        if max(codes) > 25:
            raise _unreadable("a language or country in it is none")
        return "".join(chr(ord("A") + code) for code in codes)

    def field(self, width: int) -> frozenset[int]:
        found = self.number(width)
        return frozenset(place + 1 for place in range(width) if found >> width - 1 - place & 1)

    def vendors(self) -> Vendors:
        highest = self.number(16)
        if not self.flag():
            return _spans(self.field(highest))
        found = self.ranges()
        if any(span.stop - 1 > highest for span in found):
            raise _unreadable(f"a vendor in it lies past its last one, {highest}")
        return found

    def ranges(self) -> Vendors:
        found = []
        for _ in range(self.number(12)):
            is_range, first = self.flag(), self.number(16)
            last = self.number(16) if is_range else first
            if not 1 <= first <= last:
                raise _unreadable(f"a range of vendors in it goes from {first} to {last}")
            found.append(range(first, last + 1))
        return tuple(found)

    def restrictions(self) -> dict[tuple[int, int], Vendors]:
        found: dict[tuple[int, int], Vendors] = {}
        for _ in range(self.number(12)):
            key = (self.number(6), self.number(2))
            found[key] = found.get(key, ()) + self.ranges()
        return found


def _names(vendors: Vendors, vendor: int) -> bool:
    return any(vendor in span for span in vendors)


def _spans(numbers: Iterable[int]) -> Vendors:
    found: list[range] = []
    for number in sorted(numbers):
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return tuple(found)


def _bytes(core: str) -> bytes:
    if not core or not set(core) <= _ALPHABET:
        raise _unreadable("it is not URL-safe base64")
    try:
        return base64.urlsafe_b64decode(core + "=" * (-len(core) % 4))
    except (ValueError, binascii.Error):
        raise _unreadable("it is cut off") from None


def _moment(deciseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=100 * deciseconds)


def _unreadable(why: str) -> ConsentError:
    return ConsentError(f"The TC string cannot be read: {why}.", "Pass it on as the consent platform gave it.")
