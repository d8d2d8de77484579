"""What a run was asked, in words: RUN/_settings.json. Without secrets: passwords, tokens and keys in it are blotted out."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.stage import plain, read_json, write_json

_FILE = "_settings.json"
_BLOT = "***"
_SECRET_KEY = re.compile(r"(password|passwd|secret|token|credential)s?$|^user$", re.IGNORECASE)  # user: a canary's id
_SECRET_PARTS = (
    re.compile(r"(?<=://)([^/@\s:]*:)\S+(?=@)"),  # scheme://user:password@host, whatever the password holds
    re.compile(
        r"([?&;][^=&;]*(?:password|secret|token|signature|credential|key|\bsig)[^=&;]*=)[^&;\s]+", re.IGNORECASE
    ),
    re.compile(r"(\b(?:password|passwd)\s*=\s*)[^\s&;]+", re.IGNORECASE),  # host=... password=...
)


def keep(run: Path, settings: Any, inputs: Mapping[str, str]) -> None:
    """Write down what a run is asked; the time of its first beginning stays.

    Args:
        settings: a dataclass.
        inputs: what it reads, each with a fingerprint.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    began = (kept(run) or {}).get("began", now)
    content = {"began": began, "last": now, "inputs": dict(inputs), "settings": public(plain(settings))}
    write_json(run / _FILE, content)


def kept(run: Path) -> dict[str, Any] | None:
    """What was written down; None where nothing was."""
    return read_json(run / _FILE)


def public(value: Any, key: str = "") -> Any:
    """A plain value without its secrets."""
    if isinstance(value, dict):
        return {name: public(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [public(each, key) for each in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key):
        return _BLOT
    for pattern in _SECRET_PARTS:
        value = pattern.sub(lambda found: (found[1] or "") + _BLOT, value)
    return value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, the places of a list of mappings too; what is empty stays so."""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, each in value.items():
        found |= flat(each, f"{prefix}.{name}" if prefix else str(name))
    return found


def text(value: Any) -> str:
    """A value as people write it in a command."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
