"""The report of an ingest: a table for people, on stderr and beside the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.night import iso

_DAYS_SHOWN, _FILES_SHOWN, _WARNINGS_SHOWN = 14, 10, 10
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did: tasks done and those that were done before, seconds, and the most memory of one process, bytes."""

    name: str
    done: int
    reused: int
    seconds: float
    peak: int


def show(told: dict[str, Any], file: Path | None) -> None:
    """Print the report, and write it to a file where one is given.

    Args:
        told: facts of the stage, as its manifest has them; a dry run knows fewer.
    """
    _print(Console(file=sys.stderr, width=_WIDTH, highlight=False), told)
    if file is not None:
        with file.open("w") as sink:
            _print(Console(file=sink, width=_WIDTH, highlight=False), told)


def _print(console: Console, told: dict[str, Any]) -> None:
    kept = f", {told['events']:,} events kept, up to {iso(told['as_of'])}" if "events" in told else ""
    console.print(f"ingest: {told['files']:,} files, {told['rows']:,} rows{kept}", markup=False)
    if "partitions" in told:
        console.print("  partitions: {read} read, {reused} from the store".format(**told["partitions"]))
    if "people" in told:
        console.print(f"  people: {told['people']:,}, of whom {told['people_without_grant']:,} granted nothing")
    for name in told.get("late", []):
        console.print(f"  late: {name}", markup=False)
    _table(console, "sound rows by source", ("source", "rows", "arrived up to"), _sources(told))
    _table(console, "sound rows by event", ("event", "rows"), _most(told["by_event"]))
    days = sorted(told["by_day"].items())
    _table(console, "sound rows by day" + (f" (the last {_DAYS_SHOWN} of {len(days)})" if len(days) > _DAYS_SHOWN else ""),
           ("day", "rows"), [(day, f"{rows:,}") for day, rows in days[-_DAYS_SHOWN:]])  # fmt: skip
    bad = {name: count for name, count in told["counts"].items() if not name.startswith("-")}
    _table(console, "quarantined rows by reason", ("reason", "rows"), _most(bad))
    _table(console, "quarantined rows by file", ("file", "rows"), _most(told["bad_rows"])[:_FILES_SHOWN])
    refused = [(name, why["why"], why["message"]) for name, why in told["refused"].items()]
    _table(console, "quarantined files", ("file", "reason", "what is wrong"), refused[:_FILES_SHOWN])
    left = {name[1:].replace("_", " "): count for name, count in told["counts"].items() if name.startswith("-")}
    _table(console, "rows left out, which is no fault", ("why", "rows"), _most(left))
    expired = told.get("expired", {})
    oldest = told.get("oldest", {})
    _table(console, "retention", ("event", "rows past it", "oldest kept"),
           [(name, f"{expired.get(name, 0):,}", oldest.get(name, "")) for name in sorted({*expired, *oldest})])  # fmt: skip
    _table(console, "steps", ("step", "tasks", "from before", "seconds", "peak of a process"),
           [(step["name"], str(step["done"]), str(step["reused"]), f"{step['seconds']:.1f}", _mib(step["peak"]))
            for step in told["steps"]])  # fmt: skip
    for name, size in told.get("bytes", {}).items():
        console.print(f"  {name}: {_mib(size)}")
    shown = told["warnings"][-_WARNINGS_SHOWN:]
    if len(told["warnings"]) > len(shown):
        console.print(f"  warning: {len(told['warnings']) - len(shown)} earlier ones are in _stage.json")
    for warning in shown:
        console.print(f"  warning: {warning}", markup=False)


def _sources(told: dict[str, Any]) -> list[tuple[str, ...]]:
    marks = told["watermarks"]
    return [(name, rows, iso(marks[name])) for name, rows in _most(told["by_source"])]


def _most(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [
        (name, f"{count:,}") for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if count
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _table(console: Console, title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    made = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, padding=(0, 2))
    for place, name in enumerate(columns):
        made.add_column(name, justify="right" if place and name in ("rows", "tasks", "seconds") else "left")
    for row in rows:
        made.add_row(*map(Text, row))
    if made.row_count:
        console.print(made)
