"""A recipe gets typed settings or is refused in one line, whatever Hydra would have said; its exit code says which."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import conf
from jobs.launch import near_miss

RECIPE = '''
import logging, os, sys, time
from dataclasses import dataclass, field
from engine.errors import ContractError, GateBlocked, SettingsError
from jobs.launch import recipe

@dataclass
class Lane:
    weight: float = 1.0

@dataclass
class Data:
    path: str = "logs"
    names: dict[str, str] = field(default_factory=dict)

@dataclass
class Settings:
    out: str = "OUT"
    needed: str = "???"
    keep: int = 3
    data: Data = field(default_factory=Data)
    lane: Lane | None = field(default_factory=Lane)
    do: str = ""

    def __post_init__(self):
        if self.keep < 0:
            raise SettingsError("keep is negative.", "Give 0 or more.")

@recipe("toy", Settings, CONF)
def main(settings: Settings) -> None:
    """Toy."""
    if settings.do == "contract":
        raise ContractError("a.parquet", "ts", "timestamp", "string", "Map it\\nin conf/data.")
    if settings.do == "gate":
        raise GateBlocked("recall fell.", "Force it.")
    if settings.do == "crash":
        raise RuntimeError("no remedy known")
    if settings.do == "sleep":
        print("up", flush=True)
        time.sleep(60)
    print(settings)
    print(sorted(os.listdir(".")), logging.getLogger().handlers, os.getcwd())

if __name__ == "__main__":
    main()
'''


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A recipe with a conf folder of its own, beside an empty working directory."""
    folder = tmp_path / "conf"
    (folder / "data").mkdir(parents=True)
    shutil.copy(Path(next(iter(conf.__path__))) / "hydra_quiet.yaml", folder)
    (folder / "toy.yaml").write_text(
        "defaults: [settings_schema, hydra_quiet, {data: retail}, _self_]\nneeded: given\n"
    )
    (folder / "bare.yaml").write_text("defaults: [hydra_quiet, _self_]\nneeded: given\nkeeep: 4\n")
    (folder / "data" / "retail.yaml").write_text("path: retail\n")
    (folder / "data" / "broken.yaml").write_text("pth: retail\n")
    (tmp_path / "toy.py").write_text(f"CONF = {str(folder)!r}\n{textwrap.dedent(RECIPE)}")
    (tmp_path / "cwd").mkdir()
    return tmp_path


def run(toy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "../toy.py", *arguments],
        cwd=toy / "cwd",
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"},
    )


def test_settings_arrive_typed_and_nothing_is_left_behind(toy: Path) -> None:
    done = run(toy, "keep=5", "data.path=here", "lane.weight=2")
    assert done.returncode == 0, done.stderr
    assert "Settings(out='OUT', needed='given', keep=5, data=Data(path='here'" in done.stdout
    assert "lane=Lane(weight=2.0)" in done.stdout
    assert done.stdout.splitlines()[1] == f"[] [] {toy / 'cwd'}", "no outputs/ folder, no logging handler, no chdir"
    assert done.stderr == ""
    assert list((toy / "cwd").iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("keeep=4", "There is no setting 'keeep'. Did you mean 'keep'?"),
        ("+keeep=4", "There is no setting 'keeep'. Did you mean 'keep'?"),
        ("++data.pth=4", "There is no setting 'data.pth'. Did you mean 'data.path'?"),
        ("~keeep", "There is no setting 'keeep'. Did you mean 'keep'?"),
        ("data.pth=x", "There is no setting 'data.pth'. Did you mean 'data.path'?"),
        ("pth=x", "There is no setting 'pth'. Did you mean 'data.path'?"),
        ("lane.wieght=2", "There is no setting 'lane.wieght'. Did you mean 'lane.weight'?"),
        ("dta=retail", "There is no setting 'dta'. Did you mean 'data'?"),
        ("zzz=1", "There is no setting 'zzz'. Run with --help to see the settings."),
        ("data=retial", "There is no 'retial' in the group 'data'. Did you mean 'data=retail'?"),
        ("data=zzz", "There is no 'zzz' in the group 'data'. There are: broken, retail."),
        ("data=broken", "There is no setting 'data.pth'. Did you mean 'data.path'?"),
        ("--config-name=toi", "There is no config 'toi'."),
        ("--config-name=bare", "There is no setting 'keeep'. Did you mean 'keep'?"),
        ("keep=many", "The setting 'keep': Value 'many' of type 'str' could not be converted to Integer."),
        ("needed=???", "The setting 'needed' has no value."),
        ("data.path=${nowhere}", "The setting 'data.path': Interpolation key 'nowhere' not found."),
        ("keep=[1", "'keep=[1' cannot be read as key=value."),
        ("keep", "'keep' cannot be read as key=value."),
        ("keep=-1", "keep is negative."),
        ("--multirun", "--multirun is not supported."),
        ("data=null", "A group is set to what is no name."),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_with_code_2(toy: Path, argument: str, told: str) -> None:
    done = run(toy, argument)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[0].startswith("error: ") and told in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("remedy: ")), done.stderr
    assert done.stdout == ""
    assert list((toy / "cwd").iterdir()) == []


def test_an_error_exits_with_its_own_code_and_tells_the_remedy_on_a_line_of_its_own(toy: Path) -> None:
    done = run(toy, "do=contract")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: a.parquet: column 'ts': expected timestamp, found string.",
        "remedy: Map it in conf/data.",
    ]
    assert run(toy, "do=gate").returncode == 6


def test_a_fault_without_a_remedy_exits_with_1_and_its_traceback(toy: Path) -> None:
    done = run(toy, "do=crash")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "RuntimeError: no remedy known" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_recipe_with_its_code_and_no_traceback(toy: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, toy / "toy.py", "do=sleep"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(30) == code
        assert "Traceback" not in process.stderr.read()


def test_cfg_job_prints_the_settings_and_help_names_the_groups(toy: Path) -> None:
    shown = run(toy, "--cfg", "job", "keep=7")
    assert shown.returncode == 0
    assert "keep: 7" in shown.stdout and "path: retail" in shown.stdout
    told = run(toy, "--help")
    assert told.returncode == 0
    assert "data: broken, retail" in told.stdout and "keep: 3" in told.stdout


def test_near_misses_are_found_by_the_whole_name_or_by_its_last_part() -> None:
    known = ["out", "data", "data.path", "train.epochs"]
    assert near_miss("data.paht", known) == "data.path"
    assert near_miss("epoch", known) == "train.epochs"
    assert near_miss("dat.path", known) == "data.path"
    assert near_miss("colour", known) == ""
    assert near_miss("x", []) == ""
