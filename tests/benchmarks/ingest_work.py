"""What is asked of ingest and of its peers alike."""

from __future__ import annotations

from engine.schema import EVENTS

SOURCES = ("web", "app", "store", "partner")
# Impressions are most of a log and say nothing of a person: they are counted, and not carried further.
WANTED = tuple(name for name in EVENTS if name != "impression")
RETENTION = {"view": 30.0, "click": 30.0, "cart": 60.0, "dismiss": 90.0}  # days; the rest is kept
WEIGHTS = {"view": 0.1, "click": 0.2, "cart": 0.5, "purchase": 1.0, "like": 1.0, "gift": 0.0}
HALF_LIFE, HOLDOUT_DAYS = 30.0, 7.0  # of popularity; before the last event, the other moment at which it is taken
STANDINGS = "standings.arrow"  # beside the log: what the ledger holds, for those who cannot ask it
