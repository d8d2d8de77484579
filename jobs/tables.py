"""Tables for people, on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_PIPE_WIDTH = 200


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their titles; a pipe gets a width that cuts no id in two."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*titles)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
