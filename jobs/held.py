"""What a deployment holds of people: how many, for what, since and until when, copy by copy. Names nobody, changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.consent import MODEL_BOUND
from engine.consent.looking import LedgerView
from engine.consent.people import load
from engine.errors import BodegaError
from engine.schema import NEVER
from engine.snapshot import Manifest, Registry
from jobs import copies
from jobs.audit import registry_of, there
from jobs.copies import BEYOND, RunFiles
from jobs.night import moment, table
from jobs.receipt import composed
from jobs.settings import Settings
from jobs.tables import print_table


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy. people: distinct ones; None: it cannot be looked into, and `note` says why. oldest: day of the oldest content,
    by event where there are several. until: when it goes. bytes: on disk; None: not known.
    """

    copy: str
    people: int | None
    purposes: str
    oldest: str
    until: str
    bytes: int | None
    note: str = ""


def held(out: Path, overrides: Sequence[str], store: str) -> list[Copy]:
    """What is held over everybody.

    Args:
        out: the deployment's folder. overrides: settings of conf/nightly.yaml. store: of snapshots; '' is the settings'.

    Raises:
        SettingsError: a setting is wrong, or there is no ledger. LedgerUnavailable: it cannot be read.
    """
    settings = composed(out.resolve(), overrides)
    there(settings.store.ledger)
    registry = registry_of(settings, store)
    with contextlib.closing(LedgerView.open(settings.store.ledger, settings.consent.vocabulary())) as ledger:
        found = [_ledger(ledger)]
        found += _parts(settings)
        stages = list(copies.stages_of(Path(settings.out) / "runs"))
        found += [_stage(each, settings) for each in stages if each.files or each.by_place]
        found += _snapshots(registry, settings, stages)
        found += _models(ledger, registry, stages)
    found += _cache(Path(settings.store.cache))
    return found + [Copy(name, None, "", "", "", None, f"not looked into: {why}") for name, why in BEYOND]


def show(found: Sequence[Copy], as_json: bool) -> None:
    """Print it, as a table or as JSON."""
    if as_json:
        print(copies.plain_json([asdict(each) for each in found]))
        return
    rows = [
        (
            each.copy,
            "?" if each.people is None else f"{each.people:,}",
            each.purposes,
            each.oldest,
            each.until,
            "?" if each.bytes is None else f"{each.bytes / 2**20:,.1f}",
            each.note,
        )
        for each in found
    ]
    print_table(("copy", "people", "held for", "oldest", "kept until", "MiB", ""), rows)


def _ledger(ledger: LedgerView) -> Copy:
    amount = ledger.amount()
    granting = ", ".join(f"{purpose} {count:,}" for purpose, count in sorted(amount.granting.items())) or "nothing"
    return Copy(
        "consent ledger",
        amount.people,
        f"proof of what was decided; granted now: {granting}",
        _day(amount.oldest),
        "histories: the person's erasure; tombstones and the audit log: for good",
        amount.bytes,
        f"{amount.changes:,} changes, {amount.erased:,} people erased, {amount.audited:,} rows of the log",
    )


def _parts(settings: Settings) -> Iterator[Copy]:
    store = Path(settings.store.parts)
    known = list(copies.parts_of(store))
    if not known:
        return
    abouts = [about for _, about in known if about.generation]
    files = [store / each.generation / f"people-{run}.arrow" for each in abouts for run in range(each.runs)]
    readable = [path for path in files if copies.schema_of(path).names]
    lost = len(known) - len(abouts) + len(files) - len(readable)
    oldest = copies.oldest_by_event(abouts)
    retention = copies.retention_of(Path(settings.out) / "runs", settings.data.retention_days)
    yield Copy(
        f"parts of the log, {len(known)}",
        copies.people_in(readable),
        "the log as read, by pseudonym: what nobody granted lies here too, and no night uses it",
        _days(oldest),
        _untils(oldest, retention),
        copies.size_of(store),
        f"NOT whole: {lost} parts or files of them cannot be read" if lost else "",
    )


def _stage(stage: RunFiles, settings: Settings) -> Copy:
    purposes, oldest, until = "profile: made from the run's ingest", "", ""
    if stage.stage == "ingest":
        flags = dict.fromkeys(("trainable", "profilable"), 0)
        least: dict[str, int] = {}
        for path in stage.files:
            rows = table(path)
            for name in flags:
                flags[name] += len(rows.filter(rows[name])["user_key"].unique())
            ts = rows["ts"].cast(pa.int64()).to_numpy()
            for event, (_, first) in copies.by_event(rows["event"].to_numpy(), ts).items():
                least[event] = min(first, least.get(event, first))
        purposes = f"train {flags['trainable']:,}, profile {flags['profilable']:,} people"
        oldest, until = _days(least), _untils(least, stage.retention) + "; "
    kept = "somebody removes the named run" if stage.named else f"{settings.store.keep} newer nights have published"
    expired = sum(stage.facts.get("expired", {}).values())
    proof = f"{expired:,} rows left out as past retention" if stage.stage == "ingest" else ""
    people = copies.people_in(stage.files) if stage.files else copies.places_in(stage.by_place)
    if not stage.files:
        proof = "names nobody: by place in the run's ingest"
    return Copy(f"run {stage.run}: {stage.stage}", people, purposes, oldest, f"{until}{kept}", stage.bytes, proof)


