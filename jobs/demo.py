"""The whole of it on one machine: simulate a shop, import its consent, run a night, serve it, and ask for four people.

python -m jobs.demo out=.bodega/demo
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bodega.client import BodegaRpcError, Client
from rich.console import Console
from rich.table import Table

from engine.errors import BodegaError, SnapshotError
from jobs.import_consent import import_file
from jobs.launch import recipe
from jobs.progress import say
from jobs.settings import Settings
from jobs.simulate import open_shop

CAST = {
    "regular": "a regular, who allows every source",
    "newcomer": "a newcomer, whom the shop hardly knows",
    "no_consent": "somebody who allows nothing",
    "gift_burst": "somebody who just bought a pile of gifts",
}
START_SECONDS = 30.0


@recipe("demo")
def main(settings: Settings) -> None:
    """The command."""
    began = time.monotonic()
    out = Path(settings.out).resolve()
    cast_file = out / "cast.json"
    if not cast_file.exists():
        report = open_shop(settings)
        cast_file.write_text(json.dumps(dict(report.cast)))
        say(f"simulate: {report.total} events of {report.people} people over {report.days} days")
    done = import_file(settings, str(out / "shop" / "grants.parquet"))
    say(f"consent: {done.people} people, {done.changes} changes imported, {done.skipped} were there already")
    # The night is its own process, as in production: what it leaves on disk is all that the server gets.
    asked = [argument for argument in sys.argv[1:] if not argument.startswith("out=")]
    command = [sys.executable, "-m", "jobs.nightly", f"out={out}", f"data.path={out / 'shop'}", *asked]
    night = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if night.returncode:
        raise BodegaError(f"The night ended with code {night.returncode}.", "Its message stands above.")
    with _server(out) as address, Client(address, timeout=5.0) as client:
        _wait(client)
        for segment, who in CAST.items():
            if user := json.loads(cast_file.read_text()).get(segment):
                _show(client, user, who)
    figures = json.loads(night.stdout.splitlines()[-1])
    _compare(figures)
    print(f"\nDone in {time.monotonic() - began:.0f} s. What was started is stopped; the data stays in {out}.")
    print("  make serve                                       serve it at 127.0.0.1:50051")
    regular = json.loads(cast_file.read_text()).get("regular", "USER")
    print(f"  .venv/bin/bodega recommend {regular}                 ask, in another terminal")
    print(f"  .venv/bin/bodega consent withdraw {regular} profile  and ask again")


def _show(client: Client, user: str, who: str) -> None:
    began = time.perf_counter()
    reply = client.recommend(user, surface="home", limit=8)
    took = (time.perf_counter() - began) * 1000
    how = reply.provenance
    mode = how.Mode.Name(how.mode).removeprefix("MODE_").lower().replace("_", "-")
    title = f"{user}: {who}\n{mode}{f' ({how.reason})' if how.reason else ''}, {took:.1f} ms"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("item", "lane", "score", "why"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for item in reply.items:
        why = item.reasons[0].text if item.reasons else ""
        table.add_row(item.item_id, item.lane, f"{item.score:.4f}", why)
    Console(width=120).print(table)


def _compare(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table(title="The last week, held out: recall@20", title_justify="left", title_style="bold")
    for column in ("ranker", "all wants", "new ones"):
        table.add_column(column, justify="left" if column == "ranker" else "right")
    for ranker in ("served", "personal_frequency", "item_to_item", "popularity"):
        shown = [figures[ranker][kind].get("recall@20") for kind in ("all", "new")]
        table.add_row(ranker, *("-" if value is None else f"{value:.3f}" for value in shown))
    Console(width=120).print(table)


@contextlib.contextmanager
def _server(out: Path) -> Iterator[str]:
    """A server process on a free port, ended when the body is done."""
    log = (out / "server.log").open("w")
    command = [sys.executable, "-m", "engine.serving", f"out={out}", "port=0", "log.format=json"]
    process = subprocess.Popen(command, stderr=log, env=dict(os.environ))
    try:
        yield _address(process, out / "server.log")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and json.loads(line).get("event") == "listening":
                return str(json.loads(line)["address"])
        time.sleep(0.05)
    raise SnapshotError("The server did not start.", f"See {log}.")


def _wait(client: Client) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            if client.status().snapshot.snapshot_id:
                return
        except BodegaRpcError:
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            raise SnapshotError("The server has no snapshot to serve.", "See server.log in the output folder.")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
