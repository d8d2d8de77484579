"""`bodega runs`: list them, show one, and tell in what two differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jobs.runs import RunView

runs = typer.Typer(help="What the nights did.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the deployment, as out=DIR of the jobs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or the beginning of it.")]
_OUT = Path(".bodega/out")
_WIDE = 80  # characters of a value
_FILES = 12  # that differ, of each stage, are named


@runs.command("list")
def runs_list(out: Out = _OUT, as_json: AsJson = False) -> None:
    """The runs here, newest first."""
    from jobs.runs import runs_of
    from jobs.tables import print_table

    found = runs_of(out)
    served = _served(out, found)
    if as_json:
        print(json.dumps([_brief(run, served) for run in found]))
        return
    rows = [
        (
            run.name,
            _when(run.began),
            _stages(run),
            _work(run),
            f"{run.seconds:,.1f}",
            run.snapshot,
            _serves(run, served),
        )
        for run in found
    ]
    print_table(("run", "begun", "stages", "", "seconds", "snapshot", ""), rows)


@runs.command("show")
def runs_show(run: Name, out: Out = _OUT, as_json: AsJson = False) -> None:
    """One run: its stages, what they read, made and found."""
    from jobs.runs import in_short, named, view
    from jobs.tables import print_table

    seen = view(named(out, run))
    served = _served(out, [seen])
    if as_json:
        print(json.dumps(_brief(seen, served) | asdict(seen)))
        return
    print(f"{seen.name}, begun {_when(seen.began)}, {_work(seen) or 'nobody works on it'}")
    print(f"snapshot {seen.snapshot} {_serves(seen, served)}" if seen.snapshot else "nothing was published")
    rows = [
        (
            each.name,
            each.state,
            f"{each.done}/{each.of or '?'}",
            f"{len(each.files):,}",
            f"{each.bytes / 2**20:,.1f}",
            "" if each.seconds is None else f"{each.seconds:,.1f}",
            each.config,
            ", ".join(f"{name} {value[:16]}" for name, value in each.inputs.items() if value and "/" not in name),
        )
        for each in seen.stages
    ]
    print_table(("stage", "state", "shards", "files", "MiB", "seconds", "settings", "inputs"), rows)
    facts = [(each.name, name, fact) for each in seen.stages for name, fact in in_short(each.facts)]
    print_table(("stage", "fact", ""), facts)


@runs.command("diff")
def runs_diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A run.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another run.")],
    out: Out = _OUT,
    as_json: AsJson = False,
) -> None:
    """In what two runs differ: inputs and code, settings, files and metrics."""
    from jobs.runs import differences, named, view
    from jobs.tables import print_table

    first, second = view(named(out, one)), view(named(out, other))
    found = differences(first, second)
    if as_json:
        print(json.dumps({"a": first.name, "b": second.name} | found))
        return
    if not found:
        print(f"{first.name} and {second.name}: the same inputs, settings, files and metrics")
        return
    rows = []
    for kind, each in found.items():
        shown = _fewer(each) if kind == "files" else each
        rows += [(kind, name, *(_cell(value) for value in pair)) for name, pair in shown.items()]
    print_table(("", "", first.name, second.name), rows)


def _fewer(files: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Checksums cut short; of each stage the first files, and how many more there are."""
    shown: dict[str, list[Any]] = {}
    by_stage: dict[str, list[str]] = {}
    for path in files:
        by_stage.setdefault(path.partition("/")[0], []).append(path)
    for stage, paths in by_stage.items():
        shown |= {path: [value and value[:16] for value in files[path]] for path in paths[:_FILES]}
        if len(paths) > _FILES:
            shown[f"{stage}: {len(paths) - _FILES} more"] = ["", ""]
    return shown


def _cell(value: Any) -> str:
    from jobs.record import text

    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else text(value)[:_WIDE]


def _brief(run: RunView, served: str) -> dict[str, Any]:
    return {
        "name": run.name,
        "began": run.began,
        "states": {each.name: each.state for each in run.stages},
        "holder": run.who if run.working is not False else "",
        "working": run.working,
        "seconds": run.seconds,
        "snapshot": run.snapshot,
        "serves": bool(run.snapshot) and run.snapshot == served,
    }


def _stages(run: RunView) -> str:
    """`train whole` where all up to it are, and what is the matter with those that are not."""
    whole = [each.name for each in run.stages if each.state == "whole"]
    other = [f"{each.name} {each.state} {each.done}/{each.of or '?'}" for each in run.stages if each.state != "whole"]
    return ", ".join([*([f"whole up to {whole[-1]}"] if whole else []), *other])


def _work(run: RunView) -> str:
    if run.working:
        return run.who
    return f"{run.who}: not to be told from here whether it lives" if run.working is None else ""


def _serves(run: RunView, served: str) -> str:
    return "serves" if run.snapshot and run.snapshot == served else ""


def _when(moment: str) -> str:
    return moment.replace("T", " ").partition("+")[0]


def _served(out: Path, found: Sequence[RunView]) -> str:
    """The snapshot that serves, where the runs say that they publish; '' where that cannot be read."""
    from engine.errors import SnapshotError
    from engine.snapshot import Registry

    here = out / "snapshots"
    named = next((run.settings["store.snapshots"] for run in found if run.settings.get("store.snapshots")), "")
    try:
        return str(Registry(here if here.is_dir() or not named else named).current())
    except SnapshotError:
        return ""