def _snapshots(registry: Registry, settings: Settings, stages: Sequence[RunFiles]) -> Iterator[Copy]:
    manifests = registry.list()
    try:
        history = registry.history()
    except BodegaError:
        history = ()
    ingests = {each.run: each.facts.get("oldest", {}) for each in stages if each.stage == "ingest"}
    for place, each in enumerate(manifests):
        name, keep = each.snapshot_id, settings.store.keep
        if history and name == history[0]:
            until = "another serves"
        elif name in history[1:2]:
            until = "it is no longer the one to roll back to"
        else:
            until = f"{keep - place} newer ones are published" if place < keep else "the next is published"
        oldest = ingests.get(each.lineage.run)
        yield Copy(
            f"snapshot {name}",
            each.counts.get("users", 0),
            _relied_on(registry, each),
            ", ".join(f"{event} {day[:10]}" for event, day in sorted(oldest.items())) if oldest else "",
            until,
            sum(file.bytes for file in each.files.values()),
            "" if oldest else f"how old its content is, its run said, which is gone; of {each.as_of:%Y-%m-%d}",
        )


def _relied_on(registry: Registry, manifest: Manifest) -> str:
    """The purposes that something in it relies on, by the bases of its shards."""
    vocabulary = copies.vocabulary_of(manifest.vocabulary)
    if vocabulary is None:
        return "not known: its manifest has no vocabulary"
    if "://" in registry.where:
        return "profile, sensitive at most: not fetched to be looked into"
    mask = 0
    for path in sorted((registry.root / manifest.snapshot_id).glob("bases-*.arrow")):
        for basis in table(path)["basis"].to_pylist():
            mask |= basis if basis != NEVER else 0
    words = [purpose for purpose in vocabulary.purposes if mask & vocabulary.mask(purpose)]
    return ", ".join(words) or "nothing: no record relies on a grant"


def _models(ledger: LedgerView, registry: Registry, stages: Sequence[RunFiles]) -> Iterator[Copy]:
    ingests = {each.run: each for each in stages if each.stage == "ingest"}
    served = {each.lineage.run: each.snapshot_id for each in registry.list()}
    for each in stages:
        weights = sorted(each.folder.rglob("*.safetensors")) if each.stage == "train" else []
        ingest = ingests.get(each.run)
        if not weights or ingest is None:
            continue
        since = int(ingest.facts.get("ledger_sequence", 0))
        erased, first = ledger.erased_since(since)
        note = "weights cannot be looked into"
        if first is not None:
            due = first + MODEL_BOUND
            late = "OVERDUE" if due < datetime.now(UTC) and each.run in served else "due"
            note += f"; {erased:,} erased since, a fit without them is {late} {due:%Y-%m-%d}"
        trained = pa.array([], pa.binary(16))
        for path in ingest.files:
            rows = table(path)
            trained = pa.chunked_array([trained, pc.unique(rows.filter(rows["trainable"])["user_key"])]).unique()
        yield Copy(
            f"model of run {each.run}", len(trained), "train", "", "its run is removed", copies.size_of(*weights), note
        )


def _cache(cache: Path) -> Iterator[Copy]:
    for path in copies.kept_people(cache):
        try:
            people = load(path)
        except (OSError, ValueError, KeyError, TypeError):
            yield Copy(
                "replicas' standings", None, "", "", "", copies.size_of(path), "NOT looked into: it cannot be read"
            )
            continue
        told = f"as of change {people.origin.sequence:,}"
        yield Copy(
            "replicas' standings",
            len(people),
            "to enforce consent",
            told,
            "a later one is written",
            copies.size_of(path),
        )
    if found := copies.fetched(cache):
        note = "copies of snapshots of the store, or of what is on its way there"
        yield Copy(f"fetched snapshots, {len(found)}", None, "", "", "room is needed", copies.size_of(*found), note)


def _day(micros: int | None) -> str:
    return "" if micros is None else f"{moment(micros):%Y-%m-%d}"


def _days(oldest: dict[str, int]) -> str:
    return ", ".join(f"{event} {_day(when)}" for event, when in sorted(oldest.items()))


def _untils(oldest: dict[str, int], retention: dict[str, float]) -> str:
    return ", ".join(f"{event} {copies.until(event, when, retention)}" for event, when in sorted(oldest.items()))
