"""Nightly step 6 of 6: write the snapshot, ask the gates and the canaries, and move the pointer.

python -m jobs.publish data=online_retail data.path=DIR out=OUT                   run it alone, after evaluate
python -m jobs.publish data=online_retail data.path=DIR out=OUT dry_run=true      ask, print the table, publish nothing
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from engine.activity.parts import PartStore
from engine.errors import GateBlocked, NoSnapshot, RunLocked, SnapshotCorrupt
from engine.evaluation.gates import Verdict, broken
from engine.snapshot import Manifest, Registry, read_manifest
from jobs.assemble import assemble
from jobs.audit import actor
from jobs.cluster import Cluster
from jobs.force import check_reason, record, sealed
from jobs.gate_report import brief, gate_table
from jobs.launch import recipe
from jobs.lock import run_lock
from jobs.night import FULL, Night, night
from jobs.night_figures import night_figures
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import StageManifest, finished, stage

__all__ = ["main", "publish"]
TABLE = "gates.txt"


def publish(this: Night, cluster: Cluster) -> StageManifest:
    """Publish the second fit, unless a gate or a canary says no.

    Raises:
        GateBlocked: names each that is broken, the bound and by how much; yesterday's snapshot stays.
        SettingsError: `force` is no reason.
    """
    settings = this.settings
    reason = check_reason(settings.force)
    registry = Registry(settings.store.snapshots, settings.store.cache)
    serving = _serving(registry)
    inputs = this.after("rank", "evaluate")
    with stage(this.folder, "publish", inputs, {"gates": asdict(settings.gates), "force": reason}) as work:
        snapshot = finished(this.folder, "publish").facts["snapshot"] if work.whole else ""
        if snapshot and snapshot in {manifest.snapshot_id for manifest in registry.list()}:
            now = serving or "nothing"
            say(f"publish: {snapshot} is there already" + ("" if now == snapshot else f"; {now} serves"))
            return finished(this.folder, "publish")
        with _assembled(this, registry) as staged:
            figures = night_figures(this, staged, _yesterday(registry, staged))
            (work.folder / TABLE).write_text(gate_table(figures.verdicts))
            wrong = _say(figures.verdicts, reason)
            who = actor() if wrong else ""
            sealed(staged, figures.stored, figures.protocol, f"{reason} (by {who})" if wrong else "")
            if wrong:
                record(this, who, reason, wrong)  # before the pointer moves: nothing is forced without a trace
            # Gated against one snapshot, published after that one: another publisher in between is a conflict.
            manifest = registry.publish(staged, serving)
        registry.sweep(settings.store.keep)
        forget_runs(this)
        say(f"publish: {manifest.snapshot_id}, {manifest.counts['users']} people, {manifest.counts['items']} items")
        facts = {"snapshot": manifest.snapshot_id, "broken": wrong, "forced": reason if wrong else "", "actor": who}
        return work.finish(facts | {"gates": [asdict(verdict) for verdict in figures.verdicts]})


def look(this: Night) -> None:
    """Ask the gates and the canaries, print the whole table, and publish nothing.

    Raises:
        GateBlocked: as `publish` would.
    """
    registry = Registry(this.settings.store.snapshots, this.settings.store.cache)
    with _assembled(this, registry) as staged:
        figures = night_figures(this, staged, _yesterday(registry, staged))
        say(gate_table(figures.verdicts))
        _say(figures.verdicts, check_reason(this.settings.force))


@contextlib.contextmanager
def _assembled(this: Night, registry: Registry) -> Iterator[Path]:
    """The night's snapshot in a folder of the registry, where nobody sees it; gone at the end, unless it was published."""
    staged = registry.stage()
    try:
        assemble(this, FULL, staged, {})
        yield staged
    finally:
        registry.drop(staged)


def _say(verdicts: list[Verdict], reason: str) -> list[str]:
    """Tell in short what the gates say; what is broken, where a reason lets it pass."""
    for line in brief(verdicts):
        say(line)
    wrong = broken(verdicts)
    if wrong and not reason:
        raise GateBlocked(
            f"{len(wrong)} gate(s) are broken: {'. '.join(wrong)}.",
            "Look into it; yesterday's snapshot serves on. Publish all the same with force=REASON.",
        )
    for each in wrong:
        say(f"publish: forced past {each}")
    return wrong


def _serving(registry: Registry) -> str:
    """The id that the pointer names, whole or not: what is damaged must not keep its cure out."""
    try:
        return registry.current()
    except NoSnapshot:
        return ""


def _yesterday(registry: Registry, staged: Path) -> Manifest | None:
    """The newest that was served and is not this very night: what a kill cut off after the pointer had moved must, run
    again, be judged as it was the first time.
    """
    tonight = read_manifest(staged)
    ours = (tonight.lineage.run, tonight.files)
    with contextlib.suppress(NoSnapshot):
        for name in registry.history():
            try:
                served = registry.manifest(name)
            except (NoSnapshot, SnapshotCorrupt) as error:
                say(f"publish: {name} cannot be compared with: {error.message}")
                continue
            if (served.lineage.run, served.files) != ours:
                return served
    return None


def forget_runs(this: Night) -> None:
    """Remove old nights, and parts of the log that none uses: what they hold of people is not kept longer than the
    snapshots are. Named runs stay.
    """
    nights = [path for path in this.folder.parent.glob("night-*") if path != this.folder]
    for folder in sorted(nights, key=lambda path: path.stat().st_mtime, reverse=True)[this.settings.store.keep :]:
        with contextlib.suppress(RunLocked), run_lock(folder):
            shutil.rmtree(folder)
    used: set[str] = set()
    for path in this.folder.parent.glob("*/ingest/_stage.json"):
        with contextlib.suppress(FileNotFoundError):  # another night removed it just now
            used |= set(json.loads(path.read_text())["facts"].get("parts", ()))
    PartStore(Path(this.settings.store.parts)).sweep(used)


@recipe("publish")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings, begins=False, looks=True) as (this, cluster):
        if settings.dry_run:
            look(this)
        else:
            publish(this, cluster)


if __name__ == "__main__":
    main()
