"""Nightly step 6 of 6: ask the gates, write the snapshot, and move the pointer.

Run it alone, after evaluate:  python -m jobs.publish data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from engine.activity.parts import PartStore
from engine.errors import GateBlocked, NoSnapshot, RunLocked
from engine.evaluation.gates import broken_gates, gone_back
from engine.snapshot import Manifest, Registry, read_manifest
from jobs.assemble import assemble
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import FULL, Night, moment, night
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import StageManifest, finished, run_lock, stage

__all__ = ["main", "publish"]


def publish(this: Night, cluster: Cluster) -> StageManifest:
    """Publish the second fit, unless a gate says no.

    Raises:
        GateBlocked: names each gate that is broken, the bound and by how much; yesterday's snapshot stays.
    """
    settings = this.settings
    rank, evaluation = finished(this.folder, "rank"), finished(this.folder, "evaluate")
    registry = Registry(settings.store.snapshots)
    serving = _serving(registry)
    people = sum(facts["users"] for name, facts in rank.shards.items() if name.startswith(f"{FULL}-"))
    items = finished(this.folder, "ingest").facts["items"]
    today = dict(evaluation.facts["metrics"]) | {"people": float(people), "items": float(items)}
    inputs = this.after("rank", "evaluate")
    with stage(this.folder, "publish", inputs, {"gates": asdict(settings.gates), "force": settings.force}) as work:
        snapshot = finished(this.folder, "publish").facts["snapshot"] if work.whole else ""
        if snapshot and snapshot in {manifest.snapshot_id for manifest in registry.list()}:
            now = serving.snapshot_id if serving is not None else "nothing"
            say(f"publish: {snapshot} is there already" + ("" if now == snapshot else f"; {now} serves"))
            return finished(this.folder, "publish")
        broken = broken_gates(today, serving.metrics if serving is not None else None, settings.gates)
        as_of = moment(finished(this.folder, "ingest").facts["as_of"])
        broken += gone_back(as_of, serving.as_of if serving is not None else None)
        if broken and not settings.force:
            raise GateBlocked(
                f"{len(broken)} gate(s) are broken: {'; '.join(broken)}.",
                "Look into it; yesterday's snapshot serves on. Publish all the same with force=REASON.",
            )
        staged = registry.stage()
        try:
            assemble(this, FULL, staged, today)
            # Gated against one snapshot, published after that one: another publisher in between is a conflict.
            manifest = registry.publish(staged, serving.snapshot_id if serving is not None else "")
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        registry.sweep(settings.store.keep)
        forget_runs(this)
        say(f"publish: {manifest.snapshot_id}, {people} people, {items} items")
        facts = {"snapshot": manifest.snapshot_id, "broken": broken, "forced": settings.force if broken else ""}
        return work.finish(facts)


def _serving(registry: Registry) -> Manifest | None:
    try:
        return read_manifest(registry.root / registry.current())
    except NoSnapshot:
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
    with night(settings) as (this, cluster):
        publish(this, cluster)


if __name__ == "__main__":
    main()
