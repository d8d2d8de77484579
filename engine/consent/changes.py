"""What is recorded in the ledger, in which order it takes effect, and the state that it leads to.

A *state* is the text of all (purpose, source) pairs granted, sorted: `profile/app profile/web`. An *effect* is one
change as text: `+purpose/source/covers` or `-purpose/source/`. Both go by name: bits move when a vocabulary grows.

Ids that were put together share a *person*, 16 random bytes. That stands in the history as a grant of LINKED, the person in
hex in place of a source; it is part of no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from engine.errors import ConsentError
from engine.identity import KEY_BYTES

LINKED = "linked"  # no purpose of a vocabulary may be called so
ALONE = bytes(16)  # the person of an id that is linked with none
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Change:
    """One purpose granted or withdrawn for one source; an empty source means all of them.

    A grant for all sources covers those of the vocabulary at that moment: nobody agreed to a source added later. A
    withdrawal for all covers whatever there is.
    """

    purpose: str
    source: str
    granted: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answer to a call: its place in the ledger, and the receipt."""

    sequence: int
    receipt_id: str


@dataclass(frozen=True, slots=True)
class RecordedChange:
    """One line of a person's history: either a change or a new preference, the other being None."""

    sequence: int
    change: Change | None
    preference: int | None
    notice_version: str
    actor: str
    request_id: str  # empty: none was given, or imported
    receipt_id: str  # empty: imported
    imported: bool
    recorded_at: datetime
    occurred_at: datetime | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What one person allows now.

    `granted` is the mask under the ledger's vocabulary; `grants` has what is granted by name, sorted; `preference` is 0
    when unset; `sequence` is that of the person's last change, erasures included; `known` says whether they decided anything
    since the last of these. `erased_at` and `erasure` are that one's time, in microseconds since the epoch, and its sequence;
    0 where there was none. `person`: shared with the ids that it was put together with.
    """

    granted: int
    grants: tuple[Change, ...]
    preference: int
    sequence: int
    known: bool
    erased_at: int = 0
    erasure: int = 0
    person: bytes = ALONE


class Held(NamedTuple):
    """What a replica keeps of one person: as Standing, without the names of grants."""

    key: bytes
    granted: int
    preference: int
    sequence: int
    erased_at: int
    erasure: int
    person: bytes = ALONE


STRANGER = Standing(0, (), 0, 0, False)


@dataclass(frozen=True, slots=True)
class Erasure:
    """The receipt of an erasure: nothing of the person up to its time is used again, wherever it still lies."""

    receipt_id: str
    erased_at: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: people with at least one new change, rows recorded, rows that changed nothing."""

    people: int
    changes: int
    skipped: int


def in_force_order(changes: Sequence[Change]) -> list[Change]:
    """The changes of one call, in an order in which the last one on a pair is right.

    A withdrawal wins over a grant of the same pair wherever the two stand, and over a grant for all sources. A grant
    of one source that is listed after a withdrawal for all sources stands: "nothing but the web" is one call.
    """
    withdrawn = {(change.purpose, change.source) for change in changes if not change.granted}

    def yields(change: Change) -> bool:
        return change.granted and (not change.source or (change.purpose, change.source) in withdrawn)

    return sorted(changes, key=lambda change: not yields(change))


def effect_of(purpose: str, source: str, granted: bool, covers: str) -> str:
    """A change as text; `covers` are the sources that a grant for all sources extends to, joined by spaces."""
    return f"{'+' if granted else '-'}{purpose}/{source}/{covers}"


def parse_effect(effect: str) -> tuple[bool, str, list[str] | None]:
    """Granted, purpose, and the sources it touches: None is every source there is.

    Raises:
        ValueError: the text is not an effect.
    """
    purpose, source, covers = effect[1:].split("/")
    granted = effect.startswith("+")
    if source:
        return granted, purpose, [source]
    return granted, purpose, covers.split() if granted else None


@lru_cache(1 << 14)  # people choose alike: an import of a million comes down to a few dozen
def advance(state: str, effects: tuple[str, ...]) -> str:
    """The state after some effects, in their order."""
    held = set(state.split())
    for effect in effects:
        granted, purpose, sources = parse_effect(effect)
        if sources is None:
            held = {pair for pair in held if not pair.startswith(purpose + "/")}
        elif granted:
            held.update(f"{purpose}/{source}" for source in sources)
        else:
            held.difference_update(f"{purpose}/{source}" for source in sources)
    return " ".join(sorted(held))


def grants_in(state: str) -> tuple[Change, ...]:
    """The grants of a state.

    Raises:
        ValueError: the text is not a state.
    """
    pairs = (pair.split("/") for pair in state.split())
    return tuple(Change(purpose, source, True) for purpose, source in pairs)


def holds(state: str, change: Change) -> bool:
    """Whether a state has a grant that a change is about."""
    about = f"{change.purpose}/{change.source}"
    return any(pair == about if change.source else pair.startswith(about) for pair in state.split())


def recorded_change(row: Any) -> RecordedChange:
    """A row of the table `consent_changes`."""
    return RecordedChange(
        sequence=row.sequence,
        change=Change(row.purpose, row.source, row.granted) if row.purpose else None,
        preference=row.preference,
        notice_version=row.notice_version,
        actor=row.actor,
        request_id=row.request_id or "",
        receipt_id=row.receipt_id or "",
        imported=row.imported,
        recorded_at=moment(row.recorded_at),
        occurred_at=None if row.occurred_at is None else moment(row.occurred_at),
    )


def checked_key(key: bytes) -> None:
    """Refuse what is no user key.

    Raises:
        ConsentError: it is not 16 bytes.
    """
    if len(key) != KEY_BYTES:
        raise ConsentError(f"A user key has {KEY_BYTES} bytes, found {len(key)}.", "Derive it with UserKeys.stable.")


def checked_texts(*texts: str) -> None:
    """Refuse texts that not every store keeps.

    Raises:
        ConsentError: one is not Unicode, or holds NUL.
    """
    joined = "".join(texts)
    try:
        joined.encode()
    except UnicodeEncodeError:
        raise ConsentError("The notice version, actor or request id is not valid Unicode.", "Send UTF-8.") from None
    if "\0" in joined:
        raise ConsentError("The notice version, actor or request id holds a NUL character.", "Send it without.")


def when_occurred(at: datetime | None) -> int | None:
    """Microseconds since the epoch of when somebody decided.

    Raises:
        ConsentError: the time has no zone.
    """
    if at is not None and at.tzinfo is None:
        raise ConsentError(f"The time {at} has no time zone.", "Give it one, UTC for choice.")
    return None if at is None else micros(at)


def now_micros() -> int:
    """This moment, microseconds since the epoch."""
    return micros(datetime.now(UTC))


def micros(time: datetime) -> int:
    """Microseconds since the epoch of a time with a zone."""
    return (time - _EPOCH) // _MICROSECOND


def moment(since: int) -> datetime:
    """The time, in UTC, that lies so many microseconds after the epoch."""
    return _EPOCH + since * _MICROSECOND
