"""The runs of a deployment: which there are, what one is made of, and in what two differ. Reads only."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import SettingsError
from jobs import record
from jobs.launch import near_miss
from jobs.lock import holder_of
from jobs.stage import read_json

STAGES = ("ingest", "train", "embed", "rank", "evaluate", "publish")
_SHORT = 60  # characters of a fact
_MANY = 8  # entries of a fact that are still shown one by one


@dataclass
class StageView:
    """A stage of a run. state: whole, at work, killed, begun (nobody is at it now) or unknown (on another machine).

    done, of: shards; of is 0 where the stage has not said yet. files: SHA-256 by path.
    """

    name: str
    state: str
    done: int
    of: int
    bytes: int
    seconds: float | None
    inputs: dict[str, str]
    config: str
    files: dict[str, str]
    facts: dict[str, Any]


@dataclass
class RunView:
    """A run. who: holds it or held it last; working: None where that cannot be told from here."""

    name: str
    began: str
    who: str
    working: bool | None
    settings: dict[str, Any]
    inputs: dict[str, str]
    stages: list[StageView] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """What the whole stages took."""
        return round(sum(each.seconds or 0.0 for each in self.stages), 1)

    @property
    def snapshot(self) -> str:
        """What it published, or ''."""
        return next((str(each.facts.get("snapshot", "")) for each in self.stages if each.name == "publish"), "")

    @property
    def metrics(self) -> dict[str, float]:
        """What evaluate measured."""
        return next((dict(each.facts.get("metrics", {})) for each in self.stages if each.name == "evaluate"), {})


def runs_of(out: Path) -> list[RunView]:
    """Every run here, the newest first.

    Raises:
        SettingsError: this is no deployment's folder.
    """
    if not (out / "runs").is_dir():
        raise SettingsError(f"There are no runs in {out}.", "Name the deployment's folder with --out.")
    folders = [path for path in (out / "runs").glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted((view(folder) for folder in folders), key=lambda run: (run.began, run.name), reverse=True)


def named(out: Path, name: str, whole: bool = False) -> Path:
    """The folder of a run, by its name or by a beginning that no other has.

    Args:
        whole: only by its name.

    Raises:
        SettingsError: there is none, or there are several.
    """
    known = sorted(path.name for path in (out / "runs").glob("*") if path.is_dir())
    if name in known:
        return out / "runs" / name
    found = [each for each in known if name and each.startswith(name) and not whole]
    if len(found) == 1:
        return out / "runs" / found[0]
    if found:
        raise SettingsError(f"'{name}' could be any of {', '.join(found)}.", "Write more of the name.")
    near = near_miss(name, known)
    raise SettingsError(
        f"There is no run '{name}' in {out / 'runs'}." + (f" Did you mean '{near}'?" if near else ""),
        "`bodega runs list` names them.",
    )


def view(run: Path) -> RunView:
    """What a run's files say."""
    kept, holder = record.kept(run) or {}, holder_of(run)
    working = holder.lives if holder else False
    made = RunView(
        run.name,
        kept.get("began") or _time_of(run),
        str(holder) if holder else "",
        working,
        record.flat(kept.get("settings", {})) if kept else {},
        kept.get("inputs", {}),
    )
    killed = holder is not None and not holder.ended and working is False
    places = {name: place for place, name in enumerate(STAGES)}
    folders = [path.parent for path in run.glob("*/_begun.json")]
    for folder in sorted(folders, key=lambda each: (places.get(each.name, len(places)), each.name)):
        made.stages.append(_stage(folder, working, killed))
    return made


def differences(one: RunView, other: RunView) -> dict[str, dict[str, Any]]:
    """In what two runs differ: by kind and name, the values of both; None where one of them has none."""
    found: dict[str, dict[str, Any]] = {
        "inputs": _differ(one.inputs, other.inputs),
        "settings": _differ(one.settings, other.settings),
    }
    stages = [{each.name: each for each in run.stages} for run in (one, other)]
    for part in ("state", "config"):
        found[part] = _differ(*({name: getattr(each, part) for name, each in run.items()} for run in stages))
    found["files"] = _differ(
        *({f"{name}/{path}": sha for name, each in run.items() for path, sha in each.files.items()} for run in stages)
    )
    found["metrics"] = _differ(one.metrics, other.metrics)
    found["snapshot"] = _differ({"publish": one.snapshot}, {"publish": other.snapshot})
    return {kind: each for kind, each in found.items() if each}


def in_short(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts as a line each: large ones by their size alone."""
    for name, fact in facts.items():
        if (
            isinstance(fact, dict)
            and 0 < len(fact) <= _MANY
            and not any(isinstance(x, dict | list) for x in fact.values())
        ):
            yield name, ", ".join(f"{key} {_number(value)}" for key, value in fact.items())
        elif isinstance(fact, dict | list) and fact:
            text = record.text(fact)
            yield name, text if len(text) <= _SHORT else f"{len(fact)} entries"
        elif fact not in ("", None, {}, []):
            yield name, _number(fact)


def _stage(folder: Path, working: bool | None, killed: bool) -> StageView:
    begun, whole = read_json(folder / "_begun.json") or {}, read_json(folder / "_stage.json")
    asked = (read_json(folder / "_asked.json") or {}).get("shards", [])
    done = {path.stem: read_json(path) for path in (folder / "_shards").glob("*.json")}
    shards = {name: marker for name, marker in done.items() if marker}
    files = (
        whole["files"] if whole else {path: about for each in shards.values() for path, about in each["files"].items()}
    )
    if whole:
        state = "whole"
    elif working is None:
        state = "unknown"
    else:
        state = "at work" if working else "killed" if killed else "begun"
    return StageView(
        folder.name,
        state,
        len(shards),
        len(set(asked) | set(shards)) if asked or whole else 0,
        sum(about["bytes"] for about in files.values()),
        whole["seconds"] if whole else None,
        begun.get("inputs", {}),
        begun.get("config", "")[:16],
        {path: about["sha256"] for path, about in sorted(files.items())},
        whole["facts"] if whole else {},
    )


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = [*one, *(name for name in other if name not in one)]
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else record.text(value)


def _time_of(run: Path) -> str:
    return datetime.datetime.fromtimestamp(run.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")
