"""Models on disk: weights as safetensors, the optimiser through torch's weights-only loader. Nothing is ever unpickled freely."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from engine.errors import TrainingError

_WEIGHTS, _OPTIMISER, _STATE = "checkpoint.safetensors", "optimiser.pt", "checkpoint.json"
_REMEDY = "Remove the run's train folder."


@dataclass(slots=True)
class Progress:
    """How far a fit has come."""

    settings: str = ""
    epoch: int = 0
    step: int = 0
    loss: float | None = None
    weights: str = ""
    optimiser: str = ""


def resume(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, settings: Mapping[str, Any]) -> Progress:
    """Load the checkpoint of the same settings, if there is a whole one; else start anew.

    Args:
        settings: all that decides the outcome, data included: a model of other data must not pass for this one, least of all of
            people who have withdrawn since.
    """
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / _STATE
    if not path.exists():
        return Progress(settings=name)
    stored = json.loads(path.read_text())
    if stored.get("settings") != name:
        return Progress(settings=name)
    state = Progress(**stored)
    load_weights(folder / state.weights, model)
    try:
        optimiser.load_state_dict(torch.load(folder / state.optimiser, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{folder / state.optimiser} is damaged: {error}", _REMEDY) from error
    return state


def save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: Progress) -> None:
    """Write a checkpoint beside the last one; the state file, renamed last, decides which of them counts."""
    folder.mkdir(parents=True, exist_ok=True)
    old = (state.weights, state.optimiser)
    state.weights, state.optimiser = f"{state.epoch:04d}-{_WEIGHTS}", f"{state.epoch:04d}-{_OPTIMISER}"
    save_weights(folder / state.weights, model)
    torch.save(optimiser.state_dict(), folder / state.optimiser)
    temporary = folder / f"{_STATE}.new"
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(folder / _STATE)
    for name in old:
        if name:
            (folder / name).unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module) -> None:
    """Parameters alone, by name."""
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Read parameters saved by `save_weights`.

    Raises:
        TrainingError: the file is missing, damaged, or does not fit the model.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{path} does not fit this model: {error}", _REMEDY) from error
