"""The figures of a night that gates bound, taken from what its stages left and from the snapshot that they came to."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.evaluation.gates import Verdict, judge
from engine.evaluation.log_days import odd_days
from engine.snapshot import Manifest, Snapshot
from jobs.canaries import list_figures, sampled_keys, watch
from jobs.evaluate import surface_chain
from jobs.night import Night, moment
from jobs.stage import finished

_DAY = dt.timedelta(days=1)
_PARTITION = re.compile(r"(?:^|/)date=(\d{4}-\d{2}-\d{2})/")


@dataclass(frozen=True, slots=True)
class Figures:
    """What is stored of a night, how it was measured, and what gates and canaries say of it."""

    stored: dict[str, float]
    protocol: str
    verdicts: list[Verdict]


def night_figures(this: Night, staged: Path, serving: Manifest | None) -> Figures:
    """Measure an assembled snapshot, and hold it against the one that serves.

    Raises:
        SettingsError: a canary names a surface that is not there. LedgerUnavailable: what they granted cannot be read.
    """
    settings, evaluation = this.settings, finished(this.folder, "evaluate").facts
    told = finished(this.folder, "ingest").facts
    with Snapshot.open(staged, verify=False) as snapshot:
        keys = sampled_keys(this)
        measured = dict(evaluation["metrics"]) | contents(snapshot.manifest)
        measured |= list_figures(snapshot, surface_chain(settings), keys, told["as_of"])
        watched = watch(this, snapshot, keys)
    protocol = evaluation["protocol"]
    passing, details = log_figures(this, told, serving)
    comparable = serving is not None and serving.lineage.protocol == protocol
    yesterday = serving.metrics if serving is not None else None
    verdicts = judge(measured | passing, yesterday, settings.gates, comparable, details) + watched
    return Figures({name: value for name, value in measured.items() if math.isfinite(value)}, protocol, verdicts)


def contents(manifest: Manifest) -> dict[str, float]:
    """How much is in a snapshot, and what its night spent of the privacy budget."""
    size = float(sum(entry.bytes for entry in manifest.files.values()))
    people = manifest.counts["users"]
    figures = {
        "people": float(people),
        "items": float(manifest.counts["items"]),
        "size.bytes": size,
        "epsilon_spent": manifest.lineage.epsilon_spent,
    }
    return figures | ({"size.bytes_per_person": size / people} if people else {})


def log_figures(
    this: Night, told: Mapping[str, Any], serving: Manifest | None
) -> tuple[dict[str, float], dict[str, str]]:
    """What became of the log since the snapshot that serves, with a word on each figure. They are not stored: what serves and
    the clock are no part of the night, and a rerun must come to the same snapshot.
    """
    as_of = moment(told["as_of"])
    figures = {"log.age_days": (dt.datetime.now(dt.UTC) - as_of) / _DAY}
    if serving is None:
        return figures, {}
    figures["log.days_back"] = max((serving.as_of - as_of) / _DAY, 0.0)
    details = {
        "log.days_back": f"the log ends at {as_of.isoformat()}, that of what serves at {serving.as_of.isoformat()}"
    }
    data, gates = this.settings.data, this.settings.gates
    if data.order:  # its days are no days
        return figures, details
    # Where the night was told up to when to read, what came after is left aside on purpose.
    delivered = [] if data.as_of else [date for name in this.inputs if (date := _partition(name)) is not None]
    odd = odd_days(told["by_day"], serving.as_of, as_of, gates.day_fall, gates.noise, delivered)
    figures |= {"log.empty_days": float(len(odd.empty)), "log.thin_days": float(len(odd.thin))}
    return figures, details | {"log.empty_days": "; ".join(odd.empty), "log.thin_days": "; ".join(odd.thin)}


def _partition(name: str) -> dt.date | None:
    found = _PARTITION.search(name)
    try:
        return dt.date.fromisoformat(found[1]) if found else None
    except ValueError:
        return None
