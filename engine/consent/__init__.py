"""Who allows what: the vocabulary, the ledger of changes and erasures with its audit log, fallback profiles, tokens."""

from engine.consent.audit import AuditCheck, AuditRow
from engine.consent.changes import Change, Erasure, Imported, Recorded, RecordedChange, Standing
from engine.consent.erasure import MODEL_BOUND
from engine.consent.imports import KEYED_GRANTS
from engine.consent.ledger import Ledger
from engine.consent.profiles import FULL, Profile, parse_profiles
from engine.consent.tokens import consent_token, sequence_of
from engine.consent.vocabulary import CROSS_SOURCE, PROFILE, PURPOSES, SENSITIVE, Level, Vocabulary

__all__ = [
    "CROSS_SOURCE", "FULL", "KEYED_GRANTS", "MODEL_BOUND", "PROFILE", "PURPOSES", "SENSITIVE", "AuditCheck", "AuditRow",
    "Change", "Erasure", "Imported", "Ledger", "Level", "Profile", "Recorded", "RecordedChange", "Standing", "Vocabulary",
    "consent_token", "parse_profiles", "sequence_of",
]  # fmt: skip
