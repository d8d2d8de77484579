"""Snapshots that change under load: several server processes on one store, open clients, a publish every second.

python -m tests.benchmarks.swaps --json
python -m tests.benchmarks.swaps --store s3        from an S3-compatible server on loopback, through the processes' one cache

Each snapshot lists items of a colour of its own, so that a reply of two snapshots shows. Clients send at a fixed rate
whatever comes back, each in a process of its own, and a latency counts from when the call was due. p99_before_ms: with no
publish; p99_swaps_ms: of calls that were due within half a second after a publish, in which every process takes it up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from bodega.client import BodegaRpcError, Client, grant

from engine import schema
from engine.identity import UserKeys
from engine.snapshot import About, Lineage, Registry, SnapshotWriter
from tests.serving.shop import NOW, PROFILES, VOCABULARY, WEB, Process
from tests.snapshot.object_server import BUCKET, ObjectServer
from tests.snapshot_builder import item_table

ROOT = Path(__file__).resolve().parents[2]
COLOURS, EACH, CANDIDATES = 10, 100, 100  # items of a colour; candidates of a person
ASKED = 200  # people that are asked for; one in eight asks without a name
WINDOW = 0.5  # seconds after a publish
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    store: str
    processes: int
    swaps: int
    replies: int
    failed: int
    mixed: int
    served: int  # snapshots that some reply came from
    per_second: float
    p50_before_ms: float
    p99_before_ms: float
    p50_swaps_ms: float
    p99_swaps_ms: float
    snapshot_mib: float
    take_up_ms: float  # from the publish until the last process served it, median
    memory: list[dict[str, float]]  # of each process, MiB: all of it, and its mapped files of snapshots

    @property
    def step(self) -> float:
        """p99 around swaps, as a multiple of the one before them."""
        return self.p99_swaps_ms / self.p99_before_ms


def run(processes: int = 3, swaps: int = 50, users: int = 4000, rate: float = 50.0, calm: float = 10.0,
        every: float = 0.8, store: str = "local") -> Result:  # fmt: skip
    """Publish `swaps` snapshots of `users` people, one every `every` seconds, after `calm` seconds of load alone."""
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        snapshots = f"{out}/snapshots"
        if store == "s3":
            snapshots = _object_store(stack)
        keys = UserKeys.load(out / "keys", create=True)
        registry = Registry(snapshots, out / "cache")
        staged: list[Path] = []
        colours: dict[str, int] = {}
        for turn in range(swaps + 1):
            staged.append(registry.stage())
            colours[_write(staged[-1], keys, users, turn)] = turn % COLOURS
        names = list(colours)
        megabytes = sum(path.stat().st_size for path in staged[0].iterdir()) / MIB
        registry.publish(staged[0])
        (out / "colours.json").write_text(json.dumps(colours))
        started = [f"out={out}", f"snapshots={snapshots}", "port=0", "log.format=json", "watch_seconds=0.1"]
        servers = []
        for _ in range(processes):
            servers.append(Process(started))
            stack.callback(servers[-1].kill)
        watchers = [stack.enter_context(server.client()) for server in servers]
        for number in range(ASKED):
            watchers[0].set_consent(f"user-{number}", [grant("profile")])
        seconds = calm + swaps * every + 1
        clients = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.swaps", "--client", server.address, "--rate", str(rate),
                 "--seconds", str(seconds), "--colours", str(out / "colours.json")],
                cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
            )
            for server in servers
        ]  # fmt: skip
        for client in clients:
            stack.callback(client.kill)
            assert client.stdout is not None and client.stdout.readline() == "ready\n"
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        began = time.time()
        time.sleep(calm)
        moments, taken = [], []
        for turn in range(1, swaps + 1):
            due = began + calm + (turn - 1) * every
            time.sleep(max(0.0, due - time.time()))
            registry.publish(staged[turn], names[turn - 1])
            moments.append(time.time())
            taken.append(_until_served(watchers, names[turn]) - moments[-1])
            registry.sweep(keep=2)
        told = [json.loads(client.communicate(timeout=seconds + 60)[0].splitlines()[-1]) for client in clients]
        memory = [_memory(server.pid, (f"{out}/snapshots/", f"{out}/cache/")) for server in servers]
    return _result(store, told, moments, taken, memory, began, calm, megabytes)


def _result(
    store: str, told: Sequence[Mapping[str, Any]], moments: Sequence[float], taken: Sequence[float],
    memory: list[dict[str, float]], began: float, calm: float, megabytes: float,
) -> Result:  # fmt: skip
    calls = np.array([call for client in told for call in client["calls"]])
    due, latency = calls[:, 0], calls[:, 1] * 1000
    before = latency[(due > began + min(2.0, calm / 4)) & (due < began + calm - 0.1)]  # the first calls warm up
    after = np.searchsorted(moments, due) - 1
    since = due - np.array(moments)[np.maximum(after, 0)]
    around = latency[(after >= 0) & (since < WINDOW)]
    p50, p99 = ([float(np.percentile(part, share)) for part in (before, around)] for share in (50, 99))
    return Result(
        store, len(told), len(moments), len(calls), sum(each["failed"] for each in told),
        sum(each["mixed"] for each in told), len({name for each in told for name in each["served"]}),
        round(len(calls) / float(due.max() - due.min()), 1), round(p50[0], 2), round(p99[0], 2), round(p50[1], 2),
        round(p99[1], 2), round(megabytes, 1), round(statistics.median(taken) * 1000, 1), memory,
    )  # fmt: skip


def ask(address: str, rate: float, seconds: float, colours: Mapping[str, int]) -> dict[str, Any]:
    """One open client: calls when they are due, on threads enough that none waits for another."""
    calls: list[tuple[float, float]] = []
    failed, mixed = [], []
    served: set[str] = set()

    def one(client: Client, number: int, due: float) -> None:
        user = "" if number % 8 == 0 else f"user-{number % ASKED}"
        try:
            reply = client.recommend(user, limit=20)
        except BodegaRpcError as error:
            failed.append(f"{error.code}: {error.message}")
            return
        calls.append((due, time.time() - due))
        name = reply.provenance.snapshot_id
        served.add(name)
        found = {int(item.item_id[5:]) // EACH for item in reply.items}
        if found != {colours[name]}:
            mixed.append(f"{name} of colour {colours[name]} gave {found}")

    with Client(address, timeout=20) as client, ThreadPoolExecutor(32) as pool:
        for number in range(64):  # connections and threads that are there, as those of a backend are
            client.recommend(f"user-{number}", limit=20)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        began = time.time()
        for number in range(int(rate * seconds)):
            due = began + number / rate
            time.sleep(max(0.0, due - time.time()))
            pool.submit(one, client, number, due)
    for fault in (*failed[:3], *mixed[:3]):
        sys.stderr.write(f"{fault}\n")
    return {"calls": calls, "failed": len(failed), "mixed": len(mixed), "served": sorted(served)}


def _write(folder: Path, keys: UserKeys, users: int, turn: int) -> str:
    """A snapshot in which everybody's candidates, and the fallback, are items of one colour; returns its id."""
    about = About(
        as_of=NOW,
        lineage=Lineage(run=f"turn-{turn}", key_id=keys.rotating.key_id),
        vocabulary=VOCABULARY.to_json(),
        profiles=PROFILES,
        decays=(7.0, 90.0),
        width=16,
        neighbours=2,
        shards=2,
    )
    writer = SnapshotWriter(folder, about)
    first = turn % COLOURS * EACH
    people = sorted(keys.rotating.derive(f"user-{number}") for number in range(users))
    empty = {"seen": schema.SEEN, "mix": schema.MIX, "cadence": schema.CADENCE, "sums": schema.sums_schema(2, 16)}
    draw = np.random.default_rng(turn)
    bounds = [0, users // 2, users]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        mine = people[start:stop]
        rows = len(mine) * CANDIDATES
        table: dict[str, Any] = {"user_key": mine}
        for name in ("candidates", "sums", "seen", "mix", "cadence"):
            each = CANDIDATES if name == "candidates" else 0
            table[f"{name}_start"] = np.arange(len(mine), dtype=np.uint32) * np.uint32(each)
            table[f"{name}_count"] = np.full(len(mine), each, np.uint32)
        items = first + np.argsort(draw.random((len(mine), EACH)), axis=1)[:, :CANDIDATES].astype(np.int32)
        score = np.sort(draw.random((len(mine), CANDIDATES), np.float32), axis=1)[:, ::-1].ravel()
        ways = {
            "lane": (schema.LANES.index("similar"), schema.NO_LANE, np.uint8),
            "basis": (WEB, schema.NEVER, np.uint64),
            "evidence": (schema.NO_ITEM, schema.NO_ITEM, np.int32),
        }
        columns: dict[str, Any] = {"item": items.ravel()}
        for name, (used, unused, kind) in ways.items():
            columns[name] = np.tile(np.array([used, unused, unused], kind), rows)
        columns["score"] = np.column_stack([score, *[np.full(rows, -np.inf, np.float32)] * 2]).ravel()
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(columns[field.name]), type=field.type)
            if pa.types.is_fixed_size_list(field.type)
            else pa.array(columns[field.name], field.type)
            for field in schema.CANDIDATES
        ]
        nothing = {name: kind.empty_table() for name, kind in empty.items()}
        writer.user_shard(
            number, pa.table(table, schema=schema.SNAPSHOT_USERS), pa.table(arrays, schema=schema.CANDIDATES),
            nothing["sums"], nothing["seen"], nothing["mix"], nothing["cadence"],
        )  # fmt: skip
    writer.items(item_table(COLOURS * EACH, 2, 16, 2))
    writer.categories(pa.table({"name": ["category-0", "category-1"]}, schema=schema.CATEGORIES))
    popular: dict[str, Any] = {"region": [""] * EACH, "category": [-1] * EACH, "item": range(first, first + EACH)}
    popular["score"] = np.linspace(1, 0.1, EACH).tolist()
    writer.fallback(pa.table(popular, schema=schema.FALLBACK))
    writer.tower({})
    return writer.finish().snapshot_id


