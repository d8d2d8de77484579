"""What the gates said, as a table for people and in one line."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.evaluation.gates import Outcome, Verdict, broken

_WIDTH = 180
_COLUMNS = ("gate", "figure", "today", "yesterday", "bound", "verdict")


def gate_table(verdicts: Sequence[Verdict]) -> str:
    """All gates, figure by figure, and under the table what is broken and by how much."""
    made = Table(box=None, pad_edge=False, padding=(0, 2))
    for place, name in enumerate(_COLUMNS):
        made.add_column(name, justify="right" if place in (2, 3) else "left", no_wrap=True)
    for each in verdicts:
        why = f": {each.why}" if each.outcome is Outcome.SKIPPED else ""
        said = f"{each.outcome.value}{why}"
        cells = (each.gate, each.figure, _cell(each.today), _cell(each.yesterday), each.bound, said)
        made.add_row(*map(Text, cells))
    console = Console(file=io.StringIO(), width=_WIDTH, highlight=False)
    console.print(made)
    for why in broken(verdicts):
        console.print(f"{Outcome.BROKEN.value}: {why}", markup=False, soft_wrap=True)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def brief(verdicts: Sequence[Verdict]) -> list[str]:
    """One line with the counts, and one for each reason why something was not compared."""
    counts = Counter(each.outcome for each in verdicts)
    lines = ["gates: " + ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])]
    skipped = Counter(each.why for each in verdicts if each.outcome is Outcome.SKIPPED)
    return lines + [f"  {count} not compared: {why}" for why, count in skipped.items()]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"
