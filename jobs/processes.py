"""A night and a server as processes of their own, as in production: what lies on disk is all that they share.

What was started here is ended here, whatever happens meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bodega.client import BodegaRpcError, Client

from engine.errors import BodegaError, GateBlocked, SnapshotError

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


def run_night(out: Path, arguments: Sequence[str] = (), timeout: float | None = None) -> dict[str, Any]:
    """Run `jobs.nightly` over OUT/shop.

    Args:
        out: the deployment's folder.
        arguments: further settings, key=value.
        timeout: seconds after which it is told to stop.

    Returns:
        Its last line: figures and the snapshot's id.

    Raises:
        GateBlocked: it ran, and published nothing. BodegaError: it failed, or took too long.
    """
    command = [sys.executable, "-m", "jobs.nightly", f"out={out}", f"data.path={out / 'shop'}", *arguments]
    with _ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise BodegaError(f"The night took longer than {timeout:.0f} s.", "Allow it more time.") from error
    if process.returncode == GateBlocked.exit_code:
        raise GateBlocked("The night published nothing.", "Its message stands above.")
    if process.returncode:
        raise BodegaError(f"The night ended with code {process.returncode}.", "Its message stands above.")
    figures: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return figures


@contextlib.contextmanager
def server(out: Path, *overrides: str) -> Iterator[str]:
    """A server of the folder on a free port of this machine; yields its address.

    Args:
        overrides: settings of conf/serve.yaml.

    Raises:
        SnapshotError: it did not start.
    """
    with (out / "server.log").open("w") as log:
        command = [sys.executable, "-m", "engine.serving", f"out={out}", "port=0", "log.format=json", *overrides]
        with _ended(subprocess.Popen(command, stderr=log, env=dict(os.environ))) as process:
            yield _address(process, out / "server.log")


def wait_for_snapshot(client: Client, snapshot: str = "") -> None:
    """Wait until the server serves a snapshot, or that one.

    Raises:
        SnapshotError: it does not come to it. BodegaRpcError: it cannot be reached.
    """
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            served = client.status().snapshot.snapshot_id
            if served and snapshot in ("", served):
                return
        except BodegaRpcError:
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            missing = f"the snapshot {snapshot}" if snapshot else "a snapshot"
            raise SnapshotError(f"The server does not serve {missing}.", "See server.log in the output folder.")
        time.sleep(0.05)


def _address(process: subprocess.Popen[Any], log: Path) -> str:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and json.loads(line).get("event") == "listening":
                return str(json.loads(line)["address"])
        time.sleep(0.05)
    raise SnapshotError("The server did not start.", f"See {log}.")


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """A process that is over when the body is: told to stop, and killed where it does not."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
