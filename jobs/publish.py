"""Nightly step 6 of 6: ask the gates, write the snapshot, and move the pointer.

Run it alone, after evaluate:  python -m jobs.publish data=online_retail data.path=DIR out=OUT
"""

from __future__ import annotations

import shutil
from dataclasses import asdict

from engine.errors import GateBlocked, NoSnapshot
from engine.evaluation.gates import broken_gates
from engine.snapshot import Registry, read_manifest
from jobs.assemble import assemble
from jobs.cluster import Cluster
from jobs.launch import recipe
from jobs.night import FULL, Night, night
from jobs.progress import say
from jobs.settings import Settings
from jobs.stage import StageManifest, finished, stage

__all__ = ["main", "publish"]


def publish(this: Night, cluster: Cluster) -> StageManifest:
    """Publish the second fit, unless a gate says no.

    Raises:
        GateBlocked: names each gate that is broken, the bound and by how much; yesterday's snapshot stays.
    """
    settings = this.settings
    rank, evaluation = finished(this.folder, "rank"), finished(this.folder, "evaluate")
    registry = Registry(settings.store.snapshots)
    yesterday = _serving(registry)
    people = sum(facts["users"] for name, facts in rank.shards.items() if name.startswith(f"{FULL}-"))
    items = finished(this.folder, "ingest").facts["items"]
    today = dict(evaluation.facts["metrics"]) | {"people": float(people), "items": float(items)}
    inputs = {"rank": rank.fingerprint, "evaluate": evaluation.fingerprint}
    with stage(this.folder, "publish", inputs, {"gates": asdict(settings.gates), "force": settings.force}) as work:
        snapshot = finished(this.folder, "publish").facts["snapshot"] if work.whole else ""
        if snapshot and snapshot in {manifest.snapshot_id for manifest in registry.list()}:
            say(f"publish: {snapshot} is there already")
            return finished(this.folder, "publish")
        broken = broken_gates(today, yesterday, settings.gates)
        if broken and not settings.force:
            raise GateBlocked(
                f"{len(broken)} gate(s) are broken: {'; '.join(broken)}.",
                "Look into it; yesterday's snapshot serves on. Publish all the same with force=REASON.",
            )
        staged = registry.stage()
        try:
            assemble(this, FULL, staged, today)
            manifest = registry.publish(staged)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        say(f"publish: {manifest.snapshot_id}, {people} people, {items} items")
        facts = {"snapshot": manifest.snapshot_id, "broken": broken, "forced": settings.force if broken else ""}
        return work.finish(facts)


def _serving(registry: Registry) -> dict[str, float] | None:
    try:
        return dict(read_manifest(registry.root / registry.current()).metrics)
    except NoSnapshot:
        return None


@recipe("publish")
def main(settings: Settings) -> None:
    """The command."""
    with night(settings) as (this, cluster):
        publish(this, cluster)


if __name__ == "__main__":
    main()
