"""A night's figures and lists are looked at before it is published: what is broken leaves yesterday serving, and force is kept.

The session's night is published again and again here, each time over a yesterday of its own, in this process and without Ray;
one night is run as a scheduler would run it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import jobs.publish as publishing
from engine.consent import Change, Ledger
from engine.errors import GateBlocked, LedgerUnavailable, SettingsError
from engine.snapshot import About, Manifest, Registry
from engine.snapshot.layout import MANIFEST
from engine.snapshot.writer import write_text
from jobs.audit import actor
from jobs.force import check_reason
from jobs.launch import SCHEMA, typed
from jobs.night import Night, opened_ledger
from jobs.settings import Settings
from jobs.stage import finished
from tests.nights import SMALL, SmallShop


@dataclass
class Deployment:
    """A copy of the session's night and of the snapshot that it came to."""

    out: Path
    shop: Path
    manifest: Manifest

    @property
    def run(self) -> Path:
        return self.out / "runs" / self.manifest.lineage.run

    @property
    def registry(self) -> Registry:
        return Registry(self.out / "snapshots")

    def settings(self, *overrides: str) -> Settings:
        from hydra import compose, initialize_config_dir
        from hydra.core.config_store import ConfigStore

        import conf

        ConfigStore.instance().store(name=SCHEMA, node=Settings)
        given = (f"out={self.out}", f"data.path={self.shop}", *SMALL, *overrides)
        with initialize_config_dir(next(iter(conf.__path__)), version_base="1.3"):
            made: Settings = typed(compose("publish", overrides=list(given)), Settings)
        return made

    def night(self, *overrides: str) -> Night:
        ingest, rank = finished(self.run, "ingest"), finished(self.run, "rank")
        made = Night(self.settings(*overrides), self.run, ingest.inputs, self.manifest.lineage.ledger_sequence, 0.0)
        made.plugins = rank.inputs["plugins"]
        return made

    def publish(self, *overrides: str) -> Any:
        return publishing.publish(self.night(*overrides), None)  # type: ignore[arg-type]

    def blocked(self, *overrides: str) -> str:
        """Publish, be refused with nothing left behind, and say why."""
        before, files = self.registry.current(), sorted(self.listing())
        with pytest.raises(GateBlocked) as caught:
            self.publish(*overrides)
        assert caught.value.exit_code == 6 and "force=REASON" in caught.value.remedy
        assert self.registry.current() == before and sorted(self.listing()) == files
        assert not (self.run / "publish" / "_stage.json").exists()
        return caught.value.message

    def listing(self) -> list[str]:
        return [str(path) for path in (self.out / "snapshots").rglob("*") if path.name != ".lock"]

    def yesterday(self, days: float = 0.0, protocol: str | None = None, **metrics: float | None) -> str:
        """Serve the night's own snapshot with other figures, as if made some days before."""
        about = About(**{each.name: getattr(self.manifest, each.name) for each in fields(About)})
        figures = {**about.metrics, **{name.replace("__", "."): value for name, value in metrics.items()}}
        lineage = about.lineage if protocol is None else replace(about.lineage, protocol=protocol)
        about = replace(
            about,
            as_of=about.as_of - timedelta(days=days),
            lineage=replace(lineage, run="yesterday"),
            metrics={name: value for name, value in figures.items() if value is not None},
        )
        staged = self.registry.stage()
        source = self.out / "snapshots" / self.manifest.snapshot_id
        shutil.copytree(source, staged, dirs_exist_ok=True)
        write_text(staged / MANIFEST, Manifest.of(about, self.manifest.files, self.manifest.counts).to_json())
        return self.registry.publish(staged).snapshot_id

    def log_facts(self, change: Callable[[dict[str, Any]], Any]) -> Any:
        """Change what ingest said of the log."""
        path = self.run / "ingest" / "_stage.json"
        told = json.loads(path.read_text())
        result = change(told["facts"])
        path.write_text(json.dumps(told))
        return result


