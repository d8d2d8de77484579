"""What a deployment holds of one person, copy by copy. The user id goes no further than its two keys, and neither is printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.activity.parts import PartStore, Run
from engine.consent import MODEL_BOUND, Change, Level, Vocabulary
from engine.consent.changes import LINKED
from engine.consent.looking import LedgerView
from engine.consent.people import load
from engine.errors import SnapshotError
from engine.identity import UserKeys
from engine.snapshot import Manifest, Registry, Snapshot, UserRecord
from jobs import copies
from jobs.audit import registry_of, there
from jobs.copies import BEYOND, basis_words
from jobs.night import moment
from jobs.receipt import composed, known_of
from jobs.settings import Settings
from jobs.tables import print_table

Told = dict[str, Any]


def held_of(out: Path, overrides: Sequence[str], store: str, user: str) -> Told:
    """What is held of one person.

    Args:
        out: the deployment's folder. overrides: settings of conf/nightly.yaml. store: of snapshots; '' is the settings'.
        user: the user id, as in the logs.

    Returns:
        What JSON can hold: consent, snapshots, parts, runs, models, replicas, and in not_looked_into what nothing is said of.

    Raises:
        SettingsError: a setting is wrong, or there is no ledger or key. RequestError: the user id cannot be one.
        LedgerUnavailable: the ledger cannot be read, or names people by another key.
    """
    settings = composed(out.resolve(), overrides)
    there(settings.store.ledger)
    keys = UserKeys.load(settings.store.keys)
    stable, rotating = keys.stable.derive(user), keys.rotating.derive(user)
    registry = registry_of(settings, store)
    unseen = [f"{name}: {why}" for name, why in BEYOND]
    with contextlib.closing(LedgerView.open(settings.store.ledger, settings.consent.vocabulary())) as ledger:
        ledger.check_key(keys.stable.key_id)
        consent = _consent(ledger, stable)
        erasures = ledger.erasures(stable)
        persons = {
            each.change.source for each in known_of(ledger, stable)[1] if each.change and each.change.purpose == LINKED
        }
    if erasures:
        unseen.append(
            "what was made of this id together with others it was linked with before its erasure: the ledger no longer says "
            "where that lies; no list uses it, and it goes with the snapshots and runs that hold it"
        )
    # What was made of linked ids together lies under the persons that they shared, the past ones as well.
    filed = [rotating, *sorted(keys.rotating.of_person(bytes.fromhex(person)) for person in persons)]
    runs = [each for key in filed for each in _runs(Path(settings.out) / "runs", key, unseen)]
    return {
        "consent": consent,
        "snapshots": list(_snapshots(registry, keys, filed, unseen)),
        "parts": _parts(settings, rotating, unseen),
        "runs": [each for each in runs if each["rows"]],
        "models": [_model(each, erasures) for each in runs if each["trained_on"]],
        "replicas": list(_replicas(Path(settings.store.cache), stable, unseen)),
        "not_looked_into": list(dict.fromkeys(unseen)),
    }


def _consent(ledger: LedgerView, key: bytes) -> Told:
    standing, history = known_of(ledger, key)
    grants = []
    for grant in standing.grants:
        # A grant for all sources counts for each; the standing says whether it still holds.
        by = [each for each in history if each.change and each.change.granted and _about(each.change, grant)]
        since: Told = {}
        if by:
            told = by[-1].occurred_at or by[-1].recorded_at
            since = {"since": told.isoformat(), "notice_version": by[-1].notice_version}
        grants.append({"purpose": grant.purpose, "source": grant.source} | since)
    return {
        "known": standing.known,
        "grants": grants,
        "preference": Level(standing.preference).name.lower(),
        "last_change": standing.sequence,
        "linked_ids": len(ledger.links.others(key)),
        "changes": len(history),
        "first_change": history[0].recorded_at.isoformat() if history else "",
        "erasures": [{"change": at, "at": when.isoformat()} for at, when in ledger.erasures(key)],
    }


def _about(change: Change, grant: Change) -> bool:
    return change.purpose == grant.purpose and change.source in ("", grant.source)


def _snapshots(registry: Registry, keys: UserKeys, filed: Sequence[bytes], unseen: list[str]) -> Iterator[Told]:
    """Those that hold a record of the person; those that could not be asked are named."""
    for manifest in registry.list():
        name, written_with = manifest.snapshot_id, manifest.lineage.key_id
        if "://" in registry.where:
            unseen.append(f"snapshot {name}: it lies in an object store, and is not fetched for this")
            continue
        if written_with not in ("", keys.rotating.key_id):
            unseen.append(f"snapshot {name}: it names people by the rotating key {written_with}, which is not here")
            continue
        try:
            with registry.open(name, verify=False) as snapshot:
                for record in filter(None, map(snapshot.user, filed)):
                    yield {"snapshot": name, "of": manifest.as_of.isoformat()} | _record(snapshot, manifest, record)
        except SnapshotError as error:
            unseen.append(f"snapshot {name}: {error.message}")


def _record(snapshot: Snapshot, manifest: Manifest, record: UserRecord) -> Told:
    vocabulary = copies.vocabulary_of(manifest.vocabulary)
    candidates, sums, seen, mix, cadence = record.candidates, record.sums, record.seen, record.mix, record.cadence
    best = candidates.basis[:, 0] if len(candidates) else np.empty(0, np.uint64)
    return {
        "candidates": _relying(vocabulary, best),
        "sums": [
            {"of": _words(vocabulary, vocabulary.group_bases[group].item() if vocabulary else 0), "up_to": _day(last)}
            for group, last in zip(sums.group.tolist(), sums.last.tolist(), strict=True)
        ],
        "seen": _relying(vocabulary, seen.basis),
        "mix": _relying(vocabulary, mix.basis),
        "cadence": _relying(vocabulary, cadence.basis),
    }


def _relying(vocabulary: Vocabulary | None, bases: NDArray[np.uint64]) -> list[Told]:
    """How many rows rely on what; of a candidate, the way that is best for everything granted."""
    masks, counts = np.unique(bases, return_counts=True)
    return [
        {"rows": count, "relies_on": _words(vocabulary, mask)}
        for mask, count in zip(masks.tolist(), counts.tolist(), strict=True)
    ]


def _words(vocabulary: Vocabulary | None, mask: int) -> list[str]:
    return basis_words(vocabulary, mask) if vocabulary else [f"bits {mask:b}, which no vocabulary names"]


def _parts(settings: Settings, key: bytes, unseen: list[str]) -> list[Told]:
    """Rows by event over all parts of the log, whatever was granted."""
    store = PartStore(Path(settings.store.parts))
    counts: dict[str, dict[str, int]] = {}
    oldest: dict[str, int] = {}
    for name, about in copies.parts_of(store.root):
        try:
            if not about.generation:
                raise ValueError("it does not say what it is")
            mine = [_rows(store.run(name, number), key) for number in range(about.runs)]
            if mine:
                event, ts = (np.concatenate(each) for each in zip(*mine, strict=True))
                for kind, (count, first) in copies.by_event(event, ts).items():
                    # A replaced generation, until it is swept, has the same rows as the one in its place, and more.
                    part = name.rpartition(".")[0]
                    counts.setdefault(kind, {})[part] = max(count, counts.get(kind, {}).get(part, 0))
                    oldest[kind] = min(first, oldest.get(kind, first))
        except (OSError, ValueError, pa.ArrowException) as error:
            unseen.append(f"part {name}: {error.__class__.__name__}")
    retention = copies.retention_of(Path(settings.out) / "runs", settings.data.retention_days)
    return [
        {
            "event": kind,
            "rows": sum(counts[kind].values()),
            "oldest": _day(when),
            "until": copies.until(kind, when, retention),
        }
        for kind, when in sorted(oldest.items())
    ]


def _rows(run: Run, key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Events and times of one person in a run of a part."""
    wanted = np.array([key], run.keys.dtype)
    place = int(np.searchsorted(run.keys, wanted)[0])
    if place == len(run.keys) or run.keys[place] != wanted[0]:
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    start, end = int(run.ends[place - 1]) if place else 0, int(run.ends[place])
    return run.column("event")[start:end], run.column("ts")[start:end]


