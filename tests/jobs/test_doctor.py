"""The doctor names what is wrong with a machine and what to do; a look that fails does not hide the others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.identity import UserKeys
from jobs import doctor
from jobs.doctor import Check, cuda_check, examine, show


def looked(out: Path, port: int = 0) -> dict[str, Check]:
    return {check.name: check for check in examine(out, port, quick=True)}


@pytest.mark.parametrize(
    ("torch_cuda", "nvrtc", "gpu", "status"),
    [
        ("12.6", 12, True, "ok"),
        ("13.0", 13, True, "ok"),
        ("13.0", 12, True, "fault"),
        ("12.6", 13, False, "fault"),
        (None, 12, True, "fault"),
        (None, 12, False, "warning"),
        ("13.0", None, True, "warning"),
        ("13.0", None, False, "ok"),
        (None, None, False, "ok"),
    ],
)
def test_torch_and_cupy_of_two_cudas_are_named(
    torch_cuda: str | None, nvrtc: int | None, gpu: bool, status: str
) -> None:
    check = cuda_check(torch_cuda, nvrtc, gpu)
    assert check.status == status
    assert bool(check.remedy) == (status != "ok")
    if torch_cuda and nvrtc and status == "fault":
        assert torch_cuda in check.found and str(nvrtc) in check.found


def test_this_machine_passes_without_a_fault(tmp_path: Path) -> None:
    found = looked(tmp_path)
    assert [check for check in found.values() if check.status == "fault"] == []
    assert {"python", "packages", "packages jobs", "gpu", "cuda", "disk", "memory", "keys", "port"} <= set(found)
    assert all(check.remedy for check in found.values() if check.status != "ok")


def test_keys_that_others_can_read_or_replace_are_a_fault_and_missing_ones_a_warning(tmp_path: Path) -> None:
    assert looked(tmp_path)["keys"].status == "warning"
    assert looked(tmp_path)["keys"].remedy == f"bodega keys --out {tmp_path}"
    UserKeys.load(tmp_path / "keys", create=True)
    assert looked(tmp_path)["keys"].status == "ok"
    (tmp_path / "keys" / "stable.key").chmod(0o644)
    loose = looked(tmp_path)["keys"]
    assert loose.status == "fault" and loose.remedy.startswith("chmod 600")
    (tmp_path / "keys" / "stable.key").chmod(0o600)
    (tmp_path / "keys").chmod(0o777)
    assert looked(tmp_path)["keys"].remedy.startswith("chmod 700")


def test_a_port_in_use_is_a_warning_that_names_another(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = looked(tmp_path, port)["port"]
    assert check.status == "warning" and f"port={port + 1}" in check.remedy


def test_a_package_of_another_version_is_a_fault_that_says_what_was_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "2.12.0" if name == "torch" else installed(name))
    check = looked(tmp_path)["packages jobs"]
    assert check.status == "fault" and check.found == "torch 2.12.0, wanted ==2.13.0"
    assert "bodega[jobs]" in check.remedy


def test_a_missing_package_is_a_fault_only_where_everything_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    found = looked(tmp_path)
    assert found["packages"].status == "fault"
    assert found["packages serve"].status == "warning" and "bodega[serve]" in found["packages serve"].remedy


def test_a_look_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Check]:
        yield from ()
        raise ImportError("libcuda.so is of another world")

    monkeypatch.setattr(doctor, "_gpu", broken)
    found = looked(tmp_path)
    assert found["gpu"].status == "fault" and "libcuda.so" in found["gpu"].found
    assert found["port"].status == "ok"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("fault", 1)])
def test_only_a_fault_fails_the_command(status: doctor.Status, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(iter([Check("[thing]", status, "found [this]", "do that")]), as_json=False) == code
    assert "found [this]" in capsys.readouterr().out
    assert show(iter([Check("thing", status, "found", "do that")]), as_json=True) == code
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is (code == 0) and told["checks"][0]["remedy"] == "do that"


def test_the_whole_command_starts_ray_and_prints_json_alone_on_stdout(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "doctor", "--json", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["ok"], told
    assert told["checks"][-1]["name"] == "ray" and told["checks"][-1]["status"] == "ok"