@pytest.fixture
def deployed(small_shop: SmallShop, first_night: Any, tmp_path: Path) -> Iterator[Deployment]:
    out, name = tmp_path / "out", first_night.last_line["snapshot"]
    manifest = Registry(small_shop.out / "snapshots").manifest(name)
    for part in ("keys", f"runs/{manifest.lineage.run}", f"snapshots/{name}"):
        shutil.copytree(small_shop.out / part, out / part)
    shutil.copy(small_shop.out / "consent.db", out / "consent.db")
    shutil.rmtree(out / "runs" / manifest.lineage.run / "publish")
    yield Deployment(out, small_shop.out / "shop", manifest)


def without_grants(shop: Path) -> str:
    """Someone of the log who granted nothing."""
    granted = set(pq.read_table(shop / "grants.parquet")["user_id"].to_pylist())
    users = pq.read_table(shop / "log", columns=["user_id"])["user_id"].unique().to_pylist()
    return next(each for each in sorted(filter(None, users)) if each not in granted)


def test_the_same_night_comes_to_the_same_snapshot_whatever_served_before(deployed):
    deployed.yesterday(days=1)
    done = deployed.publish()
    assert done.facts["snapshot"] == deployed.manifest.snapshot_id == deployed.registry.current()
    assert (done.facts["broken"], done.facts["forced"]) == ([], "")
    again = deployed.publish()
    assert again.facts == done.facts


def test_the_manifest_has_every_figure_that_tomorrow_is_held_against(deployed):
    figures, lineage = deployed.manifest.metrics, deployed.manifest.lineage
    assert (
        figures["people"] == deployed.manifest.counts["users"] and figures["items"] == deployed.manifest.counts["items"]
    )
    assert figures["size.bytes"] == sum(entry.bytes for entry in deployed.manifest.files.values())
    assert figures["size.bytes_per_person"] == figures["size.bytes"] / figures["people"]
    lanes = {
        name: value for name, value in figures.items() if name.startswith("lane_share.") and not name.endswith(".se")
    }
    assert sum(lanes.values()) == pytest.approx(1) and lanes["lane_share.two_tower"] > 0
    assert 0 < figures["withheld_share"] < 1 and figures["sampled"] == 200
    for name in ("served.all.recall@20", "served.new.ndcg@10", "served.miscalibration", "served.tail_share"):
        assert figures[f"{name}.se"] > 0
    gap = figures["served.all.recall@20"] - figures["popularity.all.recall@20"]
    assert figures["ahead.all.recall@20"] == pytest.approx(gap)
    assert figures["served.all.people"] == figures["evaluated"] >= figures["served.new.people"] > 0
    assert re.fullmatch("[0-9a-f]{16}", lineage.protocol) and lineage.forced == ""


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"people": 1000.0}, "people: 258, at least 500 expected, missed by 242 (48.4 %); yesterday 1000"),
        ({"people": 100.0}, "people: 258, at most 200 expected"),
        ({"served__coverage": 1.9}, "served.coverage: "),
        ({"served__all__recall@20": 0.99}, "served.all.recall@20: "),
        ({"lane_share__two_tower": 0.95}, "lane_share.two_tower: "),
        ({"size__bytes": 1e8}, "size.bytes: "),
        ({"days": -2.0}, "log.days_back: 2, at most 0 expected, missed by 2; yesterday"),
    ],
)
def test_a_figure_that_fell_or_rose_too_far_since_yesterday_blocks(deployed, before, words):
    deployed.yesterday(**before)
    if "days" in before:
        words = words.partition("; yesterday")[0]
    assert words in deployed.blocked()


def test_an_empty_day_of_the_log_blocks_and_is_named(deployed):
    deployed.yesterday(days=3)
    rows = deployed.log_facts(lambda told: told["by_day"].pop("2026-01-27"))
    assert "(2026-01-27 is empty)" in deployed.blocked()
    deployed.log_facts(lambda told: told["by_day"].update({"2026-01-27": 40}))
    assert "(2026-01-27 has 40 rows where" in deployed.blocked()
    deployed.log_facts(lambda told: told["by_day"].update({"2026-01-27": rows}))
    assert deployed.publish().facts["broken"] == []


