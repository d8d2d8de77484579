"""Break publishing in every way at hand, round after round, while somebody reads: the old snapshot or the new one, whole.

python -m tests.chaos_publish --rounds 200 --seed 7 --json
python -m tests.chaos_publish --rounds 60 --store s3 --json         an S3-compatible server on loopback in place of a folder

A round publishes a snapshot in a process of its own and does one thing to it: kill -9 before its k-th operation on files (each
k in turn, on the very first publish too) or at a moment drawn by chance; a disk that is full, fails or does not sync from the
k-th operation on; a rival that publishes at the same time; the same publish again; a published file cut, with a bit turned, or
in the place of another. Then it looks, publishes again undisturbed, and sweeps.

half_read: replies that mixed two snapshots, or came from a damaged one. lost: a pointer, a served snapshot or an acknowledged
publish that is gone. Both must be 0. refused: damage that a reader told by name instead. The first line of a fault that was not
foreseen stands in `faults`.
"""

from __future__ import annotations

import argparse
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import boto3

from engine.errors import BodegaError, NoSnapshot, SnapshotCorrupt, SnapshotError
from engine.snapshot import Registry, Snapshot
from tests.snapshot.object_server import BUCKET, ObjectServer
from tests.snapshot_builder import build_snapshot

KEYS = [bytes([60 * place]) * 16 for place in range(5)]
ITEMS, SHARDS = 50, 2
_PATIENCE = 60.0  # seconds for a publisher
_OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree", "fcntl.flock")
_REFUSED = 7  # exit code of a snapshot's error
Hurt = tuple[str, float]  # what happens to a publisher, and at which operation or second


def publish(where: str, cache: str, night: int, hurt: Hurt, parent: str, told: Any, start: Any = None) -> None:
    """One publisher, in a process of its own; tells the id, and how many operations it took."""
    count = _hurt(*hurt)
    if start is not None:
        start.wait(_PATIENCE)
    try:
        registry = Registry(where, cache)
        staged = registry.stage()
        _write(staged, night)
        name = registry.publish(staged, parent).snapshot_id
        told.put((name, count()))
    except BodegaError as error:
        told.put((str(error), count()))
        told.close()
        told.join_thread()
        os._exit(error.exit_code)


def _write(folder: Path, night: int) -> None:
    """A snapshot that says in all its parts which night it is."""
    item = night % ITEMS
    users: dict[bytes, Any] = {key: {"seen": [{"item": item}] * 3, "mix": [{"category": night % 2}]} for key in KEYS}
    build_snapshot(folder, users=users, items=ITEMS, fallback={-1: [item]}, shards=SHARDS, run=f"night-{night}")


def _consistent(snapshot: Snapshot) -> bool:
    """Whether all parts of what was read say the same night."""
    night = int(snapshot.manifest.lineage.run.removeprefix("night-"))
    records = [snapshot.user(key) for key in KEYS]
    items = {tuple(record.seen.item.tolist()) if record else () for record in records}
    kinds = {tuple(record.mix.category.tolist()) if record else () for record in records}
    item = night % ITEMS
    return items == {(item,) * 3} and kinds == {(night % 2,)} and snapshot.fallback()[0].tolist() == [item]


def _hurt(how: str, at: float) -> Callable[[], int]:
    """Prepare what happens to this process; returns how many operations there were so far."""
    done = 0
    sync = os.fsync

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and not (event == "open" and _only_read(arguments)):
            operation(event)

    def operation(event: str) -> None:
        nonlocal done
        done += 1
        if how == "kill" and done == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if how in ("full", "broken") and done >= at and event != "fcntl.flock":
            code = errno.ENOSPC if how == "full" else errno.EIO
            raise OSError(code, os.strerror(code))

    def syncing(handle: int) -> None:
        operation("fsync")
        if how == "unsynced" and done >= at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    os.fsync = syncing
    sys.addaudithook(before)
    if how == "moment":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process wherever it is, as -9 does
        signal.setitimer(signal.ITIMER_REAL, at)
    return lambda: done


