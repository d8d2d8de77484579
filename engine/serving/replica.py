"""What one server process holds: the snapshot that it serves, the ledger, the keys and the policies, and what ails it.

Watchers look at the ledger, at the pointer and at the journal of events, each in a thread of its own: fetching a snapshot may
take minutes, and consent must not wait for it.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from engine.consent.changes import ALONE, Held
from engine.consent.profiles import parse_profiles
from engine.consent.vocabulary import Vocabulary
from engine.errors import BodegaError, LedgerUnavailable, UnknownThing
from engine.identity import UserKeys
from engine.policy import Chain
from engine.serving.ledgers import ReplicaLedger
from engine.serving.live import LiveRoom
from engine.serving.policies import HeldPolicies
from engine.serving.settings import ServeSettings
from engine.serving.snapshots import Served, Snapshots, unforeseen
from engine.snapshot import Lineage

_log = structlog.get_logger("bodega.replica")
_LEDGER_CODES = ("ledger_unavailable",)
_SNAPSHOT_CODES = ("no_snapshot", "snapshot_refused", "snapshot_gone", "store_unavailable")
_EVENT_CODES = ("events_unavailable", "events_not_shipped", "today_alone")
PROBLEMS = (*_LEDGER_CODES, *_SNAPSHOT_CODES, *_EVENT_CODES, "record_damaged")  # whatever may ail a process
_JOIN_SECONDS = 5.0
__all__ = ["PROBLEMS", "Replica", "Served"]


class Replica:
    """Shared by all requests of a process. Making it reads settings and policies; `look` finds everything else.

    Args:
        again: reads the settings anew.

    Raises:
        ConsentError, PolicyError: the settings of consent or of a policy are wrong.
    """

    def __init__(self, settings: ServeSettings, again: Callable[[], ServeSettings] | None = None) -> None:
        self.settings = settings
        self.vocabulary: Vocabulary = settings.consent.vocabulary()
        parse_profiles(settings.consent.profiles, self.vocabulary)
        self.held = HeldPolicies(
            settings.policy, Path(settings.out) / "policies.jsonl", None if again is None else lambda: again().policy
        )
        self.snapshots = Snapshots(settings, self.vocabulary)
        self.started_at = datetime.now(UTC)
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # at the ledger
        self.ledger = ReplicaLedger(settings, self.vocabulary, self._night)
        self.live = LiveRoom(settings, self.vocabulary, self.standing)
        self._problems: Mapping[str, BodegaError] = {}  # replaced whole, never changed: many threads read it
        self._damaged: tuple[Served, BodegaError] | None = None  # in which somebody's record cannot be read
        self._stopping = threading.Event()
        self._watchers: list[threading.Thread] = []
        # At ledger, snapshots and events, for the first time.
        self._looked = (threading.Event(), threading.Event(), threading.Event())

    @property
    def policies(self) -> Mapping[str, Chain]:
        """By surface."""
        return self.held.chains

    def remember_policies(self) -> None:
        """Record what policies are in force from now on, where they changed. Never raises: it is in the log."""
        try:
            detail = self.held.remember()
            if detail is not None:
                self.audit("policies_loaded", detail)
        except BodegaError as error:
            _log.error("policies_not_recorded", error=error.message, remedy=error.remedy)

    def audit(self, action: str, detail: Mapping[str, Any]) -> None:
        """Record what an operator did, in the log and in the ledger's audit. It is done: a ledger that fails is told, no more."""
        _log.info(action, **detail)
        try:
            with self.ledger.at_work() as (ledger, _):
                ledger.audit(action, "operator", detail)
        except BodegaError as error:
            _log.error("audit_failed", action=action, error=error.message)

    @property
    def ready(self) -> bool:
        """Whether lists can be served: a snapshot is open, and the ledger was heard at least once."""
        return self.served is not None and self.ledger.ready

    def problems(self) -> list[tuple[str, BodegaError]]:
        """What ails this process now, as stable code and error, sorted by code."""
        found, damaged, served = dict(self._problems), self._damaged, self.served
        if damaged is not None and damaged[0] is served:
            found["record_damaged"] = damaged[1]
        return sorted(found.items(), key=lambda problem: problem[0])

    def damaged(self, served: Served, error: BodegaError) -> None:
        """Tell operators, once a snapshot, that the record of somebody in it cannot be read."""
        with self._lock:
            told = served is not self.served or (self._damaged is not None and self._damaged[0] is served)
            if not told:
                self._damaged = (served, error)
        if not told:
            self.snapshots.doubt(served)
            _log.warning("record_damaged", snapshot=served.name, error=error.message, remedy=error.remedy)

    def standing(self, key: bytes, least: int = 0) -> Held:
        """What somebody allows: `ReplicaLedger.standing`."""
        return self.ledger.standing(key, least)

    def filed_under(self, keys: UserKeys, user_id: str) -> tuple[bytes, ...]:
        """Where today's events of somebody are kept: of linked ids, under the person that they share first."""
        try:
            person = self.standing(keys.stable.derive(user_id)).person
        except LedgerUnavailable:
            person = ALONE
        return keys.filed_under(user_id, person)

    def chain(self, surface: str, field: str) -> Chain:
        """The policy of a surface; '' is the default one.

        Args:
            field: of the request, for the error.

        Raises:
            UnknownThing: there is no such surface; the remedy has the nearest one.
        """
        name = surface or self.settings.default_surface
        try:
            return self.policies[name]
        except KeyError:
            near = difflib.get_close_matches(name, self.policies, 1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            known = f"Surfaces: {', '.join(self.policies)}."
            raise UnknownThing(f"There is no surface '{name}'.", hint + known, field) from None

    @property
    def served(self) -> Served | None:
        """What is served now; hold it with `lease` to read from it."""
        return self.snapshots.served

    def lease(self) -> AbstractContextManager[Served]:
        """The snapshot in service, kept open for the block whatever is published meanwhile.

        Raises:
            NoSnapshot: there is none yet.
        """
        return self.snapshots.lease()

    def promote(self, name: str) -> Served:
        """Serve a snapshot that the registry has; in effect here at once.

        Raises:
            SnapshotError: as `Snapshots.promote`.
        """
        served = self.snapshots.promote(name)
        self._look_for_snapshots()
        return served

    def rollback(self) -> Served:
        """Serve what was served before; in effect here at once.

        Raises:
            SnapshotError: as `Snapshots.rollback`.
        """
        served = self.snapshots.rollback()
        self._look_for_snapshots()
        return served

    def look(self) -> None:
        """Take up what changed since the last look. Never raises: what went wrong is in `problems`."""
        self._look_for_ledger()
        self._look_for_snapshots()

    def watch(self, changed: Callable[[], None], patience: float) -> None:
        """Look at once, and then at the ledger every `consent_poll_seconds`, at the pointer and at the journal of events every
        `watch_seconds`, in threads of their own; call `changed` after each look.

        Args:
            patience: seconds to wait for the first looks; a snapshot that is still being fetched then is taken up later.
        """

        def run(look: Callable[[], None], done: threading.Event, pause: float) -> None:
            while not self._stopping.is_set():
                look()
                changed()
                done.set()
                self._stopping.wait(pause)

        looks = (self._look_for_ledger, self._look_for_snapshots, self._look_for_events)
        pauses = (self.settings.consent_poll_seconds, self.settings.watch_seconds, self.settings.watch_seconds)
        for look, done, pause in zip(looks, self._looked, pauses, strict=True):
            name = look.__name__.replace("_look_for_", "bodega-")
            self._watchers.append(threading.Thread(target=run, args=(look, done, pause), name=name, daemon=True))
        for watcher in self._watchers:
            watcher.start()
        until = time.monotonic() + patience
        for done in self._looked:
            done.wait(max(0.0, until - time.monotonic()))

    def wait_no_longer(self) -> None:
        """Have `watch` return, whatever was not looked at yet."""
        for done in self._looked:
            done.set()

    def close(self) -> None:
        """Stop watching and let go of everything."""
        self._stopping.set()
        for watcher in self._watchers:
            watcher.join(
                _JOIN_SECONDS
            )  # one that fetches may take longer, and holds nothing that a process needs to end
        self.live.close()
        self.snapshots.close()
        self.ledger.close()

    def _night(self) -> tuple[int, str]:
        """How far the ledger had come for the snapshot in service, and the head of its audit log there."""
        served = self.served
        lineage = served.snapshot.manifest.lineage if served is not None else Lineage(run="")
        return lineage.ledger_sequence, lineage.audit_head

    def _look_for_ledger(self, thoroughly: bool = False) -> None:
        with self._looking:
            self.ledger.look(thoroughly)
            fault = self.ledger.fault
            self._tell(_LEDGER_CODES, {} if fault is None else {"ledger_unavailable": fault})

    def _look_for_snapshots(self) -> None:
        before = self.served
        self._tell(_SNAPSHOT_CODES, _caught("snapshot_refused", self.snapshots.look))
        if self.served is not before:
            self._damaged = None
            self._look_for_ledger(thoroughly=True)  # the snapshot says how far it had come, and by which past

    def _look_for_events(self) -> None:
        self._tell(_EVENT_CODES, _caught("events_unavailable", self.live.look))

    def _tell(self, codes: Sequence[str], found: Mapping[str, BodegaError]) -> None:
        """Put what was found in the place of what was known under these codes, and log what changed."""
        with self._lock:
            before = self._problems
            self._problems = {code: error for code, error in before.items() if code not in codes} | dict(found)
        for code in codes:
            was, now = before.get(code), found.get(code)
            if now is not None and str(was) != str(now):
                _log.warning(code, error=now.message, remedy=now.remedy, reason=now.reason)
            elif now is None and was is not None:
                _log.info(f"{code}_over")


def _caught(code: str, step: Callable[[], Mapping[str, BodegaError] | None]) -> Mapping[str, BodegaError]:
    try:
        return step() or {}
    except Exception as failure:  # noqa: BLE001 - whatever happens, the watcher goes on and what serves serves on
        return {code: failure if isinstance(failure, BodegaError) else unforeseen(failure)}
