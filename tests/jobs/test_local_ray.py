"""What a killed driver leaves is ended and removed by the next start; what belongs to the living, or to others, is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.nights import ROOT

# A driver whose task leaves a process behind that outlives worker and raylet, as a careless library might.
DRIVER = """
import subprocess, sys, time
from jobs.cluster import ClusterSettings, connected
def leave(item):
    return subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
with connected(ClusterSettings(cpus=1, object_store_mb=80)) as cluster:
    print(*cluster.each(leave, [1], label="leave"), flush=True)
    time.sleep(600)
"""
SWEEP = "from jobs.local_ray import sweep; print(*sweep())"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Ray's socket paths have no room for pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="bt-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def python(temporary: Path, program: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=environment | {"TMPDIR": str(temporary), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_next_start_ends_and_removes_what_a_killed_driver_left_and_nothing_else(temporary: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (temporary / "bodega-ray-of-somebody").mkdir()
    (temporary / "bodega-ray-of-somebody" / "precious").touch()
    try:
        with python(temporary, DRIVER) as driver:
            left = int(first_line(driver))
            (home,) = (path for path in temporary.glob("bodega-ray-*") if (path / "owner.json").exists())
            with python(temporary, SWEEP) as sweeper:
                assert first_line(sweeper) == "", "its owner lives"
            assert alive(left) and home.exists()
            agents = [
                each for each in psutil.Process(driver.pid).children(recursive=True) if "Agent" in each.cmdline()[0]
            ]
            for agent in agents:
                agent.suspend()  # as a busy one is: it does not see in time that its raylet has gone
            for process in [*psutil.Process(driver.pid).children(), psutil.Process(driver.pid)]:
                process.kill()  # the witness, who would clear up, among them
            driver.wait()
            assert len(agents) == 2 and all(alive(each.pid) for each in agents)
            assert alive(left) and home.exists(), "what the sweep is for"
            with python(temporary, SWEEP) as sweeper:
                assert first_line(sweeper) == home.name
        assert not alive(left) and not home.exists() and not [each for each in agents if alive(each.pid)]
        assert alive(stranger.pid) and (temporary / "bodega-ray-of-somebody" / "precious").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_what_an_environment_names_is_touched_only_where_it_is_a_folder_of_ours(temporary: Path) -> None:
    folder = temporary / "project"
    folder.mkdir()
    (folder / "owner.json").write_text("{}")
    environment = {**os.environ, "BODEGA_RAY": str(folder)}
    stranger = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    try:
        with python(temporary, SWEEP) as sweeper:
            assert first_line(sweeper) == ""
        assert alive(stranger.pid) and (folder / "owner.json").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_folder_of_a_start_that_was_killed_at_its_first_step_goes_too(temporary: Path) -> None:
    (temporary / "bodega-ray-empty").mkdir()
    with python(temporary, SWEEP) as sweeper:
        assert first_line(sweeper) == "bodega-ray-empty"


def test_what_a_killed_driver_left_is_cleared_up_at_once_by_its_witness(temporary: Path) -> None:
    with python(temporary, DRIVER) as driver:
        left = int(first_line(driver))
        driver.kill()
        driver.wait()
        until = time.monotonic() + 15
        while (alive(left) or list(temporary.glob("bodega-ray-*"))) and time.monotonic() < until:
            time.sleep(0.05)
    assert not alive(left) and not list(temporary.glob("bodega-*"))


FAULTY = """
from jobs.cluster import ClusterSettings, connected
with connected(ClusterSettings(cpus=1, object_store_mb=80)) as cluster:
    raise LookupError("a fault of the code")
"""


def test_after_a_fault_without_a_remedy_the_logs_of_ray_are_kept_where_no_sweep_takes_them(temporary: Path) -> None:
    with python(temporary, FAULTY) as driver:
        assert driver.wait(60) == 1
    with python(temporary, SWEEP) as sweeper:
        assert first_line(sweeper) == ""
    (kept,) = temporary.glob("bodega-*")
    assert kept.name.startswith("bodega-logs-") and list(kept.rglob("raylet.out"))


HEADLESS = """
import sys, threading, time
import psutil
from jobs.cluster import ClusterSettings, connected
from jobs.launch import guarded
def nap(item):
    time.sleep(1)
def behead():
    time.sleep(2)
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith(sys.argv[1]):
            print(time.monotonic(), flush=True)
            child.kill()
def go():
    with connected(ClusterSettings(cpus=1, object_store_mb=80)) as cluster:
        threading.Thread(target=behead).start()
        cluster.each(nap, range(300), label="naps")
raise SystemExit(guarded(go))
"""


@pytest.mark.parametrize("head", [pytest.param("raylet", marks=pytest.mark.slow), "gcs_server"])
def test_a_driver_whose_head_is_killed_ends_soon_and_says_what_to_do(temporary: Path, head: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", HEADLESS, head], capture_output=True, text=True, timeout=70,
        env=environment | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout, done.stderr
    assert f"error: The head of Ray is lost: {head}, process " in done.stderr
    assert "remedy: Run the same command again" in done.stderr and "Traceback" not in done.stderr
    assert not list(temporary.glob("bodega-*"))


JOINED = """
import sys, time
from jobs.cluster import ClusterSettings, connected
from jobs.launch import guarded
def nap(item):
    time.sleep(1)
def go():
    with connected(ClusterSettings(address=sys.argv[1])) as cluster:
        print("joined", flush=True)
        cluster.each(nap, range(600), label="naps")
raise SystemExit(guarded(go))
"""


@pytest.mark.slow
def test_a_joined_cluster_whose_head_is_killed_is_given_up(temporary: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    around |= {"TMPDIR": str(temporary), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = Path(sys.executable).with_name("ray")
    start = [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1"]
    start += ["--include-dashboard=false", f"--temp-dir={temporary / 'r'}", "--object-store-memory=80000000"]
    with subprocess.Popen(start, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
        try:
            time.sleep(8)
            with subprocess.Popen(
                [sys.executable, "-c", JOINED, f"127.0.0.1:{port}"], env=around, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ) as driver:  # fmt: skip
                assert first_line(driver) == "joined"
                time.sleep(3)
                for child in psutil.Process(head.pid).children(recursive=True):
                    if child.name().startswith("gcs_server"):
                        child.kill()
                _, told = driver.communicate(timeout=120)
            assert driver.returncode == 1, told
            assert "error: " in told and "remedy: " in told and "Traceback" not in told, told
        finally:
            for child in psutil.Process(head.pid).children(recursive=True):
                child.kill()
            head.kill()