def _runs(folder: Path, key: bytes, unseen: list[str]) -> Iterator[Told]:
    """Each stage that holds rows of the person, and each run whose model was fitted on some."""
    for each in copies.stages_of(folder):
        rows, trained, events = 0, 0, []
        try:
            for path in each.files:
                mine = copies.rows_of(path, key)
                rows += mine.num_rows
                if each.stage == "ingest" and mine.num_rows:
                    trained += len(mine.filter(mine["trainable"]))
                    ts = mine["ts"].cast(pa.int64()).to_numpy()
                    for kind, (count, first) in copies.by_event(mine["event"].to_numpy(), ts).items():
                        end = copies.until(kind, first, each.retention)
                        events.append({"event": kind, "rows": count, "oldest": _day(first), "until": end})
        except (OSError, pa.ArrowException) as error:
            unseen.append(f"run {each.run}, {each.stage}: {error.__class__.__name__}")
        if each.by_place and not each.files:
            unseen.append(
                f"run {each.run}, {each.stage}: it goes by places in the run's ingest, and has rows of who is there"
            )
        told: Told = {"run": each.run, "stage": each.stage, "rows": rows, "events": events, "trained_on": trained}
        model = each.folder.parent / "train"
        yield told | {
            "kept": "until somebody removes the named run"
            if each.named
            else "until enough newer nights have published",
            "trained_on": trained if any(model.rglob("*.safetensors")) else 0,
        }


