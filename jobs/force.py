"""Publishing past a broken gate: with a reason, under a name, and never without a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from engine.errors import SettingsError
from engine.snapshot import About, Manifest, read_manifest
from engine.snapshot.layout import MANIFEST
from engine.snapshot.writer import write_text
from jobs.night import Night, opened_ledger

_NO_REASONS = ("true", "yes", "on", "1", "y")


def check_reason(force: str) -> str:
    """The reason of `force`, '' where nothing is forced.

    Raises:
        SettingsError: it is blank, or only says yes.
    """
    reason = force.strip()
    if force and (not reason or reason.lower() in _NO_REASONS):
        raise SettingsError(
            f"force is '{force}', which is no reason.", "Write force='WHY'; it is kept with the snapshot."
        )
    return reason


def sealed(staged: Path, metrics: Mapping[str, float], protocol: str, forced: str) -> Manifest:
    """Put into the manifest of a snapshot, not published yet, what only its own lists could tell, and why it is forced."""
    manifest = read_manifest(staged)
    about = About(**{each.name: getattr(manifest, each.name) for each in fields(About)})
    lineage = replace(about.lineage, protocol=protocol, forced=forced)
    made = Manifest.of(replace(about, metrics=dict(metrics), lineage=lineage), manifest.files, manifest.counts)
    write_text(staged / MANIFEST, made.to_json())
    return made


def record(this: Night, who: str, reason: str, wrong: Sequence[str]) -> None:
    """Write it into the audit log of the ledger.

    Raises:
        LedgerUnavailable: it could not be written; then nothing is published.
    """
    with opened_ledger(this.settings) as (ledger, _):
        ledger.audit("publish_forced", who, {"run": this.folder.name, "reason": reason, "broken": list(wrong)})
