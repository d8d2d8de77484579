"""The policies in force, those that held before, and how new ones take their place.

What was in force since when lies in a file beside the deployment, one JSON object a line, so that whoever explains a list can say
what its parameters were before; each change is in the ledger's audit log too, with every pin and block in it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from engine.errors import NotAllowed, PolicyError, SettingsError
from engine.policy import Chain, load_policies

_log = structlog.get_logger("bodega.policies")
_LINES = 50
Chains = Mapping[str, Chain]


class HeldPolicies:
    """Shared by all threads; `chains` is replaced whole, never changed.

    Args:
        spec: settings by surface, as `load_policies` takes them.
        record: the file of what was in force; None: nothing is recorded.
        again: reads the settings anew from where they came from; None: they came from nowhere that can be read again.

    Raises:
        PolicyError: the settings are wrong.
    """

    def __init__(
        self, spec: Mapping[str, Any], record: Path | None = None, again: Callable[[], Mapping[str, Any]] | None = None
    ) -> None:
        self.chains: Chains = load_policies(spec)
        self._spec = spec
        self._record = record
        self._again = again
        self._lock = threading.Lock()
        self._before: list[tuple[datetime, Chains]] = []
        self.since: datetime | None = None

    @property
    def versions(self) -> list[str]:
        """As home@3f2a9c01."""
        return [f"{chain.name}@{chain.version}" for chain in self.chains.values()]

    def before(self) -> list[tuple[datetime, Chains]]:
        """What held before, newest first, and since when."""
        return self._before

    def reload(self, default_surface: str) -> bool:
        """Read the settings again and put them in force; where anything is wrong, what holds stays.

        Returns:
            whether anything changed.

        Raises:
            NotAllowed: there is nowhere to read them from.
            PolicyError, SettingsError: they are wrong.
        """
        if self._again is None:
            raise NotAllowed("This server's policies came from no file.", "Start it with python -m engine.serving.")
        with self._lock:
            spec = self._again()
            chains = load_policies(spec)
            if default_surface not in chains:
                raise PolicyError(
                    f"The new policies lack '{default_surface}', the default surface.",
                    f"Keep it; there are {', '.join(chains) or 'none'}.",
                )
            changed = [chain.version for chain in chains.values()] != [one.version for one in self.chains.values()]
            changed |= list(chains) != list(self.chains)
            self.chains, self._spec = chains, spec
        return changed

    def remember(self) -> dict[str, Any] | None:
        """Write down what is in force from now on, if it is not what was.

        Returns:
            what the audit log is to say of it; None where nothing changed.

        Raises:
            SettingsError: the file cannot be written.
        """
        if self._record is None:
            return None
        with self._lock:
            spec = json.loads(json.dumps(self._spec, default=str))
            try:
                told, new = _noted(self._record, spec)
            except OSError as error:
                raise SettingsError(
                    f"{self._record} cannot be written: {error}.", "Check out= and its disk."
                ) from error
            self.since = told[-1][0]
            self._before = [(since, chains) for since, old in reversed(told[:-1]) if (chains := _chains(old))]
            return {"policies": self.versions, **_terms(self.chains)} if new else None


def _line(line: str) -> tuple[datetime, Mapping[str, Any]] | None:
    """One line; None where it is not what is written here: a history that lost a line still tells the others."""
    try:
        told = json.loads(line)
        return datetime.fromisoformat(told["since"]), told["policy"]
    except (ValueError, TypeError, KeyError):
        return None


def _noted(path: Path, spec: Mapping[str, Any]) -> tuple[list[tuple[datetime, Mapping[str, Any]]], bool]:
    """All that held, oldest first, this last; and whether it is new. Processes take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        lines = path.read_text().splitlines() if path.exists() else []
        told = [found for line in lines if (found := _line(line)) is not None]
        if told and told[-1][1] == spec:
            return told, False
        told = [*told, (datetime.now(UTC), spec)][-_LINES:]
        growing = path.with_name(f".{path.name}.part")
        with growing.open("w") as file:
            file.writelines(json.dumps({"since": since.isoformat(), "policy": policy}) + "\n" for since, policy in told)
            file.flush()
            os.fsync(file.fileno())
        growing.replace(path)
        return told, True


def _chains(spec: Mapping[str, Any]) -> Chains | None:
    """Of older settings; None where a rule of then is not there any more."""
    try:
        return load_policies(spec)
    except PolicyError as error:
        _log.warning("policy_of_before_unreadable", error=error.message)
        return None


def _terms(chains: Chains) -> dict[str, Any]:
    """Pins and blocks by surface, with their last days and reasons."""
    told: dict[str, Any] = {}
    for chain in chains.values():
        for rule in chain.rules:
            for kind in ("pins", "blocks"):
                if terms := getattr(rule, kind, None) if rule.name == kind else None:
                    told.setdefault(kind, {})[chain.name] = [{key: str(term[key]) for key in term} for term in terms]
    return told
