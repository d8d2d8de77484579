"""A small deployment with real keys, a real ledger and a real snapshot, and ways to serve it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bodega.client import Client, grant

from engine.consent import Vocabulary
from engine.identity import UserKeys
from engine.serving.server import Server
from engine.serving.settings import ServeSettings, load
from engine.snapshot import Manifest
from tests.snapshot_builder import User, candidate, publish_snapshot

SOURCES = ("web", "app", "store", "partner")
ITEMS = 40
CATEGORIES = ("books", "wine", "tea", "toys")
VOCABULARY = Vocabulary(sources=SOURCES)
WEB, PARTNER = VOCABULARY.mask("profile", "web"), VOCABULARY.mask("profile", "partner")
WEB_PURCHASES = 1 << VOCABULARY.group(0, purchase=True)
PARTNER_PURCHASES = 1 << VOCABULARY.group(3, purchase=True)
PROFILES = (
    {"name": "full", "groups": VOCABULARY.groups},
    {"name": "first_party", "groups": VOCABULARY.groups & ~PARTNER},
    {"name": "purchases", "groups": VOCABULARY.purchase_groups},
)
SENSITIVE_ITEM = 37  # among the popular ones
BOUGHT = 30  # by ana, on the web
NOW = datetime(2026, 1, 31, tzinfo=UTC)


def item(code: int) -> str:
    """The id that the snapshot builder gives an item."""
    return f"item-{code:04d}"


def ana(first: int = 0) -> User:
    """A regular of the web and the partner: three ways for each candidate, one way for some."""
    ways = [
        candidate(
            first + place,
            ("two_tower", WEB | PARTNER, 9.0 - place / 10, 20),
            ("two_tower", WEB, 5.0 - place / 10, 21),
            ("two_tower", WEB_PURCHASES, 3.0 - place / 10, 22),
        )
        for place in range(12)
    ]
    alone = [
        candidate(first + 12, ("similar", PARTNER, 8.5, 23)),
        candidate(first + 13, ("usual", WEB_PURCHASES, 8.4, 13 + first)),
        candidate(first + 14, ("discovery", WEB, 2.0)),
        candidate(BOUGHT, ("similar", WEB, 9.9, 24)),
        candidate(25, ("popular", 0, 0.1)),
    ]
    return {
        "candidates": ways + alone,
        "seen": [{"item": BOUGHT, "basis": WEB_PURCHASES}, {"item": 35, "basis": PARTNER_PURCHASES}],
    }


def people(first: int = 0) -> dict[str, User]:
    """By raw user id."""
    return {
        "ana": ana(first),
        "ben": {"candidates": [candidate(first + 3, ("similar", WEB, 4.0, 20)), candidate(8, ("usual", WEB, 3.0))]},
        "cleo": {},
        "pat": {"candidates": [candidate(SENSITIVE_ITEM, ("similar", WEB, 4.0)), candidate(9, ("similar", WEB, 3.0))]},
    }


class Shop:
    """One deployment's folder."""

    def __init__(self, out: Path, snapshots: str = "") -> None:
        self.out = out
        self.snapshots = snapshots or f"{out}/snapshots"
        self.keys = UserKeys.load(out / "keys", create=True)

    def publish(self, first: int = 0, **changes: Any) -> Manifest:
        """Publish a snapshot in which ana's candidates begin at item `first`."""
        rotating = self.keys.rotating
        arguments: dict[str, Any] = {
            "users": {rotating.derive(user): rows for user, rows in people(first).items()},
            "items": ITEMS,
            "item_columns": {"sensitive": [code == SENSITIVE_ITEM for code in range(ITEMS)]},
            "categories": CATEGORIES,
            "fallback": {-1: list(reversed(range(ITEMS))), 1: [1, 5, 9, 13]},
            "vocabulary": VOCABULARY.to_json(),
            "profiles": PROFILES,
            "key_id": rotating.key_id,
            "shards": 2,
            "run": f"run-{first}",
            "as_of": NOW,
            "metrics": {"recall@20": 0.25},
        } | changes
        return publish_snapshot(self.snapshots, **arguments)

    def settings(self, *overrides: str) -> ServeSettings:
        """The settings of a server on this folder; composing them takes longer than most tests, so it is done once."""
        plain = composed(overrides)
        return replace(
            plain,
            live=replace(plain.live, folder=f"{self.out}/live", log=f"{self.out}/events", served=f"{self.out}/served"),
            out=str(self.out),
            snapshots=self.snapshots,
            cache=f"{self.out}/cache",
            ledger=f"sqlite:///{self.out}/consent.db",
            keys=f"{self.out}/keys",
        )

    @contextmanager
    def served(
        self, *overrides: str, again: Callable[[], ServeSettings] | None = None
    ) -> Iterator[tuple[Server, Client]]:
        """A server in this process, and a client of it."""
        quick = ("port=0", "watch_seconds=0.05", "consent_poll_seconds=0.02", "drain_seconds=2")
        server = Server(self.settings(*quick, *overrides), again)
        server.start()
        try:
            with Client(f"127.0.0.1:{server.port}", timeout=20) as client:
                yield server, client
        finally:
            server.stop()

    @contextmanager
    def process(self, *overrides: str) -> Iterator[Process]:
        """A server in a process of its own."""
        process = Process([f"out={self.out}", f"snapshots={self.snapshots}", "port=0", "log.format=json", *overrides])
        try:
            yield process
        finally:
            process.kill()


class Process:
    """`python -m engine.serving`, started and listening."""

    def __init__(self, overrides: Sequence[str]) -> None:
        began = time.monotonic()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody empties would stop the server
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.serving", *overrides], stderr=self._said, cwd="/"
        )
        self.address = self._await_address()
        self.seconds_to_listen = time.monotonic() - began

    @property
    def lines(self) -> list[str]:
        """What it has said so far, in whole lines."""
        return os.pread(self._said.fileno(), os.fstat(self._said.fileno()).st_size, 0).decode().split("\n")[:-1]

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def client(self, timeout: float = 20) -> Client:
        """A client of it."""
        return Client(self.address, timeout=timeout)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.send_sigterm()
        return self.wait()

    def send_sigterm(self) -> None:
        """SIGTERM, without waiting."""
        os.kill(self._process.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        return self._process.wait(60)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)

    def _await_address(self) -> str:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            ended = self._process.poll() is not None
            for line in self.lines:
                if line.startswith("{") and (event := json.loads(line)).get("event") == "listening":
                    return str(event["address"])
            if ended:
                break
            time.sleep(0.01)
        self.kill()
        raise AssertionError(f"The server did not listen: {self.lines}")


@cache
def composed(overrides: Sequence[str]) -> ServeSettings:
    """Settings for a folder that the caller puts in."""
    return load(["out=.", *overrides])


def allow(client: Client, user: str, *sources: str, purpose: str = "profile") -> str:
    """Grant a purpose for some sources, or all where none is named; returns the token."""
    return client.set_consent(user, [grant(purpose, source) for source in sources or ("",)]).consent_token


def ids(reply: Any) -> list[str]:
    """Item ids of a list."""
    return [each.item_id for each in reply.items]