def test_a_broken_canary_blocks_by_its_name_and_its_id_is_nowhere(deployed):
    deployed.yesterday(days=1)
    user = without_grants(deployed.shop)
    canary = (f"+gates.canaries.quiet.user={user}", "+gates.canaries.quiet.profiled=true")
    message = deployed.blocked(*canary)
    assert "canary quiet on home: is not profiled, expected to be" in message and user not in message
    kept = (f"+gates.canaries.quiet.user={user}", "+gates.canaries.quiet.profiled=false")
    deployed.publish(*kept)
    table = (deployed.run / "publish" / "gates.txt").read_text()
    assert re.search(r"canary quiet on home +passed", table)
    for folder in (deployed.run, deployed.out / "snapshots"):
        assert not [path for path in folder.rglob("*") if path.is_file() and user.encode() in path.read_bytes()]


def test_a_canary_goes_by_what_the_ledger_says_now(deployed):
    deployed.yesterday(days=1)
    grants = pq.read_table(deployed.shop / "grants.parquet").to_pylist()
    user = next(
        row["user_id"] for row in grants if row["purpose"] == "profile" and row["granted"] and not row["source"]
    )
    canary = [f"+gates.canaries.regular.user={user}", "+gates.canaries.regular.profiled=true"]
    night = deployed.night(*canary)
    publishing.look(night)
    with opened_ledger(night.settings) as (ledger, keys):
        ledger.record(keys.stable.derive(user), [Change("profile", "", False)], None, "1", "person", "", None)
    assert "canary regular on home: is not profiled, expected to be" in deployed.blocked(*canary)
    publishing.look(deployed.night(*canary, "+gates.canaries.regular.granted=all"))


def test_every_broken_gate_is_told_at_once(deployed):
    deployed.yesterday(days=-1, people=1000.0)
    user = without_grants(deployed.shop)
    message = deployed.blocked(
        "gates.least_items=100000", "gates.probes.stranger_items=21", f"+gates.canaries.quiet.user={user}",
        "+gates.canaries.quiet.least_items=500",
    )  # fmt: skip
    assert message.startswith("4 gate(s) are broken: ")
    for words in (
        "people: ",
        "items: 160, at least 100000 expected",
        "log.days_back: ",
        "canary quiet on home: has 20 items",
    ):
        assert words in message
    assert message.count("BROKEN") == 0 and (deployed.run / "publish" / "gates.txt").read_text().count("BROKEN: ") == 4


def test_force_publishes_and_keeps_reason_name_and_what_was_broken(deployed, monkeypatch):
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Ledger, "audit", lambda self, *told: said.append(told))
    deployed.yesterday(people=1000.0)
    deployed.blocked()
    facts = deployed.publish("force='the north shop closed'").facts
    assert facts["forced"] == "the north shop closed" and facts["actor"] == actor()
    assert len(facts["broken"]) == 1 and facts["broken"][0].startswith("people: ")
    served = deployed.registry.manifest(deployed.registry.current())
    assert served.snapshot_id == facts["snapshot"] != deployed.manifest.snapshot_id
    assert served.lineage.forced == f"the north shop closed (by {actor()})"
    assert served.metrics == deployed.manifest.metrics
    ((action, who, detail),) = said
    assert (action, who) == ("publish_forced", actor())
    assert detail == {"run": deployed.run.name, "reason": "the north shop closed", "broken": facts["broken"]}


def test_what_cannot_be_recorded_is_not_forced(deployed, monkeypatch):
    def refuse(*_: Any) -> None:
        raise LedgerUnavailable("The ledger cannot be written.", "Free the disk.")

    monkeypatch.setattr(Ledger, "audit", refuse)
    before = deployed.yesterday(people=1000.0)
    with pytest.raises(LedgerUnavailable):
        deployed.publish("force=inventory")
    assert deployed.registry.current() == before and not list((deployed.out / "snapshots").glob(".incoming-*"))


def test_a_reason_that_was_not_needed_is_not_kept(deployed):
    deployed.yesterday(days=1)
    facts = deployed.publish("force=inventory").facts
    assert (facts["forced"], facts["actor"]) == ("", "")
    assert facts["snapshot"] == deployed.manifest.snapshot_id


@pytest.mark.parametrize("force", [" ", "\t", "true", "Yes", "1"])
def test_force_without_a_reason_is_refused(deployed, force):
    with pytest.raises(SettingsError, match="which is no reason") as caught:
        check_reason(force)
    assert caught.value.exit_code == 2


def test_a_reason_is_kept_as_it_was_given():
    assert check_reason("") == "" and check_reason(" the north shop closed ") == "the north shop closed"


