"""Withdrawals against lists: server processes on one PostgreSQL, people who withdraw and grant again, and faults.

python -m tests.benchmarks.revocation --replicas 4 --users 1000 --json

Each replica is asked for lists without a pause by a process of its own, while threads withdraw and grant, each for people of its
own, at any replica. Everything is noted with times of the one monotonic clock of the machine. Then:

leaks         profiled ones among late_replies: those to requests sent later than the bound after a withdrawal was acknowledged,
              and answered before the person's next grant was sent. Of all phases. leaks_without_a_bound: were the bound 0
p50_ms, p99_ms, max_ms    from a withdrawal's acknowledgement until the last replica answered a request without a profile,
              asked again and again; of the calm phase
false_closed  replies of the calm phase to people who grant all of the while that were refused a profile
closed        by phase, the share of the replies to such people that had no profile; recovered_s: from the fault's end until a
              replica gives profiles again, the slowest

Phases: calm; paused (a replica under SIGSTOP for longer than the bound, three times); frozen (all of PostgreSQL's processes under
SIGSTOP); down (PostgreSQL stopped at once, as a crash would, and started again); slow (every answer of it comes late).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bodega.client import BodegaRpcError, Client, grant

from tests.benchmarks.revocation_load import NOTE, person
from tests.postgres_server import PostgresServer, fresh_server
from tests.serving.shop import Process, Shop
from tests.snapshot_builder import candidate
from tests.tcp_proxy import TcpProxy, proxy_to

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1.0  # seconds, of the servers
WRITERS = 4
REST = 12.0  # seconds that a person stays withdrawn: lists that leak need the time to
STEADY = 0.3  # share of the people who never withdraw
AFTER = 4.0  # seconds of a phase once its fault is over
SLOW = 0.5  # seconds, each way


@dataclass
class Said:
    """One call of SetConsent: acknowledged at `ended`, or, failed, perhaps in effect and perhaps not."""

    user: int
    granted: bool
    began: float
    ended: float
    failed: bool


@dataclass
class Notes:
    """What the writers note."""

    said: list[Said] = field(default_factory=list)
    enforced: list[float] = field(default_factory=list)  # seconds until the last replica
    calm: bool = True
    ended: bool = False


def write(notes: Notes, addresses: Sequence[str], users: Sequence[int], seed: int) -> None:
    """Withdraw and grant in turn for one person after another, until it has ended."""
    draw = np.random.default_rng(seed)
    clients = [Client(address, timeout=4) for address in addresses]
    waiting: list[tuple[float, int]] = []  # when somebody may grant again
    turn = 0
    while not notes.ended:
        user = users[turn % len(users)]
        turn += 1
        if waiting and (len(waiting) >= len(users) - 1 or waiting[0][0] < time.monotonic()):
            due, back = waiting.pop(0)
            time.sleep(max(0.0, due - time.monotonic()))
            _say(notes, clients[draw.integers(len(clients))], back, True)
        if any(user == each for _, each in waiting):
            continue
        calm, said = notes.calm, _say(notes, clients[draw.integers(len(clients))], user, False)
        if calm and not said.failed:
            notes.enforced.append(_enforced(clients, user) - said.ended)
        waiting.append((time.monotonic() + REST, user))
        time.sleep(float(draw.exponential(0.05)))
    for client in clients:
        client.close()


def _say(notes: Notes, client: Client, user: int, granted: bool) -> Said:
    began, failed = time.monotonic(), False
    try:
        client.set_consent(person(user), [grant("profile", granted=granted)])
    except BodegaRpcError:
        failed = True
    said = Said(user, granted, began, time.monotonic(), failed)
    notes.said.append(said)
    if failed:
        time.sleep(0.1)
    return said


def _enforced(clients: Sequence[Client], user: int) -> float:
    """When the last replica was asked for a list that it gave without a profile."""
    last, left = 0.0, list(clients)
    until = time.monotonic() + 5
    while left and time.monotonic() < until:
        for client in list(left):
            sent = time.monotonic()
            if client.recommend(person(user), limit=1).provenance.reason == "no_consent":
                left.remove(client)
                last = max(last, sent)
        time.sleep(0.002)
    return last if not left else until


def late(replies: np.ndarray, said: Sequence[Said], bound: float) -> np.ndarray:
    """The replies (of NOTE) to requests sent later than the bound after a withdrawal that was in force until they were there."""
    found = np.zeros(len(replies), bool)
    of: dict[int, list[Said]] = {}
    for each in sorted(said, key=lambda each: each.began):
        of.setdefault(each.user, []).append(each)
    order = np.argsort(replies["user"], kind="stable")
    for user, calls in of.items():
        first, last = np.searchsorted(replies["user"][order], [user, user + 1])
        mine = order[first:last]
        for place, call in enumerate(calls):
            if call.granted or call.failed:
                continue
            # A grant that failed may be in force all the same, from the moment at which it was sent.
            until = next((later.began for later in calls[place + 1 :] if later.granted), np.inf)
            found[mine] |= (replies["sent"][mine] > call.ended + bound) & (replies["got"][mine] < until)
    return replies[found]


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes under SIGSTOP."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def faults(replicas: Sequence[Process], database: PostgresServer, proxy: TcpProxy) -> Iterator[str]:
    """One after the other; each is over when its name is given."""
    for turn in range(3):
        with stopped([replicas[turn % len(replicas)].pid]):
            time.sleep(2 * BOUND)
        time.sleep(BOUND / 2)
    yield "paused"
    with database.stopped_in_its_tracks():
        time.sleep(4 * BOUND)
    yield "frozen"
    database.stop(signal.SIGKILL)
    time.sleep(4 * BOUND)
    database.start("fsync=on")
    yield "down"
    proxy.delay = SLOW
    time.sleep(6 * BOUND)
    proxy.delay = 0.0
    yield "slow"


def run(replicas: int, users: int, calm: float) -> dict[str, Any]:
    """The whole of it: `calm` seconds, then the faults."""
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(fresh_server("fsync=on"))
        proxy = stack.enter_context(proxy_to(database.port))
        url = database.url(database.schema(), port=proxy.port)
        shop = Shop(out)
        rotating = shop.keys.rotating
        rows = {"candidates": [candidate(code, ("similar", 1 << 1, 9.0 - code / 10)) for code in range(20)]}
        shop.publish(users={rotating.derive(person(number)): rows for number in range(users)})
        servers = []
        for _ in range(replicas):
            servers.append(Process([
                f"out={out}", "port=0", "log.format=json", f"ledger='{url}'",
                f"consent_bound_seconds={BOUND}", "ledger_patience_seconds=2",
            ]))  # fmt: skip
            stack.callback(servers[-1].kill)
        addresses = [server.address for server in servers]
        with Client(addresses[0]) as first:
            for number in range(users):
                first.set_consent(person(number), [grant("profile")])
        time.sleep(BOUND)
        ends = time.monotonic() + calm + 3 * 2.5 * BOUND + 14 * BOUND + 4 * AFTER + 4
        loads = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.revocation_load", "--address", address, "--users", str(users),
                 "--until", str(ends), "--seed", str(number), "--note", f"{out}/notes-{number}.npy"],
                cwd=ROOT,
            )
            for number, address in enumerate(addresses)
        ]  # fmt: skip
        for load in loads:
            stack.callback(load.kill)
        notes = Notes()
        people = range(int(users * STEADY), users)
        writers = [
            threading.Thread(target=write, args=(notes, addresses, people[number::WRITERS], number))
            for number in range(WRITERS)
        ]
        time.sleep(2)  # the loads import and connect
        phases = [("calm", time.monotonic(), time.monotonic() + calm, time.monotonic() + calm)]
        for writer in writers:
            writer.start()
        time.sleep(calm)
        notes.calm = False
        time.sleep(1)
        for name in faults(servers, database, proxy):
            over = time.monotonic()
            time.sleep(AFTER)
            phases.append((name, phases[-1][3], over, time.monotonic()))
        for load in loads:
            load.wait(60)
        notes.ended = True
        for writer in writers:
            writer.join(30)
        replies = [np.load(out / f"notes-{number}.npy") for number in range(replicas)]
    return _result(replies, notes, phases, users)


def _result(
    by_replica: list[np.ndarray], notes: Notes, phases: Sequence[tuple[str, float, float, float]], users: int
) -> dict[str, Any]:
    replies = np.concatenate([np.empty(0, NOTE), *by_replica])
    steady = replies["user"] < int(users * STEADY)
    closed, recovered, false_closed = {}, {}, 0
    for name, began, over, ended in phases:
        inside = (replies["sent"] >= began) & (replies["sent"] < ended) & steady
        refused = ~replies["profiled"][inside]
        closed[name] = round(float(refused.mean()), 4)
        if name == "calm":
            false_closed = int(refused.sum())
        else:
            recovered[name] = round(max(_recovered(each, over, ended, int(users * STEADY)) for each in by_replica), 2)
    withdrawn = [each for each in notes.said if not each.granted and not each.failed]
    p50, p99 = np.percentile(np.array(notes.enforced) * 1000, [50, 99])
    calm_began, calm_over = phases[0][1:3]
    in_calm = (replies["sent"] >= calm_began) & (replies["sent"] < calm_over)
    return {
        "replicas": len(by_replica),
        "users": users,
        "bound_ms": BOUND * 1000,
        "replies": len(replies),
        "profiled": int(replies["profiled"].sum()),
        "withdrawals": len(withdrawn),
        "failed_writes": sum(each.failed for each in notes.said),
        "late_replies": len(late(replies, notes.said, BOUND)),
        "leaks": int(late(replies, notes.said, BOUND)["profiled"].sum()),
        "leaks_without_a_bound": int(late(replies, notes.said, 0.0)["profiled"].sum()),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(max(notes.enforced) * 1000, 1),
        "enforced": len(notes.enforced),
        "false_closed": false_closed,
        "calm_replies": int(in_calm.sum()),
        "calm_per_second": round(float(in_calm.sum()) / (calm_over - calm_began)),
        "closed": closed,
        "recovered_s": recovered,
    }


def _recovered(replies: np.ndarray, over: float, ended: float, steady: int) -> float:
    inside = (replies["sent"] > over) & (replies["sent"] < ended)
    later = replies[inside & (replies["user"] < steady) & replies["profiled"]]
    if not len(later):
        raise RuntimeError("A replica gave no profile any more once a fault was over: look at the servers' logs.")
    return float(later["sent"].min() - over)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and fail where something leaked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--calm", type=float, default=60.0, help="seconds before the first fault")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    figures = run(asked.replicas, asked.users, asked.calm)
    lines = [json.dumps(figures)] if asked.json else [f"{name}: {value}" for name, value in figures.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(figures["leaks"] > 0)


if __name__ == "__main__":
    sys.exit(main())
