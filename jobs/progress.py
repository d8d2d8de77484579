"""How far a loop is, on stderr: a bar on a terminal, plain lines elsewhere.

Elsewhere (a log file, a pipe, CI) a label gets at most one line a second while its loop runs and one when it ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int], None]

_LINE_EVERY_S = 1.0
_last_line: dict[str, float] = {}
_live: list[Progress] = []


def on_terminal() -> bool:
    """True where a bar can be drawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Print one line on stderr, above a bar that is being drawn."""
    if _live:
        _live[-1].console.print(text, markup=False, highlight=False)
    else:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show a loop's progress while the body runs.

    Args:
        label: what is counted, such as "users"; loops of one label share the limit of one line a second.
        total: how many steps there are.

    Yields:
        A function to call with the number of steps just done.
    """
    with _bar(label, total) if on_terminal() else _lines(label, total) as advance:
        yield advance


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if _live:  # only one display can own the terminal: a loop inside another gets a bar below it
        bar = _live[-1]
        task = bar.add_task(label, total=total)
        try:
            yield lambda steps: bar.update(task, advance=steps)
        finally:
            bar.remove_task(task)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        _live.append(bar)
        task = bar.add_task(label, total=total)
        try:
            yield lambda steps: bar.update(task, advance=steps)
        finally:
            _live.pop()


@contextlib.contextmanager
def _lines(label: str, total: int) -> Iterator[Advance]:
    began = time.monotonic()
    _last_line.setdefault(label, began)
    done = 0

    def line(key: str) -> None:
        now = time.monotonic()
        if now - _last_line.get(key, -_LINE_EVERY_S) >= _LINE_EVERY_S:
            _last_line[key] = now
            print(f"{label}: {done}/{total} in {now - began:.1f} s", file=sys.stderr, flush=True)

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        if done < total:
            line(label)

    try:
        yield advance
    finally:
        if total:
            line(f"{label} ended")
