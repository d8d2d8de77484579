"""Fits: deterministic, resumable, the same on all workers, loud when they fail, and worth their time."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import TrainingError
from engine.kernels.encode_user import encode, pool
from engine.two_tower.encoding import group_sums, item_vectors
from engine.two_tower.features import describe
from engine.two_tower.histories import Histories
from engine.two_tower.settings import TowerSettings, TrainSettings
from engine.two_tower.training import fit
from tests.event_logs import catalogue, clustered_log, histories, without

CLUSTERS, EACH = 8, 12
ITEMS = CLUSTERS * EACH
TOWER = TowerSettings(width=8, hashed=64)
TRAIN = TrainSettings(epochs=2, events=256, window=16, rate=1e-2)


def bag(items=ITEMS):
    return describe(catalogue([f"kind{item // EACH} thing" for item in range(items)]), 64)


@pytest.fixture(scope="module")
def past():
    return clustered_log(80, CLUSTERS, EACH)


def bytes_of(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_the_same_fit_twice_gives_the_same_bytes(past, tmp_path):
    one, other = (bytes_of(fit(past, bag(), TOWER, TRAIN, tmp_path / name)) for name in "ab")
    assert one == other
    changed = bytes_of(fit(past, bag(), TOWER, replace(TRAIN, seed=8), tmp_path / "c"))
    assert changed["items.ids"] != one["items.ids"]


@pytest.mark.parametrize("full_up_to", [20_000, 0], ids=["full softmax", "sampled"])
def test_a_resumed_fit_ends_in_the_bytes_of_an_undisturbed_one(past, tmp_path, full_up_to):
    train = replace(TRAIN, epochs=3, full_up_to=full_up_to, negatives=32)
    whole = fit(past, bag(), TOWER, train, tmp_path / "whole")

    class Killed(Exception):
        pass

    lines = []

    def tell(line):
        lines.append(line)
        if len(lines) == 2:
            raise Killed

    with pytest.raises(Killed):
        fit(past, bag(), TOWER, train, tmp_path / "cut", tell=tell)
    resumed = fit(past, bag(), TOWER, train, tmp_path / "cut", tell=lines.append)
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert bytes_of(resumed) == bytes_of(whole)


def test_a_finished_fit_is_not_run_again(past, tmp_path):
    lines = []
    one = fit(past, bag(), TOWER, TRAIN, tmp_path, tell=lines.append)
    other = fit(past, bag(), TOWER, TRAIN, tmp_path, tell=lines.append)
    assert len(lines) == 2 and bytes_of(one) == bytes_of(other) and not other.training


def test_a_checkpoint_of_people_who_withdrew_since_is_not_taken_up(past, tmp_path):
    lines = []
    fit(past, bag(), TOWER, TRAIN, tmp_path, tell=lines.append)
    less = without(past, past.owner == 3)
    fit(less, bag(), TOWER, TRAIN, tmp_path, tell=lines.append)
    assert len(lines) == 4


def broken(past, **columns):
    return Histories(**{name: columns.get(name, getattr(past, name)) for name in Histories.__dataclass_fields__})


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_weight_that_is_no_weight_stops_the_fit(past, tmp_path, value):
    weight = past.weight.copy()
    weight[5] = value
    with pytest.raises(TrainingError, match="1 events have a weight"):
        fit(broken(past, weight=weight), bag(), TOWER, TRAIN, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_an_exploding_rate_stops_the_fit_and_leaves_no_model(past, tmp_path, rate):
    with pytest.raises(TrainingError, match="diverged") as raised:
        fit(past, bag(), TOWER, replace(TRAIN, rate=rate), tmp_path)
    assert "rate" in raised.value.remedy
    assert not any(tmp_path.iterdir())


def test_features_that_are_not_numbers_stop_the_fit(past, tmp_path):
    strange = bag()
    strange.weights[3] = np.nan
    with pytest.raises(TrainingError, match="diverged"):
        fit(past, strange, TOWER, TRAIN, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"user": 0, "item": 1}],
        [{"user": user, "item": 1} for user in range(5)],
        [{"user": 0, "item": item, "days": float(item), "weight": 0.25} for item in range(9)],
        [{"user": 0, "item": item, "days": float(item), "weight": 0.0, "event": "impression"} for item in range(9)],
    ],
    ids=["no events", "one event", "one event each", "weak events", "impressions alone"],
)
def test_nothing_to_learn_from_is_said(events, tmp_path):
    with pytest.raises(TrainingError, match="no history to train on"):
        fit(histories(events, users=5), bag(), TOWER, TRAIN, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 1}, "window of 1"),
        ({"events": 8}, "window of 16"),
        ({"rate": float("nan")}, "rate of nan"),
        ({"rate": -1.0}, "rate of -1"),
        ({}, "item row 95 of a"),
    ],
)
def test_settings_that_do_not_fit_are_named(past, tmp_path, change, words):
    with pytest.raises(TrainingError, match=words):
        fit(past, bag(ITEMS if change else 95), TOWER, replace(TRAIN, **change), tmp_path)


@pytest.mark.parametrize("full_up_to", [20_000, 0], ids=["full softmax", "sampled"])
def test_a_shop_of_one_person_and_two_items_trains(tmp_path, full_up_to):
    past = histories([{"user": 0, "item": n % 2, "days": 9.0 - n} for n in range(4)])
    train = replace(TRAIN, fresh_only=False, full_up_to=full_up_to, negatives=4)
    model = fit(past, bag(2), TOWER, train, tmp_path)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def scores(model, past):
    tower, vectors = model.people.arrays(), item_vectors(model.items)
    found = group_sums(past, vectors, tower)
    people = encode(*pool(found.sums, found.weights, found.last, found.owner, past.users, tower.rates), tower)
    return people @ vectors.T


def recall(table, past, wanted, k=5):
    """Of one hidden want a person."""
    table = table.copy()
    table[past.owner, past.item] = -np.inf
    return float((np.argsort(-table, 1)[:, :k] == wanted[:, None]).any(1).mean())


@pytest.mark.parametrize("full_up_to", [20_000, 0], ids=["full softmax", "sampled"])
def test_learning_beats_popularity_clearly(tmp_path, full_up_to):
    every = clustered_log(240, CLUSTERS, EACH, EACH - 4)
    last = np.zeros(len(every.item), bool)
    last[every.starts[1:] - 1] = True
    past, wanted = without(every, last), every.item[last]
    train = replace(TRAIN, epochs=8, full_up_to=full_up_to, negatives=48)
    plain = describe(catalogue([None] * ITEMS), 64)  # ids alone: what is learned is learned from the log
    found = recall(scores(fit(past, plain, TOWER, train, tmp_path), past), past, wanted)
    popular = recall(np.tile(np.bincount(past.item, minlength=ITEMS).astype(float), (past.users, 1)), past, wanted)
    assert found > 0.6 and found > 4 * popular


def test_an_item_that_nobody_wanted_yet_lies_near_its_kin(tmp_path):
    every = clustered_log(160, CLUSTERS, EACH)
    cold = np.arange(0, ITEMS, EACH)  # the first of each kind
    past = without(every, np.isin(every.item, cold))
    paths = [["shop", f"kind{item // EACH}"] for item in range(ITEMS)]
    described = describe(catalogue([f"kind{item // EACH} no{item % 5}" for item in range(ITEMS)], paths), 512)
    model = fit(past, described, TOWER, replace(TRAIN, epochs=6), tmp_path)
    vectors = item_vectors(model.items)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit[cold] @ unit.T
    kin = np.arange(ITEMS)[None] // EACH == (cold // EACH)[:, None]
    warm = ~np.isin(np.arange(ITEMS), cold)
    for row in range(len(cold)):
        assert likeness[row, kin[row] & warm].mean() > 0.3 + likeness[row, ~kin[row] & warm].mean()


_TWO_WORKERS = """
import json, sys
import numpy as np, torch
from torch import distributed
from dataclasses import replace
from pathlib import Path
from engine.errors import TrainingError
from engine.two_tower.training import Worker, fit
from tests.two_tower.test_training import TOWER, TRAIN, bag, broken
from tests.event_logs import clustered_log

