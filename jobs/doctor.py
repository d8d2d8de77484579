"""`bodega doctor`: looks at the machine and says what to do about what it finds.

Exit code 0 when all is fine or only worth a warning, 1 otherwise.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import BodegaError, SettingsError
from engine.identity import UserKeys

Status = Literal["ok", "warning", "fault"]

_GIB = 2**30
_EXTRAS = ("", "serve", "jobs", "gpu")  # "" holds what everything needs
_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "fault": "[red]fault[/]"}


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(out: Path, port: int, quick: bool = False) -> Iterator[Check]:
    """Look at everything, one finding at a time.

    Args:
        out: the folder of the deployment: its disk and its keys are looked at.
        port: where the server would listen.
        quick: do not start Ray.
    """
    looks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("gpu", _gpu),
        ("cuda", _cuda),
        ("disk", lambda: _disk(out)),
        ("memory", _memory),
        ("keys", lambda: _keys(out)),
        ("port", lambda: _port(port)),
    ]
    if not quick:
        looks.append(("ray", _ray))
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001 - a look that fails is a finding, and must not hide the others
            yield Check(
                name, "fault", f"{type(error).__name__}: {error}", "Mend this first; other findings may follow."
            )


def show(checks: Iterator[Check], as_json: bool) -> int:
    """Print the findings, as a table or as JSON, and return the exit code."""
    found = list(checks)
    worst = any(check.status == "fault" for check in found)
    if as_json:
        print(json.dumps({"ok": not worst, "checks": [asdict(check) for check in found]}, indent=2))
        return int(worst)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "check", "found", "what to do")
    for check in found:
        table.add_row(_MARKS[check.status], check.name, escape(check.found), escape(check.remedy))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return int(worst)


def cuda_check(torch_cuda: str | None, nvrtc_major: int | None, gpu: bool) -> Check:
    """Whether torch and cupy were built for the same CUDA.

    Args:
        torch_cuda: `torch.version.cuda`, such as "12.6"; None for a CPU build or without torch.
        nvrtc_major: major version of the NVRTC that cupy loads; None without cupy.
        gpu: whether the machine has one.
    """
    if nvrtc_major is None:
        if gpu:
            return Check("cuda", "warning", "cupy is not installed: the GPU stays idle", "pip install 'bodega[gpu]'")
        return Check("cuda", "ok", "no cupy, and no GPU that would need it")
    if torch_cuda is None:
        status: Status = "fault" if gpu else "warning"
        return Check(
            "cuda",
            status,
            f"torch is a CPU build, cupy uses CUDA {nvrtc_major}",
            "Install torch 2.13.0 built for the CUDA of cupy: https://download.pytorch.org/whl/cu126 for CUDA 12.",
        )
    if int(torch_cuda.partition(".")[0]) != nvrtc_major:
        return Check(
            "cuda",
            "fault",
            f"torch is built for CUDA {torch_cuda}, cupy picked up NVRTC of CUDA {nvrtc_major}",
            "Pair cupy-cuda12x with torch 2.13.0 built for cu126, or cupy-cuda13x with the torch of PyPI.",
        )
    return Check("cuda", "ok", f"torch {torch_cuda} and cupy share CUDA {nvrtc_major}")


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        yield Check("python", "ok", version)
    else:
        yield Check("python", "fault", version, "Use Python 3.11, 3.12 or 3.13: Hydra 1.3.8 breaks on 3.14.")


def _packages() -> Iterator[Check]:
    """What pyproject.toml asks for, as it was installed: that file is the one place that names versions."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in importlib.metadata.requires("bodega") or ()]
    for extra in _EXTRAS:
        lacking, wrong, count = [], [], 0
        for need in wanted:
            mine = need.marker is None if not extra else bool(need.marker and f'"{extra}"' in str(need.marker))
            if not mine or need.name == "bodega":
                continue
            count += 1
            version = _version(need.name)
            if version is None:
                lacking.append(need.name)
            elif not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} {version}, wanted {need.specifier}")
        name, install = f"packages {extra}".strip(), f"pip install 'bodega{f'[{extra}]' if extra else ''}'"
        if wrong:
            yield Check(name, "fault", "; ".join(wrong), f"{install} --constraint constraints.txt")
        elif lacking:
            needed: Status = "ok" if extra == "gpu" else "warning" if extra else "fault"
            yield Check(name, needed, f"not installed: {', '.join(lacking)}", "" if needed == "ok" else install)
        else:
            yield Check(name, "ok", f"all {count}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _card() -> bool:
    """Whether the machine has an NVIDIA device, whatever the installed libraries can do with it."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _gpu() -> Iterator[Check]:
    torch = _torch()
    if torch is not None and torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = [torch.cuda.get_device_properties(number) for number in range(count)]
        yield Check("gpu", "ok", ", ".join(f"{each.name}, {each.total_memory / _GIB:.0f} GiB" for each in names))
    elif _card() and torch is not None:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Check(
            "gpu", "fault", f"there is one, but torch ({built}) cannot use it",
            "Install a CUDA build of torch that the driver supports; `nvidia-smi` names the driver's version.",
        )  # fmt: skip
    else:
        yield Check("gpu", "ok", "none: everything runs on the CPU")


def _cuda() -> Iterator[Check]:
    torch = _torch()
    major: int | None = None
    if importlib.util.find_spec("cupy"):
        from cupy.cuda import nvrtc

        try:
            major = int(nvrtc.getVersion()[0])
        except Exception as error:  # noqa: BLE001 - cupy raises its loader's own errors
            yield Check(
                "cuda", "fault" if _card() else "warning", f"cupy finds no NVRTC: {error}",
                "pip install nvidia-cuda-nvrtc-cu12, or install the CUDA toolkit.",
            )  # fmt: skip
            return
    yield cuda_check(torch.version.cuda if torch is not None else None, major, _card())


def _torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch


def _disk(out: Path) -> Iterator[Check]:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    for name, folder, low, least in (("disk", there, 10, 1), ("disk of Ray", Path(tempfile.gettempdir()), 5, 1)):
        free = shutil.disk_usage(folder).free / _GIB
        status: Status = "fault" if free < least else "warning" if free < low else "ok"
        remedy = "" if status == "ok" else "Free some, or choose another disk (out=DIR; TMPDIR for Ray)."
        yield Check(name, status, f"{free:.1f} GiB free under {folder}", remedy)
    if not os.access(there, os.W_OK):
        yield Check("disk", "fault", f"{there} cannot be written", f"Give this user the right to write to {there}.")


def _memory() -> Iterator[Check]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # in a container the limit counts, not the machine
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    cpus = len(os.sched_getaffinity(0))
    status: Status = "fault" if total < _GIB else "warning" if total < 4 * _GIB else "ok"
    remedy = "" if status == "ok" else "The night wants 4 GiB or more: set cluster.cpus=1, or give it more memory."
    yield Check("memory", status, f"{total / _GIB:.1f} GiB, {cpus} CPUs", remedy)
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0
    if shared < 256 * 2**20:
        yield Check(
            "shared memory", "warning", f"{shared / 2**20:.0f} MiB in /dev/shm: Ray falls back to the disk",
            "Start the container with --shm-size=1g.",
        )  # fmt: skip


def _keys(out: Path) -> Iterator[Check]:
    folder = out / "keys"
    if not folder.exists():
        yield Check("keys", "warning", f"none in {folder}", f"bodega keys --out {out}")
        return
    try:
        keys = UserKeys.load(folder)
    except SettingsError as error:
        yield Check("keys", "fault", error.message, error.remedy)
        return
    if folder.stat().st_mode & 0o022:
        yield Check("keys", "fault", f"others can replace the files in {folder}", f"chmod 700 {folder}")
    else:
        yield Check("keys", "ok", f"stable {keys.stable.key_id}, rotating {keys.rotating.key_id}")


def _port(port: int) -> Iterator[Check]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            yield Check(
                "port", "warning", f"{port}: {error.strerror}",
                f"If that is not your server: bodega serve out=DIR port={port + 1}",
            )  # fmt: skip
            return
    yield Check("port", "ok", f"{port} is free")


def _ray() -> Iterator[Check]:
    if importlib.util.find_spec("ray") is None:
        yield Check("ray", "warning", "not installed", "pip install 'bodega[jobs]'")
        return
    from jobs.cluster import ClusterSettings, connected

    began = time.monotonic()
    try:
        with connected(ClusterSettings(cpus=1, object_store_mb=80)) as cluster:
            cluster.each(abs, [-1], label="doctor")
    except BodegaError as error:
        yield Check("ray", "fault", error.message, "Look at memory, /dev/shm and the disk of Ray above.")
        return
    yield Check("ray", "ok", f"started, ran a task and ended in {time.monotonic() - began:.1f} s")
