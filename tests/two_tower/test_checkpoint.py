"""Checkpoints: whole or not at all, and never taken for those of other settings or other data."""

import hashlib
import json

import pytest
import torch
from torch import nn

from engine.errors import TrainingError
from engine.two_tower import checkpoint


def made(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return model, optimiser


def saved(folder, settings, epoch=1):
    model, optimiser = made()
    state = checkpoint.resume(folder, *made(5), settings)
    state.epoch, state.step = epoch, 7 * epoch
    checkpoint.save(folder, model, optimiser, state)
    return model, optimiser, state


def test_what_was_saved_comes_back(tmp_path):
    model, optimiser, state = saved(tmp_path / "new", {"a": 1})
    other, other_optimiser = made(9)
    again = checkpoint.resume(tmp_path / "new", other, other_optimiser, {"a": 1})
    assert again == state
    assert not [path for path in (tmp_path / "new").iterdir() if path.suffix not in (".json", ".safetensors")]
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    ours, theirs = optimiser.state_dict()["state"], other_optimiser.state_dict()["state"]
    assert torch.equal(ours[0]["exp_avg_sq"], theirs[0]["exp_avg_sq"])


def test_other_settings_begin_anew(tmp_path):
    saved(tmp_path, {"a": 1})
    model, optimiser = made(9)
    weight = model.weight.clone()
    assert checkpoint.resume(tmp_path, model, optimiser, {"a": 2}).epoch == 0
    assert torch.equal(model.weight, weight)


def test_a_state_of_another_version_begins_anew(tmp_path):
    tmp_path.joinpath("checkpoint.json").write_text(json.dumps({"settings": "x", "no_longer_known": 1}))
    assert checkpoint.resume(tmp_path, *made(), {"a": 1}).epoch == 0


def test_a_newer_checkpoint_replaces_the_older_one(tmp_path):
    model, optimiser, state = saved(tmp_path, {"a": 1})
    state.epoch = 2
    checkpoint.save(tmp_path, model, optimiser, state)
    assert {path.name[:4] for path in tmp_path.iterdir()} == {"0002", "chec"}


def test_a_crash_between_the_files_leaves_the_older_one(tmp_path):
    model, _, _ = saved(tmp_path, {"a": 1})
    checkpoint.save_weights(tmp_path / "0002-checkpoint.safetensors", made(3)[0])  # and no state file yet
    other, optimiser = made(9)
    assert checkpoint.resume(tmp_path, other, optimiser, {"a": 1}).epoch == 1
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("damage", ["cut short", "missing", "a flipped bit", "a state that is cut short"])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path, damage):
    saved(tmp_path, {"a": 1})
    (path,) = tmp_path.glob("*.safetensors" if "state" not in damage else "*.json")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if "bit" in damage else content[:-20])
    model, optimiser = made(9)
    weight = model.weight.clone()
    again = checkpoint.resume(tmp_path, model, optimiser, {"a": 1})
    assert (again.epoch, again.losses) == (0, []) and torch.equal(model.weight, weight)


def test_nothing_is_left_when_it_is_removed(tmp_path):
    saved(tmp_path, {"a": 1})
    (tmp_path / ".0002-checkpoint.safetensors.77").write_bytes(b"by a killed writer")
    checkpoint.save_weights(tmp_path / "model.safetensors", nn.Linear(3, 2))
    checkpoint.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_of_another_shape_are_refused_with_the_file(tmp_path):
    checkpoint.save_weights(tmp_path / "model.safetensors", nn.Linear(3, 2))
    with pytest.raises(TrainingError, match=r"model\.safetensors does not fit"):
        checkpoint.load_weights(tmp_path / "model.safetensors", nn.Linear(4, 2))


def test_a_pickle_in_the_place_of_a_checkpoint_is_never_run(tmp_path):
    saved(tmp_path, {"a": 1})
    (path,) = tmp_path.glob("*.safetensors")
    touched = tmp_path / "touched"

    class Hostile:
        def __reduce__(self):
            return (touched.write_text, ("x",))

    torch.save(Hostile(), path)
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    state["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()  # whoever put it there could put that there too
    (tmp_path / "checkpoint.json").write_text(json.dumps(state))
    with pytest.raises(TrainingError, match=path.name):
        checkpoint.resume(tmp_path, *made(), {"a": 1})
    assert not touched.exists()
