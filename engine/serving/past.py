"""A replica of the past: one snapshot, and one person as the ledger had them at a sequence.

Lists are made on it by the very code that serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from engine.consent.changes import Held
from engine.consent.looking import LedgerView
from engine.consent.past import Past
from engine.consent.vocabulary import Level
from engine.errors import BodegaError, ConsentStale, LedgerUnavailable, SettingsError, SnapshotCorrupt
from engine.serving.replica import Replica, Served
from engine.serving.settings import ServeSettings
from engine.snapshot import Snapshot

# What a reply may say of its own moment that neither snapshot nor ledger records: it is taken from the reply.
DOUBTS = ("consent_stale", "consent_unavailable", "consent_changing", "record_damaged")
_EVERYTHING = 2**64 - 1
_TURNS = 3  # of a list that consent kept changing under; the last look decides


class PastReplica(Replica):
    """What `Recommender` asks, answered for one moment. It watches nothing and writes nothing."""

    def __init__(self, settings: ServeSettings, name: str, ledger: LedgerView, sequence: int, doubt: str = "") -> None:
        """
        Args:
            settings: of the deployment, as they were then: policies, keys, where snapshots lie.
            name: of the snapshot. sequence: of the ledger, or of the person's own last change. doubt: one of DOUBTS.

        Raises:
            ConsentError, PolicyError: the settings of consent or of a policy are wrong. NoSnapshot: it is not there.
            SnapshotCorrupt, SnapshotError: it cannot be served by these settings.
            LedgerUnavailable: the ledger names people by another key.
            SettingsError: there is no such doubt.
        """
        if doubt not in ("", *DOUBTS):
            raise SettingsError(f"There is no doubt '{doubt}'.", f"Known: {', '.join(DOUBTS)}.")
        # A folder is hashed again: what a server remembers of it is not to be believed, nor to be written.
        super().__init__(settings if "://" in settings.snapshots else replace(settings, cache=""))
        self.past: Past | None = None  # of the person asked for; None: nobody was
        self._ledger_then = ledger
        self._sequence = sequence
        self._doubt = doubt
        self._turn = 0
        self._then = self.snapshots._open(name)
        try:
            ledger.check_key(self._then.keys.stable.key_id)
        except BaseException:
            self._then.snapshot.close()
            raise
        if doubt == "record_damaged":
            self._then = replace(self._then, snapshot=_Unreadable(self._then.snapshot))

    @contextmanager
    def lease(self) -> Iterator[Served]:
        """The snapshot of then."""
        yield self._then

    def damaged(self, served: Served, error: BodegaError) -> None:
        """Nobody is told: it is not served."""

    def standing(self, key: bytes, least: int = 0) -> Held:
        """What the person allowed.

        Raises:
            ConsentStale, LedgerUnavailable: the reply says that its replica did not know; or it had to wait for a change of
                this person that the token names, and the sequence is before it.
            ConsentError: what they allowed was erased.
        """
        if self._doubt == "consent_stale":
            raise ConsentStale("The reply says so.")
        if self._doubt == "consent_unavailable":
            raise LedgerUnavailable("The reply says so.")
        self.past = self._ledger_then.standing_at(key, self._sequence)
        if self._doubt == "consent_changing" and self._turn < _TURNS:
            self._turn += 1  # each look sees something else than the one before
            return Held(key, _EVERYTHING, Level.FULL, -self._turn, 0, 0)
        if 0 < self.past.next <= least:
            raise ConsentStale("The token names a later change of this person.")
        return self.past.held

    def close(self) -> None:
        """Let go of the snapshot."""
        self._then.snapshot.close()
        super().close()


class _Unreadable(Snapshot):
    """A snapshot in which the record of whoever is asked for cannot be read."""

    def __init__(self, whole: Snapshot) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def user(self, key: bytes) -> None:
        """Nobody's."""
        raise SnapshotCorrupt("The reply says so.")

    def close(self) -> None:
        """Let go of it."""
        self._whole.close()
