"""What a list for one person may stand on now: their standing as the replica knows it, under the dial, the signals and the token.

Whatever is in doubt ends in a list that uses nothing of the person; the reason says what the doubt was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.consent.changes import ALONE, Held
from engine.consent.tokens import sequence_of
from engine.consent.vocabulary import Level, Vocabulary
from engine.errors import ConsentStale, LedgerUnavailable


class Knowing(Protocol):
    """Whoever knows what people allow: a replica now, an audit for a moment of the past."""

    vocabulary: Vocabulary

    def standing(self, key: bytes, least: int = 0) -> Held:
        """What somebody allows, a sequence included.

        Raises:
            LedgerUnavailable: nothing is known.
        """


@dataclass(frozen=True, slots=True)
class Signals:
    """Who it is for, and what the caller says of the person and the moment."""

    key: bytes | None = None  # stable; None: a stranger
    level: int = Level.UNSET
    token: str = ""
    global_privacy_control: bool = False
    minor: bool = False


@dataclass(frozen=True, slots=True)
class Footing:
    """What may be used. `reason` is empty where a profile may be, and a stable code of the proto otherwise."""

    reason: str
    level: int  # the step of the dial in force
    granted: int = 0  # mask, after the dial
    allowed: int = 0  # mask, before the dial
    sequence: int = 0  # of the consent state read
    erased_at: int = 0  # microseconds since the epoch of the person's last erasure; 0: never
    erasure: int = 0  # its sequence
    person: bytes = ALONE  # shared with linked ids
    today: int = 0  # mask of what may be used of today's events

    @property
    def profiled(self) -> bool:
        """Whether anything of the person may be used."""
        return not self.reason

    def forgets(self, as_of: int, ledger_sequence: int) -> bool:
        """Whether what a snapshot holds of the person was erased.

        Both are asked: a night that read the ledger before the erasure holds what was erased, whatever the clocks of the
        log said; and one that knew of it may still be of a time before it.

        Args:
            as_of: of the snapshot, microseconds since the epoch.
            ledger_sequence: that its night went by.
        """
        return bool(self.erasure) and (self.erasure > ledger_sequence or self.erased_at >= as_of)


STRANGER = Footing("stranger", Level.NONE)


def footing(replica: Knowing, signals: Signals, default_level: int, made_with: Vocabulary) -> Footing:
    """Say what may be used.

    Args:
        replica: gives the vocabulary and a person's standing.
        made_with: the vocabulary of the snapshot, in whose bits the answer is.
        default_level: the surface's step of the dial, for people who have set none.

    Raises:
        RequestError: the token is malformed. A ledger that fails raises nothing: it is a doubt.
    """
    least = sequence_of(signals.token) if signals.token else 0
    if signals.key is None:
        return STRANGER
    if signals.global_privacy_control:
        return Footing("global_privacy_control", Level.NONE)
    if signals.minor:
        return Footing("minor", Level.NONE)
    try:
        standing = replica.standing(signals.key, least)
    except ConsentStale:
        return Footing("consent_stale", Level.NONE)
    except LedgerUnavailable:
        return Footing("consent_unavailable", Level.NONE)
    # A caller may lower what the person chose, and never raise it.
    level = int(signals.level or standing.preference or default_level)
    if standing.preference:
        level = min(level, standing.preference)
    known = replica.vocabulary
    granted, allowed = known.under(level, standing.granted), standing.granted
    if made_with is not known:
        granted, allowed = known.translated(granted, made_with), known.translated(allowed, made_with)
    if level == Level.NONE:
        reason = "level_none"
    elif not allowed & made_with.groups:
        reason = "no_consent"
    elif level == Level.SESSION:
        reason = "level_session"
    else:
        reason = "" if granted & made_with.groups else "no_consent"
    return Footing(
        reason,
        level,
        granted,
        allowed,
        standing.sequence,
        standing.erased_at,
        standing.erasure,
        standing.person,
        allowed if level >= Level.SESSION else 0,
    )
