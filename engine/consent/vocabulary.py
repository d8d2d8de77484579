"""Purposes, sources and the bits that stand for them: what a basis relies on and what a person allows, as one mask.

With S sources, bits 0..2S-1 are *groups* of events under the purpose `profile`: bit 2s for the purchases of source s,
bit 2s+1 for its other events; a grant of `profile` sets both. Each other purpose then takes S bits, one per source.
Something may be shown iff `basis & ~granted == 0`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.consent.changes import LINKED
from engine.errors import ConsentError
from engine.schema import DELICATE, NEVER

PROFILE = "profile"
SENSITIVE = "sensitive"
TRAIN = "train"
CROSS_SOURCE = "cross_source"  # what somebody did under several ids is put together while it is granted
# What conf/consent/default.yaml declares, in the same order; snapshots name their bits by it.
PURPOSES = (PROFILE, TRAIN, "measure", SENSITIVE, "location", CROSS_SOURCE)
RELIED_ON = (PROFILE, TRAIN, SENSITIVE)  # asked for by name: by serving, and by the night
# The kinds of events under `profile`, a bit of each source for each; every other purpose has one bit a source.
EVENTS = ("purchase", "other")
# One bit stays free: with all 64 in use, a person who grants everything would cover schema.NEVER, which nobody may.
MAX_BITS = 63
# The ledger joins names with '/' and spaces.
_NAME = re.compile(r"[^\s/]{1,64}")


class Level(IntEnum):
    """The dial; the numbers are those of the proto enum Personalization."""

    UNSET = 0
    NONE = 1
    SESSION = 2
    PURCHASES = 3
    FULL = 4


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The purposes and sources of one deployment, in the order that gives them their bits.

    Args:
        purposes: `profile` first, `train` and `sensitive` among the others; a team may add its own.
        sources: where events come from, such as web, app, store.

    Raises:
        ConsentError: a name is empty, repeated or holds a space or '/', a required purpose is missing, or more bits
            would be needed than there are.
    """

    purposes: tuple[str, ...] = PURPOSES
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        for kind in ("purposes", "sources"):
            given = getattr(self, kind)
            names = _checked_names(kind, () if isinstance(given, str) else given)
            object.__setattr__(self, kind, names)  # settings hand over lists
        for name in RELIED_ON:
            if name not in self.purposes:
                near = difflib.get_close_matches(name, self.purposes, 1)
                hint = f"Did you mean it by '{near[0]}'? " if near else ""
                raise ConsentError(
                    f"The purposes are {', '.join(self.purposes)}: '{name}' is not among them.",
                    f"{hint}Keep {', '.join(RELIED_ON)}: the engine asks for each of them.",
                )
        if LINKED in self.purposes:
            raise ConsentError(
                f"A purpose is called '{LINKED}'.", "Choose another name: histories tell of links by it."
            )
        if self.purposes[0] != PROFILE:
            raise ConsentError(
                f"The purposes are {', '.join(self.purposes)}.", f"Put '{PROFILE}' first: its bits come first."
            )
        bits = (len(self.purposes) + 1) * len(self.sources)
        if bits > MAX_BITS:
            raise ConsentError(
                f"{len(self.purposes)} purposes over {len(self.sources)} sources need {bits} bits; "
                f"a mask holds {MAX_BITS}.",
                " ".join(_ways_out(self.purposes, self.sources)),
            )

    @cached_property
    def version(self) -> str:
        """Eight hex digits over both lists: masks of different versions do not compare."""
        return hashlib.sha256(json.dumps([self.purposes, self.sources]).encode()).hexdigest()[:8]

    def mask(self, purpose: str, source: str = "") -> int:
        """The bits that a grant of this purpose sets.

        Args:
            purpose: one of `purposes`.
            source: one of `sources`; empty for every source.

        Raises:
            ConsentError: a name is unknown; the message has the nearest one.
        """
        code = _code("purpose", purpose, self.purposes)
        wanted = [self.source_code(source)] if source else range(len(self.sources))
        if code == 0:
            return sum(0b11 << 2 * s for s in wanted)
        return sum(1 << (code + 1) * len(self.sources) + s for s in wanted)

    def source_code(self, name: str) -> int:
        """The row of a source in `sources`.

        Raises:
            ConsentError: there is no such source; the message has the nearest one.
        """
        return _code("source", name, self.sources)

    @cached_property
    def groups(self) -> int:
        """All bits of the purpose `profile`."""
        return (1 << 2 * len(self.sources)) - 1

    @cached_property
    def beside_groups(self) -> int:
        """All bits but those of the purpose `profile`."""
        return ((1 << 63) - 1) & ~self.groups

    @cached_property
    def purchase_groups(self) -> int:
        """The bits of `profile` that stand for purchases."""
        return sum(1 << 2 * s for s in range(len(self.sources)))

    def group(self, source_code: int, purchase: bool) -> int:
        """The number of the bit of one source's purchases, or of its other events."""
        if not 0 <= source_code < len(self.sources):
            raise ConsentError(f"There is no source {source_code}.", f"Use 0..{len(self.sources) - 1}.")
        return 2 * source_code + (not purchase)

    def under(self, level: int, granted: int) -> int:
        """What remains of the grants once the dial is turned to a level.

        Args:
            level: NONE keeps nothing; SESSION keeps what no stored history needs, so nothing stored can be justified;
                PURCHASES keeps purchases and drops the other events; FULL keeps all.
            granted: mask of what the person allows.

        Raises:
            ConsentError: the level is unset or unknown. Which level stands in for an unset one is the policy's choice.
        """
        match level:
            case Level.NONE:
                return 0
            case Level.SESSION:
                return granted & ~self.groups
            case Level.PURCHASES:
                return granted & ~(self.groups ^ self.purchase_groups)
            case Level.FULL:
                return granted
        raise ConsentError(f"{level} is no personalization level to serve at.", "Use 1 (none) to 4 (full).")

    def translated(self, granted: int, to: Vocabulary) -> int:
        """The same grants in the bits of another vocabulary, such as the one that a snapshot was made with.

        Names decide, never bits: what the other one does not name is left out, and what this one does not name is not granted.

        Args:
            granted: mask under this vocabulary, before or after the dial; bits that name nothing are left out.
            to: gives the bits of the result.
        """
        result = 0
        for bits, shift in _moves(self, to):
            found = granted & bits
            result |= found << shift if shift >= 0 else found >> -shift
        return result

    def bits(self) -> dict[tuple[str, str, str], int]:
        """The number of each bit by purpose, source and kind of event; the last is '' under purposes other than `profile`."""
        count = len(self.sources)
        found = {
            (PROFILE, source, event): 2 * place + kind
            for place, source in enumerate(self.sources)
            for kind, event in enumerate(EVENTS)
        }
        for code, purpose in enumerate(self.purposes[1:], start=1):
            found.update({(purpose, source, ""): (code + 1) * count + s for s, source in enumerate(self.sources)})
        return found

    @cached_property
    def group_bases(self) -> NDArray[np.uint64]:
        """(128,) the grants that events of each group need: of those of sensitive items, schema.DELICATE on, one more.

        Numbers that name no group need what nobody has.
        """
        bases = np.full(2 * DELICATE, NEVER, np.uint64)
        groups = np.arange(2 * len(self.sources))
        bases[groups] = np.uint64(1) << groups.astype(np.uint64)
        bases[groups + DELICATE] = self.with_sensitive(bases[groups])
        bases.flags.writeable = False
        return bases

    def with_sensitive(self, basis: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The same bases for a sensitive item: for each source relied on, its grant of `sensitive` is relied on too.

        Args:
            basis: any shape.

        Returns:
            A new array of that shape. A basis that relies on no group stays as it is.
        """
        found = np.asarray(basis)
        if found.dtype != np.uint64:
            raise ConsentError(f"A basis is expected as uint64, found {found.dtype}.", "Build it from Vocabulary.mask.")
        result: NDArray[np.uint64] = found.copy()
        for source in self.sources:
            relied = (found & np.uint64(self.mask(PROFILE, source))) != 0
            result |= np.where(relied, np.uint64(self.mask(SENSITIVE, source)), np.uint64(0))
        return result

    def to_json(self) -> dict[str, object]:
        """A dict that JSON can hold, with the version."""
        return {"purposes": list(self.purposes), "sources": list(self.sources), "version": self.version}

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> Vocabulary:
        """The vocabulary that `to_json` wrote.

        Raises:
            ConsentError: keys are missing or mistyped, or the version does not belong to the names.
        """
        purposes, sources = stored.get("purposes"), stored.get("sources")
        if not isinstance(purposes, Sequence) or not isinstance(sources, Sequence):
            raise ConsentError(
                "A stored vocabulary lacks its purposes or sources.", "Write it with Vocabulary.to_json."
            )
        vocabulary = cls(purposes=tuple(purposes), sources=tuple(sources))
        if stored.get("version") != vocabulary.version:
            raise ConsentError(
                f"A stored vocabulary calls itself {stored.get('version')}, its names give {vocabulary.version}.",
                "Restore the file that holds it: names and bits no longer match.",
            )
        return vocabulary


@lru_cache(64)  # a process knows its own vocabulary, and those of the snapshots that it serves
def _moves(of: Vocabulary, to: Vocabulary) -> tuple[tuple[int, int], ...]:
    """What `translated` does: masks of bits that move together, and how far to the left."""
    known, moves = to.bits(), dict[int, int]()
    for name, bit in of.bits().items():
        if name in known:
            shift = known[name] - bit
            moves[shift] = moves.get(shift, 0) | 1 << bit
    return tuple((bits, shift) for shift, bits in moves.items())


def _ways_out(purposes: Sequence[str], sources: Sequence[str]) -> Iterator[str]:
    """What to merge or drop where there are too many bits."""
    fit = MAX_BITS // (len(purposes) + 1)
    if fit:
        yield f"Merge sources until there are at most {fit} (they are {', '.join(sources)})"
    spare = [name for name in purposes if name not in RELIED_ON]
    most = MAX_BITS // len(sources) - 1  # purposes that fit over these sources
    if spare and most >= len(RELIED_ON):
        yield f"{'or drop' if fit else 'Drop'} {len(purposes) - most} of the purposes {', '.join(spare)}"
    yield "in conf/consent."


def _checked_names(kind: str, given: Sequence[object]) -> tuple[str, ...]:
    names = tuple(name for name in given if isinstance(name, str))
    if not names or len(names) != len(given):
        raise ConsentError(f"The {kind} of the consent vocabulary are not a list of names.", "List at least one.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConsentError(f"{name!r} cannot stand among the {kind}.", "Use 1..64 characters, no space and no '/'.")
    if len(set(names)) < len(names):
        raise ConsentError(f"The {kind} name one twice: {', '.join(names)}.", "List each once.")
    return names


def _code(kind: str, name: str, known: tuple[str, ...]) -> int:
    try:
        return known.index(name)
    except ValueError:
        raise unknown_name(kind, name, known) from None


def unknown_name(kind: str, name: object, known: Sequence[str]) -> ConsentError:
    """The error for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return ConsentError(f"Unknown {kind} '{name}'.", f"{hint}Known: {', '.join(known)}.")