def test_what_was_measured_in_another_way_is_published_with_a_note(deployed, capsys):
    deployed.yesterday(days=1, protocol="0" * 16, **{"served__all__recall@20": 0.99})
    done = deployed.publish()
    note = "yesterday's was measured in another way"
    assert f"not compared: {note}" in capsys.readouterr().err
    skipped = [each for each in done.facts["gates"] if each["why"] == note]
    assert {"served.all.recall@20", "served.miscalibration", "withheld_share"} <= {each["figure"] for each in skipped}
    assert note in (deployed.run / "publish" / "gates.txt").read_text()


def test_a_look_prints_the_table_and_changes_nothing(deployed, capsys):
    before = deployed.yesterday(days=1)
    files = sorted(deployed.listing())
    publishing.look(deployed.night())
    assert re.search(r"people_fall +people +258 +258 +>= 129 +passed", capsys.readouterr().err)
    with pytest.raises(GateBlocked, match="items: 160, at least 999 expected"):
        publishing.look(deployed.night("gates.least_items=999"))
    assert "BROKEN: items: 160" in capsys.readouterr().err
    assert deployed.registry.current() == before and sorted(deployed.listing()) == files
    assert not (deployed.run / "publish").exists()


def test_half_the_people_an_empty_day_and_a_broken_canary_stop_a_real_night(deployed, tmp_path):
    before = deployed.yesterday(run=None)
    user = without_grants(deployed.shop)
    shop = tmp_path / "shop"
    shutil.copytree(deployed.shop, shop)
    kept = set(pq.read_table(shop / "grants.parquet")["user_id"].unique().to_pylist()[::3]) | {user}
    for path in sorted((shop / "log").rglob("*.parquet")):
        rows = pq.ParquetFile(path).read()
        pq.write_table(rows.filter(pc.is_in(rows["user_id"], value_set=pa.array(sorted(kept)))), path)
    last = max(path.name for path in (shop / "log").iterdir())
    assert last == "date=2026-01-28"
    (shop / "log" / "date=2026-01-29").mkdir()
    pq.write_table(rows.slice(0, 0), shop / "log" / "date=2026-01-29" / path.name)
    ran = SmallShop(deployed.out).nightly(
        f"data.path={shop}", f"+gates.canaries.quiet.user={user}", "+gates.canaries.quiet.profiled=true"
    )
    assert ran.code == 6, ran.err
    error = next(line for line in ran.err.splitlines() if line.startswith("error: "))
    for words in ("people: ", "(2026-01-29 is empty)", "canary quiet on home: is not profiled"):
        assert words in error, error
    assert deployed.registry.current() == before and user not in ran.err + ran.out
    assert not list((deployed.out / "snapshots").glob(".incoming-*"))
    (run,) = [path for path in (deployed.out / "runs").iterdir() if path != deployed.run]
    assert (run / "publish" / "gates.txt").read_text().count("BROKEN: ") >= 3
    holding = [path for path in run.rglob("*") if path.is_file() and user.encode() in path.read_bytes()]
    assert holding == []


def test_what_was_forced_and_then_cut_off_is_judged_again_as_it_was(deployed: Deployment) -> None:
    deployed.yesterday(people=10_000.0)
    forced = deployed.publish("force=a known move of the shop")
    (
        deployed.run / "publish" / "_stage.json"
    ).unlink()  # as a kill between the pointer and the end of the stage leaves it
    again = deployed.publish("force=a known move of the shop")
    assert again.facts["snapshot"] == forced.facts["snapshot"] == deployed.registry.current()
    assert again.facts["broken"] == forced.facts["broken"] != []
    assert again.facts["forced"] == "a known move of the shop"


@pytest.mark.parametrize("harm", ["a manifest", "the folder"])
def test_what_serves_and_is_damaged_does_not_keep_its_cure_out(deployed, harm):
    served = deployed.yesterday()
    folder = deployed.out / "snapshots" / served
    if harm == "a manifest":
        folder.chmod(0o755)
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text("{")
    else:
        shutil.rmtree(folder)
    snapshot = deployed.publish().facts["snapshot"]
    assert deployed.registry.current() == snapshot != served
    deployed.registry.open_current().close()