def _model(run: Told, erasures: Sequence[tuple[int, datetime]]) -> Told:
    told = {"run": run["run"], "events": run["trained_on"], "inside": "weights cannot be looked into"}
    return told | ({"due": (erasures[-1][1] + MODEL_BOUND).isoformat()} if erasures else {})


def _replicas(cache: Path, key: bytes, unseen: list[str]) -> Iterator[Told]:
    for path in copies.kept_people(cache):
        try:
            people = load(path)
        except (OSError, ValueError, KeyError, TypeError):
            unseen.append("replicas' standings: the file cannot be read")
            continue
        if (found := people.find(key)) is not None:
            told = {
                "as_of_change": people.origin.sequence,
                "last_change": found.sequence,
                "erased": bool(found.erasure),
            }
            yield told | {"grants_anything": bool(found.granted)}
    if fetched := copies.fetched(cache):
        unseen.append(f"{len(fetched)} fetched snapshots in the cache: copies of those of the store")


def show(told: Told, as_json: bool) -> None:
    """Print it, as tables or as JSON."""
    if as_json:
        print(copies.plain_json(told))
        return
    consent = told["consent"]
    print(
        f"consent: {consent['changes']} changes are kept, the last at {consent['last_change']}; dial: {consent['preference']}"
    )
    for each in consent["erasures"]:
        print(f"consent: erased at {each['change']}, {each['at']}")
    if consent["grants"]:
        rows = [
            tuple(str(each.get(name, "?")) for name in ("purpose", "source", "since", "notice_version"))
            for each in consent["grants"]
        ]
        print_table(("purpose", "source", "granted since", "notice"), rows)
    else:
        print("consent: nothing is granted")
    for each in told["snapshots"]:
        print(f"snapshot {each['snapshot']}: a record, of {each['of']}")
        rows = [
            (kind, str(row["rows"]), ", ".join(row["relies_on"]))
            for kind in ("candidates", "seen", "mix", "cadence")
            for row in each[kind]
        ]
        rows += [("sums", "1", f"{', '.join(row['of'])}, up to {row['up_to']}") for row in each["sums"]]
        print_table(("", "rows", "relies on"), rows)
    for name, events in (
        ("the kept parts of the log", told["parts"]),
        *((f"run {r['run']}, {r['stage']}", r["events"]) for r in told["runs"]),
    ):
        if events:
            print(f"{name}:")
            print_table(
                ("event", "rows", "oldest", "until"), [tuple(str(value) for value in each.values()) for each in events]
            )
    for each in told["runs"]:
        print(f"run {each['run']}, {each['stage']}: {each['rows']} rows, {each['kept']}")
    for each in told["models"]:
        due = f"; a fit without them is due {each['due'][:10]}" if "due" in each else ""
        print(f"model of run {each['run']}: fitted on {each['events']} of their events; {each['inside']}{due}")
    for each in told["replicas"]:
        print(f"replicas' standings: in them as of change {each['as_of_change']}")
    lacking = [name for name in ("snapshots", "parts", "runs", "models", "replicas") if not told[name]]
    print(f"nothing found in: {', '.join(lacking)}" if lacking else "found in every kind of copy")
    for each in told["not_looked_into"]:
        print(f"NOT looked into: {each}")


def _day(micros: int) -> str:
    return f"{moment(micros):%Y-%m-%d}"
