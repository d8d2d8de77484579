"""Who allows what: the vocabulary of purposes and sources, the ledger of changes, fallback profiles, consent tokens."""

from engine.consent.changes import Change, Imported, Recorded, RecordedChange, Standing
from engine.consent.imports import KEYED_GRANTS
from engine.consent.ledger import Ledger
from engine.consent.profiles import FULL, Profile, parse_profiles
from engine.consent.tokens import consent_token, sequence_of
from engine.consent.vocabulary import PROFILE, PURPOSES, SENSITIVE, Level, Vocabulary

__all__ = [
    "FULL", "KEYED_GRANTS", "PROFILE", "PURPOSES", "SENSITIVE", "Change", "Imported", "Ledger", "Level", "Profile",
    "Recorded", "RecordedChange", "Standing", "Vocabulary", "consent_token", "parse_profiles", "sequence_of",
]  # fmt: skip
