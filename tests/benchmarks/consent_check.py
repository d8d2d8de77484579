"""What consent costs a request, and how long a server takes to know everybody's.

python -m tests.benchmarks.consent_check --json
python -m tests.benchmarks.consent_check --changes 1000000 --folder FOLDER        keeps the ledger in FOLDER for the next run

The ledger is SQLite, written by imports, four changes a person. A server's view of it is opened twice, each time in a fresh
process: from the ledger alone, and from the file that the first one left. open_s is the time until it answers, peak_mib all that
the process ever held, the interpreter and its libraries (start_mib) included. Then, for people at random:

lookup_us    the person's standing, heard within the bound       ledger_us    the same, asked of the ledger for each request
rule_us      the last rule of the chain over 500 candidates      check_us     look-up and rule, as a request adds them
poll_us      a look at a ledger in which nothing moved
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from engine.consent import KEYED_GRANTS, Ledger, Vocabulary
from engine.errors import LedgerUnavailable
from engine.identity import UserKeys
from engine.policy import Moment, Slate
from engine.policy.rules.consent import Consent
from engine.serving.ledgers import ReplicaLedger
from engine.serving.settings import load
from engine.snapshot import ItemTable
from tests.benchmarks.harness import measured

SOURCES = ("web", "app", "store", "partner")
EACH = 4  # changes a person
CANDIDATES = 500
BATCH = 100_000  # people an import
ASKED = 100_000
_MIB = 2**10  # of ru_maxrss, which counts in KiB


def keys(people: int) -> np.ndarray:
    """(people, 16) bytes, even and distinct, always the same."""
    return np.random.default_rng(5).integers(0, 256, (people, 16), dtype=np.uint8)


def fill(out: Path, changes: int) -> float:
    """Import until the ledger holds the changes; returns seconds."""
    began = time.perf_counter()
    everybody = keys(changes // EACH)
    ledger = Ledger.open(f"sqlite:///{out}/consent.db", Vocabulary(sources=SOURCES))
    ledger.bind(UserKeys.load(out / "keys", create=True).stable.key_id)
    purposes = pa.array(["profile", "profile", "train", "measure"])
    for start in range(0, len(everybody), BATCH):
        batch = np.repeat(everybody[start : start + BATCH], EACH, axis=0)
        rows = len(batch)
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(batch.tobytes())])
        place = np.tile(np.arange(EACH), rows // EACH)
        source = pa.array(["web", "app", "", "store"]).take(pa.array(place))
        filled = {
            "user_key": column,
            "purpose": purposes.take(pa.array(place)),
            "source": source,
            "granted": pa.array(np.arange(rows) % 7 != 0),
            "notice_version": pa.array(["2026-01"] * rows),
            "actor": pa.array(["person"] * rows),
            "occurred_at": pa.array(np.full(rows, 1_767_225_600_000_000), pa.timestamp("us", "UTC")),
        }
        table = pa.table([filled[field.name].cast(field.type) for field in KEYED_GRANTS], schema=KEYED_GRANTS)
        ledger.import_grants(table)
    ledger.close()
    return time.perf_counter() - began


def opened(out: Path) -> ReplicaLedger:
    """A server's view, looked at once."""
    settings = load([f"out={out}", "consent_bound_seconds=60", f"consent.sources=[{','.join(SOURCES)}]"])
    view = ReplicaLedger(settings, Vocabulary(sources=SOURCES), lambda: (0, ""))
    view.look()
    if view.fault is not None:
        raise view.fault
    return view


def child(out: Path, people: int) -> dict[str, float]:
    """Open the view in this process, and ask it."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    began = time.perf_counter()
    view = opened(out)
    told = {"seconds": time.perf_counter() - began, "start_mib": start}
    told["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    everybody = keys(people)
    asked = [everybody[row].tobytes() for row in np.random.default_rng(6).integers(0, people, ASKED)]
    for key in asked[:1000]:
        view.standing(key)
    slate = Slate.of_anyone(np.arange(CANDIDATES, dtype=np.int32), np.ones(CANDIDATES, np.float32), 0)
    slate.basis[:] = 0b1101  # granted to everybody who is asked for below
    items = cast(ItemTable, None)  # the rule does not look at it
    moment = Moment(items=items, categories=(), now_us=0, surface="home", granted=0b1111, limit=20)
    rule = Consent()

    def check(key: bytes) -> None:
        view.standing(key)
        rule(slate, moment)

    told["lookup_us"] = best(view.standing, asked)
    told["rule_us"] = best(lambda _: rule(slate, moment), asked[:20_000])
    told["check_us"] = best(check, asked)
    with view.at_work() as (ledger, _):
        told["ledger_us"] = best(ledger.standing, asked[:20_000])
    told["poll_us"] = best(lambda _: view.look(), asked[:500])
    if not view.standing(asked[0]).granted:
        raise LedgerUnavailable("The benchmark asks for people whom the ledger does not know.", "Mend the benchmark.")
    view.close()
    return told


def best(ask: Callable[[bytes], object], asked: list[bytes], blocks: int = 20) -> float:
    """Microseconds a call in the best of some blocks: what other work on the machine adds is not the code's."""
    size = len(asked) // blocks
    found = []
    for block in range(blocks):
        part = asked[block * size : (block + 1) * size]
        began = time.perf_counter()
        for key in part:
            ask(key)
        found.append((time.perf_counter() - began) / size * 1e6)
    return min(found)


def run(changes: int, folder: Path | None) -> dict[str, object]:
    """Both openings of a ledger of so many changes."""
    with tempfile.TemporaryDirectory() as made:
        out = folder or Path(made)
        out.mkdir(parents=True, exist_ok=True)
        fill_s = 0.0 if (out / "consent.db").exists() else fill(out, changes)
        for kept in (out / "cache").glob("consent/*"):
            kept.unlink()
        first, second = (
            measured("tests.benchmarks.consent_check", "--child", out, "--changes", str(changes)).told for _ in range(2)
        )
        told = {name: round(value, 2) for name, value in second.items() if name.endswith("_us")}
        return {
            "changes": changes,
            "people": changes // EACH,
            "candidates": CANDIDATES,
            "fill_s": round(fill_s, 1),
            "start_mib": round(first["start_mib"]),
            "open_s": round(first["seconds"], 2),
            "peak_mib": round(first["peak_mib"]),
            "open_again_s": round(second["seconds"], 2),
            "peak_again_mib": round(second["peak_mib"]),
        } | told


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--changes", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        sys.stdout.write(json.dumps(child(given.child, given.changes // EACH)) + "\n")
        return 0
    result = run(given.changes, given.folder)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    table = Table("figure", "value")
    for name, value in result.items():
        table.add_row(name, str(value))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