rank, folder, change = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
distributed.init_process_group("gloo", rank=rank, world_size=2)
past = clustered_log(60, 8, 12)
apart = change.pop("apart", False)
try:
    model = fit(past, bag(), TOWER, replace(TRAIN, **change), folder / str(rank) if apart else folder, Worker(rank, 2))
    outcome = {name: value.tolist() for name, value in model.state_dict().items()}
except TrainingError as error:
    outcome = error.message
(folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))
distributed.destroy_process_group()
"""


def two_workers(folder, **change):
    """What two real processes that train together end with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_WORKERS, str(rank), str(folder), json.dumps(change)], cwd=root, env=around
        )
        for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    return [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("change", [{}, {"full_up_to": 0, "negatives": 24}], ids=["full softmax", "sampled"])
def test_two_workers_end_with_one_finite_model(tmp_path, change):
    one, other = two_workers(tmp_path, **change)
    assert one == other
    assert all(np.isfinite(np.array(value)).all() for value in one.values())
    alone = fit(clustered_log(60, 8, 12), bag(), TOWER, replace(TRAIN, **change), tmp_path / "alone")
    assert not np.allclose(one["items.ids"], alone.state_dict()["items.ids"].numpy())  # each saw half of the batches


def test_two_workers_stop_together_when_the_fit_diverges(tmp_path):
    one, other = two_workers(tmp_path, rate=1e30)
    assert "diverged" in one and "diverged" in other
    assert {path.name for path in tmp_path.iterdir()} == {"outcome-0.json", "outcome-1.json"}
