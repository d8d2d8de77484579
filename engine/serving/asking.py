"""What is asked for a list, and what is answered, in the engine's own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.consent.vocabulary import Level
from engine.policy import Effect
from engine.serving.reasons import Why
from engine.snapshot import Manifest

PROFILED, LIMITED, NON_PROFILED = "PROFILED", "LIMITED", "NON_PROFILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked, in the words of the proto."""

    user_id: str = ""
    surface: str = ""
    region: str = ""
    item_id: str = ""
    basket: Sequence[str] = ()
    global_privacy_control: bool = False
    minor: bool = False
    limit: int = 0
    level: int = Level.UNSET
    exclude: Sequence[str] = ()
    only_categories: Sequence[str] = ()
    diversity: float | None = None
    page_token: str = ""
    consent_token: str = ""
    seed: int = 0  # of what the policy draws; 0: nothing is drawn


@dataclass(frozen=True, slots=True)
class Line:
    """One item of a list."""

    item_id: str
    score: float
    lane: str
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A list, and how it was made."""

    lines: list[Line]
    mode: str
    reason: str
    level: int
    profile: str
    manifest: Manifest
    sequence: int
    made_us: int  # microseconds since the epoch
    policy: str
    global_privacy_control: bool
    withheld: Sequence[Effect]
    propensity: Sequence[float] = ()  # of each line, where the policy drew; else each was certain
    next_page: str = ""
    seed: int = 0  # of what was drawn
    today: int = 0  # events of today that the list goes by
