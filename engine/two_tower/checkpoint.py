"""Models on disk, as safetensors and JSON: nothing is ever unpickled.

FOLDER/checkpoint.json                 how far a fit has come; renamed into place last, so it decides
FOLDER/0002-checkpoint.safetensors     after so many epochs: `model.<name>`, and `optimiser.<parameter>.<name>`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.errors import TrainingError

_TENSORS, _STATE = "checkpoint.safetensors", "checkpoint.json"
_REMEDY = "Remove the run's train folder."


@dataclass(slots=True)
class Progress:
    """How far a fit has come. settings: names all that decides the outcome; losses: of each epoch."""

    settings: str = ""
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    file: str = ""
    sha256: str = ""


def resume(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, settings: Mapping[str, Any]) -> Progress:
    """Load the checkpoint of the same settings, if there is a whole one; else start anew.

    Args:
        settings: all that decides the outcome, data included: a model of other data must not pass for this one, least of all of
            people who have withdrawn since.

    Raises:
        TrainingError: it is as it was written, and does not fit the model.
    """
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    state = read(folder)
    if state is None or state.settings != name or _sha256(folder / state.file) != state.sha256:
        return Progress(settings=name)
    moments: dict[int, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    try:
        for key, tensor in load_file(folder / state.file).items():
            owner, _, rest = key.partition(".")
            if owner == "model":
                weights[rest] = tensor
            else:
                parameter, _, moment = rest.partition(".")
                moments.setdefault(int(parameter), {})[moment] = tensor
        model.load_state_dict(weights)
        # The groups come from the settings and the schedule alone; what was learned of each parameter is what is stored.
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{folder / state.file} does not fit this model: {error}", _REMEDY) from error
    return state


def read(folder: Path) -> Progress | None:
    """What the checkpoint in a folder says of itself; None where there is none that can be read."""
    try:
        return Progress(**json.loads((folder / _STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: Progress) -> None:
    """Write a checkpoint beside the last one, then let it count, then remove the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{parameter}.{name}": value for name, value in moments.items()}
    state.file = f"{state.epoch:04d}-{_TENSORS}"
    _write(folder / state.file, tensors)
    state.sha256 = _sha256(folder / state.file)
    temporary = folder / f".{_STATE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(folder / _STATE)
    _sweep(folder, state.file)


def remove(folder: Path) -> None:
    """Remove the checkpoint, and what killed writers left."""
    (folder / _STATE).unlink(missing_ok=True)
    _sweep(folder, "")


def save_weights(path: Path, model: nn.Module) -> None:
    """Parameters alone, by name."""
    _write(path, dict(model.state_dict()))


def load_weights(path: Path, model: nn.Module) -> None:
    """Read parameters saved by `save_weights`.

    Raises:
        TrainingError: the file is missing, damaged, or does not fit the model.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{path} does not fit this model: {error}", _REMEDY) from error


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all, even if another process writes the same: one that was taken for lost may still be at it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def _sweep(folder: Path, kept: str) -> None:
    for old in [*folder.glob(f"*-{_TENSORS}"), *folder.glob(".*.safetensors.*"), *folder.glob(f".{_STATE}.*")]:
        if old.name != kept:
            old.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
