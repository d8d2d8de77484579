"""The store of parts: whole or not there, forgetful of what is past its retention, and swept of what nothing uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

import engine.activity.parts as parts_module
from engine.activity.parts import PartStore, write_about
from engine.activity.settle import retained_since, settle_bucket
from tests.activity.logs import KEYS, Parts, Shop, as_bytes, micros, row
from tests.nights import ROOT

SWEEP = """
import sys
from pathlib import Path
from engine.activity.parts import PartStore
print("at it", flush=True)
print(PartStore(Path(sys.argv[1])).sweep(set()))
"""


def test_a_part_of_which_a_file_is_missing_or_cut_is_not_there(shop: Shop) -> None:
    parts = shop.split([row()])
    generation = parts.keys[0]
    key = generation.rpartition(".")[0]
    assert parts.store.newest(key) == parts.abouts[0]
    file = parts.store.root / generation / "rows-0.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert parts.store.newest(key) is None
    file.unlink()
    assert parts.store.newest(key) is None
    (parts.store.root / generation / "part.json").write_text("{")
    assert parts.store.newest(key) is None


def test_a_copy_of_the_store_that_followed_its_links_is_read_anew(shop: Shop) -> None:
    parts = shop.split([row()])
    copy = PartStore(shop.fresh("copy"))
    shutil.copytree(parts.store.root, copy.root)
    key = parts.keys[0].rpartition(".")[0]
    assert copy.newest(key) is None
    with copy.draft(key) as place:
        write_about(place, parts.abouts[0])
    assert copy.newest(key) is not None


def test_a_night_goes_on_with_what_it_bound_whatever_another_puts_in_its_place(shop: Shop) -> None:
    """Bound items are told by place: in a part that was written anew they would be other items."""
    parts = shop.split([row("a", "view", 1), *(row(item, "purchase", 2) for item in "bcd")])
    tonight = shop.tonight(parts, 59, (59,), 30)
    before = settle_bucket(0, 1, tonight)
    shop.data.retention_days = {"view": 5.0}
    key = parts.keys[0].rpartition(".")[0]
    parts.store.forget(key, retained_since(shop.data, micros(59)))
    shop.data.retention_days = {}
    newest = parts.store.newest(key)
    assert newest is not None and newest.generation != parts.keys[0] and newest.events == 3
    assert as_bytes(settle_bucket(0, 1, tonight).activity) == as_bytes(before.activity)


def test_a_reading_that_dies_leaves_no_part(shop: Shop) -> None:
    store = PartStore(shop.fresh("store"))
    with pytest.raises(KeyboardInterrupt), store.draft("key") as place:
        (place / "rows-0.arrow").write_bytes(b"half")
        raise KeyboardInterrupt
    assert store.newest("key") is None
    assert list(store.root.iterdir()) == []


def test_a_sweep_takes_what_nothing_uses_and_leaves_what_was_used_lately(shop: Shop) -> None:
    parts = shop.split([row()], [row(day=1)])
    used, unused = parts.keys
    key = used.rpartition(".")[0]
    shop.data.retention_days = {"view": 5.0}
    parts.store.forget(key, retained_since(shop.data, micros(59)))
    assert parts.store.sweep({used}) == 0
    assert parts.store.sweep({used}, older_s=-1.0) == 2  # what is not used, and what was replaced
    assert parts.store.newest(key) is not None
    assert parts.store.newest(unused.rpartition(".")[0]) is None
    assert len(list(parts.store.root.iterdir())) == 2  # the newest generation and the link to it


def test_a_part_that_is_being_looked_at_is_not_taken_away_by_another_process(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = shop.split([row()])
    (generation,) = parts.keys
    os.utime(parts.store.root / generation, (0, 0))
    sweeps: list[subprocess.Popen[str]] = []
    real = json.loads

    def slowly(text: str) -> Any:
        """What is read is whole; then another process has the time to find it old and to take it."""
        program = [sys.executable, "-c", SWEEP, str(parts.store.root)]
        sweeps.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        assert sweeps[0].stdout and sweeps[0].stdout.readline() == "at it\n"
        time.sleep(0.5)
        return real(text)

    with monkeypatch.context() as patch:
        patch.setattr(parts_module.json, "loads", slowly)
        assert parts.store.about(generation) is not None
    assert sweeps[0].communicate(timeout=60)[0] == "0\n"
    assert parts.store.run(generation, 0).ends.tolist() == [1]


def test_what_is_past_its_retention_is_forgotten_with_its_people_and_counted(shop: Shop) -> None:
    rows = [
        row("a", "view", 1),
        row("b", "purchase", 1),
        row("c", "view", 1, user_id="bob"),
        row("d", "view", 9),
        row("a", "view", 2, user_id=None),
    ]
    parts = shop.split(rows)
    shop.data.retention_days = {"view": 5}
    tonight = shop.tonight(parts, 10, (10,), 30)
    before = settle_bucket(0, 1, tonight)
    since, key = retained_since(shop.data, tonight.as_of), parts.keys[0].rpartition(".")[0]
    parts.store.forget(key, since)
    about = parts.store.newest(key)
    assert about is not None
    trimmed = Parts(parts.store, (about.generation,), [about])
    (run,) = trimmed.all_runs()
    assert run.keys.tolist() == [KEYS.rotating.derive("ann")]
    assert parts.store.item_ids(about.generation, 0).to_pylist() == ["b", "d"]
    assert (about.events, about.forgotten_by_name, about.oldest) == (2, {"view": 3}, {"0": micros(9), "3": micros(1)})
    after = settle_bucket(0, 1, shop.tonight(trimmed, 10, (10,), 30))
    assert as_bytes(before.activity) == as_bytes(after.activity)
    assert before.expired == {"view": 3} and after.expired == {}
    parts.store.forget(key, since)
    assert parts.store.generation(key) == about.generation


def test_what_takes_an_event_back_goes_with_it_and_for_ever_is_no_fault(shop: Shop) -> None:
    shop.data.retention_days = {"purchase": 5.0, "view": 1e9}
    parts = shop.split([row("a", "return", 1), row("a", "purchase", 1), row("b", "view", 0)])
    since = retained_since(shop.data, micros(10))
    parts.store.forget(parts.keys[0].rpartition(".")[0], since)
    about = parts.store.newest(parts.keys[0].rpartition(".")[0])
    assert about is not None
    assert (about.events, about.forgotten_by_name) == (1, {"purchase": 1, "undo purchase": 1})
