"""A stage is skipped when it is whole, resumed shard by shard when it is not, and never half-believed."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import DataError, RunLocked
from jobs.stage import Stage, fingerprint, finished, run_lock, stage
from tests.durability import Durability

INPUTS = {"log": "aa11"}
CONFIG: dict[str, Any] = {"width": 8, "lanes": ["usual", "similar"]}


def make(run: Path, names: tuple[str, ...] = ("000", "001", "002"), **config: Any) -> list[str]:
    """Do what is left and return the names of the shards that were made."""
    made = []
    with stage(run, "rank", INPUTS, CONFIG | config) as work:
        for name in work.shards_left(names):
            (work.folder / f"{name}.bin").write_bytes(name.encode() * 5)
            work.shard_done(name, [f"{name}.bin"], {"rows": int(name)})
            made.append(name)
        if not work.whole:
            work.finish({"best": 1.5})
    return made


def test_a_whole_stage_is_skipped_and_tells_its_facts(tmp_path: Path) -> None:
    assert make(tmp_path) == ["000", "001", "002"]
    assert make(tmp_path) == []
    manifest = finished(tmp_path, "rank")
    assert manifest.facts == {"best": 1.5}
    assert manifest.inputs == INPUTS
    assert manifest.shards == {"000": {"rows": 0}, "001": {"rows": 1}, "002": {"rows": 2}}
    assert sorted(manifest.files) == ["000.bin", "001.bin", "002.bin"]
    assert manifest.files["001.bin"].bytes == 15
    assert len(manifest.files["001.bin"].sha256) == 64


def test_the_same_bytes_give_the_same_fingerprint_in_another_run(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    assert finished(tmp_path / "one", "rank").fingerprint == finished(tmp_path / "two", "rank").fingerprint
    make(tmp_path / "three", width=9)
    assert finished(tmp_path / "three", "rank").fingerprint != finished(tmp_path / "one", "rank").fingerprint


@pytest.mark.parametrize("change", ["config", "inputs"])
def test_what_other_inputs_or_another_config_left_is_removed_first(tmp_path: Path, change: str) -> None:
    make(tmp_path)
    inputs = {"log": "bb22"} if change == "inputs" else INPUTS
    config = CONFIG | {"width": 9} if change == "config" else CONFIG
    with stage(tmp_path, "rank", inputs, config) as work:
        assert not work.whole
        assert work.shards_left(["000"]) == ["000"]
        left = sorted(path.name for path in work.folder.iterdir() if path.is_file())
        assert left == ["_asked.json", "_begun.json"]
    with pytest.raises(DataError):
        finished(tmp_path, "rank")


def test_a_rerun_after_a_crash_keeps_finished_shards_only(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), stage(tmp_path, "rank", INPUTS, CONFIG) as work:
        (work.folder / "000.bin").write_bytes(b"000" * 5)
        work.shard_done("000", ["000.bin"], {"rows": 0})
        (work.folder / "001.bin").write_bytes(b"half")
        raise RuntimeError("power cut")
    assert make(tmp_path) == ["001", "002"]


@pytest.mark.parametrize("harm", ["missing", "shorter"])
def test_a_shard_whose_file_was_lost_or_cut_is_made_again(tmp_path: Path, harm: str) -> None:
    make(tmp_path)
    victim = tmp_path / "rank" / "001.bin"
    victim.unlink() if harm == "missing" else victim.write_bytes(b"0")
    with pytest.raises(DataError, match=r"001\.bin"):
        finished(tmp_path, "rank")
    assert make(tmp_path) == ["001"]
    assert finished(tmp_path, "rank").files["001.bin"].bytes == 15


@pytest.mark.parametrize("marker", ["_stage.json", "_begun.json", "_shards/001.json"])
def test_a_marker_that_a_crash_cut_off_is_not_believed(tmp_path: Path, marker: str) -> None:
    make(tmp_path)
    path = tmp_path / "rank" / marker
    path.write_text(path.read_text()[:-5])
    make(tmp_path)
    assert sorted(finished(tmp_path, "rank").files) == ["000.bin", "001.bin", "002.bin"]


def test_files_of_unknown_origin_in_a_stage_folder_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "rank").mkdir()
    (tmp_path / "rank" / "stray.bin").write_bytes(b"?")
    make(tmp_path)
    assert not (tmp_path / "rank" / "stray.bin").exists()


def test_a_stage_cannot_be_declared_whole_while_a_shard_is_missing(tmp_path: Path) -> None:
    with stage(tmp_path, "rank", INPUTS, CONFIG) as work:
        work.shards_left(["000"])
        with pytest.raises(DataError, match="'000'") as refused:
            work.finish()
    assert "python -m jobs.rank" in refused.value.remedy


def test_a_stage_without_shards_can_be_whole_too(tmp_path: Path) -> None:
    assert make(tmp_path, ()) == []
    assert finished(tmp_path, "rank").files == {}


def test_an_unfinished_stage_names_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'train'") as missing:
        finished(tmp_path, "train")
    assert "python -m jobs.train" in missing.value.remedy


def test_a_worker_elsewhere_may_mark_its_shard(tmp_path: Path) -> None:
    with stage(tmp_path, "rank", INPUTS, CONFIG) as work:
        copy: Stage = pickle.loads(pickle.dumps(work))  # noqa: S301 - our own object, as Ray would carry it
        (work.folder / "deep").mkdir()
        (work.folder / "deep" / "a.bin").write_bytes(b"a")
        copy.shard_done("a", [work.folder / "deep" / "a.bin"], {"rows": np.int64(3)})
        assert work.shards_left(["a"]) == []
        assert work.shard_facts() == {"a": {"rows": 3}}
        assert sorted(work.finish().files) == ["deep/a.bin"]


def test_a_shard_may_not_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"x")
    with stage(tmp_path, "rank", INPUTS, CONFIG) as work:
        with pytest.raises(ValueError, match="shard's name"):
            work.shard_done("../evil", [])
        with pytest.raises(ValueError, match="subpath"):
            work.shard_done("a", [tmp_path / "outside.bin"])


def test_what_a_task_of_an_older_beginning_makes_is_not_taken_in(tmp_path: Path) -> None:
    with stage(tmp_path, "rank", INPUTS, CONFIG) as old:
        late: Stage = pickle.loads(pickle.dumps(old))  # noqa: S301 - our own object, as Ray would carry it
    with stage(tmp_path, "rank", INPUTS, CONFIG | {"width": 9}) as work:
        (work.folder / "000.bin").write_bytes(b"of width 8")
        with pytest.raises(DataError, match="begun anew"):
            late.shard_done("000", ["000.bin"])
        assert work.shards_left(["000"]) == ["000"]


def test_what_killed_writers_left_under_hidden_names_does_not_stay(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "rank" / "_stage.json").unlink()
    for name in (".001.bin.77", "_shards/.002.json.77"):
        (tmp_path / "rank" / name).write_bytes(b"half")
    assert make(tmp_path) == []
    assert not list((tmp_path / "rank").rglob(".*"))


class Colour(Enum):
    RED = "red"


@dataclass
class Thing:
    path: Path
    day: datetime.date


def test_a_fingerprint_depends_on_content_and_not_on_order_or_container() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint({"x", "y"}) == fingerprint({"y", "x"})
    assert fingerprint(np.float32(0.5), Colour.RED, b"\x01") == fingerprint(0.5, "red", "01")
    thing = Thing(Path("a/b"), datetime.date(2026, 1, 31))
    assert fingerprint(thing) == fingerprint({"path": "a/b", "day": "2026-01-31"})
    assert len({fingerprint(), fingerprint(1), fingerprint("1"), fingerprint([1]), fingerprint(None)}) == 5
    with pytest.raises(TypeError, match="ndarray"):
        fingerprint(np.zeros(3))


def _hold(run: Path, ready: Any) -> None:
    with run_lock(run):
        ready.set()
        signal.pause()


def test_a_second_process_is_told_who_works_on_the_run_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "run", ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(RunLocked, match=f"process {holder.pid} on .* since 20"), run_lock(tmp_path / "run"):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with run_lock(tmp_path / "run"):
        pass


def attempt(run: Path) -> subprocess.CompletedProcess[str]:
    script = "import sys, pathlib, jobs.stage\nwith jobs.stage.run_lock(pathlib.Path(sys.argv[1])): pass"
    return subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, timeout=60)


def test_a_recipe_inside_another_shares_its_lock(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        with run_lock(tmp_path):
            pass
        assert f"process {os.getpid()}" in attempt(tmp_path).stderr, "the inner use must not let go of the outer lock"
    assert attempt(tmp_path).returncode == 0


def test_a_marker_is_on_disk_after_its_files_and_before_the_stage_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Durability(monkeypatch)
    with stage(tmp_path, "train", {}, {}) as work:
        work.shards_left(["one"])
        (work.folder / "deep").mkdir()
        files = [work.folder / "a.bin", work.folder / "deep" / "b.bin"]
        for file in files:
            file.write_bytes(b"bytes")
        work.shard_done("one", files)
        (marker,) = work.folder.rglob("one.json")
        for file in files:
            assert disk.survives(file, work.folder, disk.when_named(marker)), file
        assert disk.survives(marker, marker.parent)
        work.finish()
        assert disk.survives(work.folder / "_stage.json", work.folder)