def _until_served(watchers: Sequence[Client], name: str) -> float:
    for client in watchers:
        end = time.monotonic() + 30
        while client.status().snapshot.snapshot_id != name:
            if time.monotonic() > end:
                raise RuntimeError(f"{name} was never served: {client.status()}")
            time.sleep(0.05)  # asking more often would itself be the load that is measured
    return time.time()


def _memory(pid: int, folders: tuple[str, ...]) -> dict[str, float]:
    """MiB of a process: resident, its share of it where pages are shared, and both of the snapshots' mapped files."""
    process = psutil.Process(pid)
    whole = process.memory_full_info()
    maps = [each for each in process.memory_maps(grouped=False) if each.path.startswith(folders)]
    return {
        "rss": round(whole.rss / MIB, 1),
        "pss": round(whole.pss / MIB, 1),
        "snapshot_rss": round(sum(each.rss for each in maps) / MIB, 2),
        "snapshot_pss": round(sum(each.pss for each in maps) / MIB, 2),
    }


def _object_store(stack: ExitStack) -> str:
    import boto3

    server = ObjectServer.start()
    stack.callback(server.stop)
    os.environ.update(server.environment)
    boto3.client("s3", endpoint_url=server.environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/swaps"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and fail where a reply failed or was mixed, or a swap shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=50.0, help="calls a second to each process")
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--json", action="store_true")
    for name in ("--client", "--seconds", "--colours"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.client:
        told = ask(asked.client, asked.rate, float(asked.seconds), json.loads(Path(asked.colours).read_text()))
        sys.stdout.write(json.dumps(told) + "\n")
        return 0
    result = run(asked.processes, asked.swaps, asked.users, asked.rate, store=asked.store)
    figures = asdict(result) | {"step": round(result.step, 2)}
    lines = [json.dumps(figures)] if asked.json else [f"{name}: {value}" for name, value in figures.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(result.failed or result.mixed or result.step > 2))


if __name__ == "__main__":
    sys.exit(main())