def _only_read(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    return not (flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else mode in (None, "r", "rb")


@dataclass
class Chaos:
    """A store under attack, and what was seen of it."""

    where: str
    folder: Path  # for caches; of a local store, also where it lies
    draw: random.Random
    server: ObjectServer | None = None
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    night: int = 0
    served: str = ""
    serving: int = 0  # its night
    operations: int = 40
    next_kill: int = 1
    damaged: bool = False  # a reader may be refused
    first: bool = True  # nothing is published yet
    processes: ForkServerContext = field(default_factory=lambda: multiprocessing.get_context("forkserver"))

    def registry(self, cache: str = "checker") -> Registry:
        """As of a process that has seen nothing yet."""
        return Registry(self.where, self.folder / "caches" / cache)

    def fail(self, kind: str, what: str) -> None:
        """Count something that must not be."""
        self.seen[kind] += 1
        if len(self.faults) < 10:
            self.faults.append(f"{kind}: {what.splitlines()[0][:300]}")

    def read(self) -> None:
        """One look, as a replica takes it."""
        was_damaged, was_first = self.damaged, self.first
        try:
            with self.registry("reader").open_current() as snapshot:
                whole = _consistent(snapshot)
            self.seen["reads"] += 1
            if not whole:
                self.fail("half_read", f"{snapshot.manifest.snapshot_id} mixes nights")
        except NoSnapshot as error:
            if was_damaged or self.damaged:  # a damaged copy is taken away before its new one comes
                self.seen["refused"] += 1
            elif not (was_first or self.first):
                self.fail("lost", f"a reader found nothing: {error}")
        except SnapshotCorrupt as error:
            self.seen["refused"] += 1
            if not (was_damaged or self.damaged):
                self.fail("half_read", f"a reader found damage that nobody did: {error}")

    def launch(self, hurt: Hurt, parent: str, night: int, start: Any = None) -> tuple[ForkServerProcess, Any]:
        """Start a publisher."""
        told = self.processes.Queue()
        cache = str(self.folder / "caches" / f"publisher-{night % 2}")
        process = self.processes.Process(target=publish, args=(self.where, cache, night, hurt, parent, told, start))
        process.start()
        return process, told

    def publish(self, hurt: Hurt, parent: str, night: int) -> tuple[int, str]:
        """Run one publisher to its end: exit code, and the id or the error."""
        return self.ended(*self.launch(hurt, parent, night))

    def ended(self, process: ForkServerProcess, told: Any) -> tuple[int, str]:
        """Wait for a publisher; whoever does not end is a fault."""
        process.join(_PATIENCE)
        if process.exitcode is None:
            self.fail("lost", "a publisher hangs")
            process.kill()
            process.join()
        said = ""
        if process.exitcode in (0, _REFUSED):
            said, operations = told.get(timeout=10)
            if process.exitcode == 0:
                self.operations = operations
        return process.exitcode or 0, said

    def expect(self, nights: set[int], what: str) -> None:
        """The pointer names one of these nights (0: nothing yet), and that one is whole."""
        try:
            registry = self.registry()
            found = registry.current()
            night = int(registry.manifest(found).lineage.run.removeprefix("night-"))
        except NoSnapshot:
            found, night = "", 0
        except BodegaError as error:
            self.fail("lost", f"{what}: {error}")
            return
        if night not in nights:
            self.fail("lost", f"{what}: night {night} is served, not one of {sorted(nights)}")
        self.served, self.serving = found, night
        self.first = not found
        if found:
            self.read()

    def hurt_publish(self, hurt: Hurt) -> None:
        """One publish that something happens to, and one that nothing happens to."""
        before, night = self.serving, self.night
        code, said = self.publish(hurt, self.served, night)
        self.seen[f"ended {code}"] += 1
        self.expect({night} if code == 0 else {before, night}, f"{hurt}, exit {code}")
        if code == _REFUSED and self.serving != before and "not known" not in said:
            self.fail("lost", f"{hurt}: an error was told, and the pointer moved")
        if code == 1:
            self.fail("lost", f"{hurt}: a publisher ended without telling why")
        there = self.served if self.serving == night else ""
        again, told = self.publish(("nothing", 0), self.served, night)
        if again or (there and told != there):
            self.fail("lost", f"after {hurt}: publishing again ended with {again}: {told}")
        self.expect({night}, "published again")

    def rivals(self) -> None:
        """Two publishers with one parent: one wins, the other is told."""
        start = self.processes.Barrier(2)
        nights = (self.night, self.night + 1)
        self.night += 1
        both = [self.launch(("nothing", 0), self.served, night, start) for night in nights]
        ends = [self.ended(*each) for each in both]
        winners = {night for night, (code, _) in zip(nights, ends, strict=True) if code == 0}
        if sorted(code for code, _ in ends) != [0, _REFUSED]:
            self.fail("lost", f"two publishers ended with {ends}")
        self.expect(winners, "two publishers")

    def damage(self, kind: str) -> None:
        """Change the bytes of what is served: readers refuse it, the one before is whole, publishing again mends it."""
        registry = self.registry()
        night = int(registry.manifest(self.served).lineage.run.removeprefix("night-"))
        folder = registry.root / self.served
        files = sorted(path for path in folder.glob("*-0000*.arrow") if path.stat().st_size)
        path = self.draw.choice(files)
        self.damaged = True
        raw = bytearray(path.read_bytes())
        if kind == "swap":
            other = folder / path.name.replace("-00000", "-0000x").replace("-00001", "-00000").replace(
                "-0000x", "-00001"
            )
            raw = bytearray(other.read_bytes())
        elif kind == "flip":
            raw[self.draw.randrange(len(raw))] ^= 1 << self.draw.randrange(8)
        else:
            del raw[self.draw.randrange(len(raw)) :]
        _put(path, bytes(raw))
        refused = self.seen["refused"]
        self.read()
        if self.seen["refused"] == refused:
            self.fail("half_read", f"{kind} of {path.name} went unnoticed")
        for name in registry.history()[1:2]:
            registry.open(name).close()
        code, said = self.publish(("nothing", 0), self.served, night)
        if (code, said) != (0, self.served):
            self.fail("lost", f"{kind}: publishing again ended with {code}: {said}")
        self.damaged = False
        self.expect({night}, f"{kind}, mended")

    def round(self, number: int) -> None:
        """One fault."""
        self.night += 1
        if self.first or number % 5 < 2:
            self.hurt_publish(("kill", self.next_kill))
            self.next_kill = self.next_kill % (self.operations + 1) + 1
        else:
            self._drawn()
        if number % 7 == 6:
            removed = self.registry().sweep(keep=2)
            self.seen["swept"] += len(removed)
            self.expect({self.serving}, "a sweep")

    def _drawn(self) -> None:
        at = self.draw.randint(1, self.operations + 1)
        kinds: dict[str, Callable[[], None]] = {
            "moment": lambda: self.hurt_publish(("moment", self.draw.uniform(0.001, 0.25))),
            "full": lambda: self.hurt_publish(("full", at)),
            "broken": lambda: self.hurt_publish(("broken", at)),
            "unsynced": lambda: self.hurt_publish(("unsynced", at)),
            "nothing": lambda: self.hurt_publish(("nothing", 0)),
            "rivals": self.rivals,
        }
        if self.server is None:
            kinds |= {kind: lambda kind=kind: self.damage(kind) for kind in ("cut", "flip", "swap")}  # type: ignore[misc]
        kind = self.draw.choice(sorted(kinds))
        self.seen[f"round {kind}"] += 1
        kinds[kind]()


def _put(path: Path, raw: bytes) -> None:
    """In place of a file, with other bytes: a published one is read-only."""
    other = path.with_name(".other")
    other.write_bytes(raw)
    other.replace(path)


@contextmanager
def _reading(chaos: Chaos) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            try:
                chaos.read()
            except SnapshotError as error:
                chaos.fail("half_read", f"a reader: {error}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(rounds: int, seed: int, store: str, folder: Path) -> dict[str, Any]:
    """So many rounds; every twentieth begins with an empty store."""
    began = time.monotonic()
    server = ObjectServer.start() if store == "s3" else None
    if server is not None:
        os.environ.update(server.environment)
        boto3.client("s3", endpoint_url=server.environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
    multiprocessing.set_forkserver_preload(["tests.chaos_publish"])
    sys.modules["__main__"].__spec__ = None  # or each process would import this file by its name a second time
    total: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(0, rounds, 20):
        place = folder / f"store-{number}"
        where = f"s3://{BUCKET}/store-{number}" if server else str(place / "snapshots")
        place.mkdir(parents=True)
        chaos = Chaos(where, place, random.Random(seed * 1_000 + number), server, next_kill=number // 20 * 6 + 1)
        with _reading(chaos):
            for each in range(number, min(number + 20, rounds)):
                chaos.round(each)
        total += chaos.seen
        faults += chaos.faults
        shutil.rmtree(place)
    if server:
        server.stop()
    told = {"rounds": rounds, "seed": seed, "store": store, "half_read": total["half_read"], "lost": total["lost"]}
    return told | {
        "seconds": round(time.monotonic() - began, 1),
        "seen": dict(sorted(total.items())),
        "faults": faults[:10],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was seen; fail where anything was half read or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--store", choices=("folder", "s3"), default="folder")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bodega-chaos-") as folder:
        told = run(asked.rounds, asked.seed, asked.store, Path(folder))
    if asked.json:
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        for name, value in told.items():
            sys.stdout.write(f"{name:<10} {value}\n")
    return 1 if told["half_read"] or told["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
