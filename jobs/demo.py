"""The whole of it on one machine: simulate a shop, import its consent, run a night, serve it, ask for four people, and let one of
them look around.

python -m jobs.demo out=.bodega/demo
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bodega.client import Client, event
from rich.console import Console
from rich.table import Table

from jobs.import_consent import import_file
from jobs.launch import recipe
from jobs.processes import run_night, server, wait_for_snapshot
from jobs.progress import say
from jobs.settings import Settings
from jobs.simulate import open_shop

CAST = {
    "regular": "a regular, who allows every source",
    "newcomer": "a newcomer, whom the shop hardly knows",
    "no_consent": "somebody who allows nothing",
    "gift_burst": "somebody who just bought a pile of gifts",
}


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
    figures = run_night(out, [argument for argument in sys.argv[1:] if not argument.startswith("out=")])
    with server(out) as address, Client(address, timeout=5.0) as client:
        wait_for_snapshot(client)
        cast = json.loads(cast_file.read_text())
        for segment, who in CAST.items():
            if user := cast.get(segment):
                _show(client, user, who)
        if newcomer := cast.get("newcomer"):
            _look_around(client, newcomer)
            _show(client, newcomer, "the same newcomer, who has looked at three things since")
    _compare(figures)
    print(f"\nDone in {time.monotonic() - began:.0f} s. What was started is stopped; the data stays in {out}.")
    print("  make serve                                       serve it at 127.0.0.1:50051")
    regular = cast.get("regular", "USER")
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


def _look_around(client: Client, user: str) -> None:
    """Have somebody click on three things of a kind."""
    last = client.recommend(user, surface="home", limit=8).items[-1].item_id
    seen = [last, *(item.item_id for item in client.similar(last, limit=2).items)]
    client.record_events([event(user, "click", item, source="web") for item in seen])


def _compare(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table(title="The last week, held out: recall@20", title_justify="left", title_style="bold")
    for column in ("ranker", "all wants", "new ones"):
        table.add_column(column, justify="left" if column == "ranker" else "right")
    for ranker in ("served", "personal_frequency", "item_to_item", "popularity"):
        shown = [figures[ranker][kind].get("recall@20") for kind in ("all", "new")]
        table.add_row(ranker, *("-" if value is None else f"{value:.3f}" for value in shown))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
