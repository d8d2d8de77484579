"""Ray as a thin skin: plain functions over items, on this machine or on a cluster that is already there.

A local Ray listens on loopback alone, asks for a token that only this process and its children hold, and ends with the
`with` block. A joined one is left running. Where the head of either dies, the block ends with an error within seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import BodegaError, SettingsError
from jobs import local_ray
from jobs.head import Head
from jobs.progress import progress, say
from jobs.witness import witnessed

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPINS = "2000"
_RETRIES = 3  # of a task whose worker or node was lost


@dataclass
class ClusterSettings:
    """Where the work is done."""

    address: str = "local"  # start a Ray of one's own; else "auto" or host:port of a running one
    cpus: int = 0  # of a local Ray; 0: all of the machine
    object_store_mb: int = 256  # of a local Ray
    log_to_driver: bool = False  # show what workers print


class Cluster:
    """A connected Ray. Made by `connected`."""

    @property
    def cpus(self) -> int:
        """CPUs of all nodes together, at least 1."""
        return max(1, int(self._resource("CPU")))

    @property
    def gpus(self) -> int:
        """GPUs of all nodes together."""
        return int(self._resource("GPU"))

    def share(self, thing: Any) -> Any:
        """Put an object where every task reads it without a copy of its own; pass what this returns to `each`."""
        import ray

        return ray.put(thing)

    def each(
        self,
        function: Callable[..., Result],
        items: Sequence[Item],
        *shared: Any,
        label: str,
        cpus: float = 1,
        gpus: float = 0,
    ) -> list[Result]:
        """Call `function(item, *shared)` for each item, in tasks, at most two per free slot at a time.

        Args:
            function: plain; knows no Ray, gives the same result when it is called again.
            items: one a task; small (a path, a shard number), as each travels with its task.
            shared: further arguments, as they are or from `share`.
            label: what the progress counts.
            cpus: of one task; its numeric libraries get as many threads.
            gpus: of one task.

        Returns:
            The results, in the order of the items.

        Raises:
            SettingsError: no node has what one task asks for.
            BodegaError: the error of a task, as it was raised there; or workers were lost again and again.
        """
        import ray

        self._check_room(cpus, gpus)
        slots = self.cpus / cpus if cpus else self.cpus
        window = max(1, int(2 * (min(slots, self.gpus / gpus) if gpus else slots)))
        # Thread counts are read when a library loads, so they must stand before the worker starts.
        env = {"env_vars": _threads(max(1, int(cpus)))} if int(cpus) > 1 else None
        remote = ray.remote(_call).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES, retry_exceptions=False, runtime_env=env, name=label
        )
        carried = ray.put(function)
        results: list[Any] = [None] * len(items)
        flying: dict[Any, int] = {}
        following = 0
        # After an error what is under way is left to end by itself, or with the connection: `ray.cancel` aborts the
        # whole process when it meets a task that is just ending ("Tried to complete task that was not pending").
        with progress(label, len(items)) as advance:
            while following < len(items) or flying:
                while following < len(items) and len(flying) < window:
                    flying[remote.remote(carried, items[following], *shared)] = following
                    following += 1
                ready, _ = ray.wait(list(flying), num_returns=1)
                for done in ready:
                    results[flying.pop(done)] = _result(done, label)
                    advance(1)
        return results

    def _check_room(self, cpus: float, gpus: float) -> None:
        import ray

        # Ray would wait for such a node for ever.
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            has = node["Resources"]
            if node["Alive"] and has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus:
                return
        raise SettingsError(
            f"No node has {cpus:g} CPUs and {gpus:g} GPUs for one task.",
            "Ask for less, or join a cluster that has them.",
        )

    def _resource(self, name: str) -> float:
        import ray

        return float(ray.cluster_resources().get(name, 0))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def connected(settings: ClusterSettings) -> Iterator[Cluster]:
    """Start a local Ray, or join a running one; a recipe inside another shares the connection.

    Raises:
        SettingsError: Ray is not installed, or there is none at the address. BodegaError: its head died.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError("Ray is not installed.", "pip install 'bodega[jobs]'") from error
    if ray.is_initialized():
        yield Cluster()
        return
    with _ray(settings) as head, head.watched():
        yield Cluster()


@contextlib.contextmanager
def _ray(settings: ClusterSettings) -> Iterator[Head]:
    import ray

    folder = None
    if settings.address == "local":
        for name in local_ray.sweep():
            say(f"removed {name}, which a killed run left")
        folder = local_ray.new_folder()
    keep, head = False, None
    try:
        with _handlers_kept():
            head = _init(settings, folder)
        with witnessed(local_ray.home() if folder else None, _importable()):
            yield head
    except BodegaError:
        raise
    except Exception:
        keep = True
        raise
    finally:
        with _handlers_kept():
            if head is not None and head.lost:
                if folder is not None:
                    local_ray.end_ours()
                head.leave(ray.shutdown)
            else:
                ray.shutdown()
        if folder is not None:
            if keep and (kept := local_ray.keep_logs(folder)):
                say(f"Ray's own logs are kept in {kept}")
            local_ray.end_ours()


def _init(settings: ClusterSettings, folder: Path | None) -> Head:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    common: dict[str, Any] = {"log_to_driver": settings.log_to_driver, "configure_logging": False}
    try:
        if folder is None:
            _knock(settings.address)
            ray.init(address=settings.address, runtime_env={"env_vars": _threads(1)}, **common)
            return Head.joined(ray.get_runtime_context().gcs_address)
        local_ray.guard()
        with _environment(_threads(1) | local_ray.mark() | {"PYTHONPATH": _importable()}):
            ray.init(
                address="local",
                num_cpus=settings.cpus or None,
                object_store_memory=settings.object_store_mb * 2**20,
                include_dashboard=False,
                _temp_dir=str(folder),  # Ray opens this one to everybody; the folder around it stays ours
                **common,
            )
        return Head.local()
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"Ray cannot be {'started' if folder else 'joined'} at '{settings.address}': {error}",
            "Run `bodega doctor`, or set cluster.address=local to start one here.",
        ) from error


def _knock(address: str) -> None:
    """Fail within seconds where nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _call(function: Callable[..., Result], item: Item, *shared: Any) -> Result:
    return function(item, *shared)


def _result(done: Any, label: str) -> Any:
    import ray
    from ray import exceptions

    try:
        return ray.get(done)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, BodegaError):
            raise error.cause from None
        raise
    except exceptions.OutOfMemoryError as error:
        raise BodegaError(
            f"A task of '{label}' ran out of memory {_RETRIES + 1} times.",
            "Make the shards smaller, or set cluster.cpus lower so that fewer run at once.",
        ) from error
    except (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.LocalRayletDiedError,
    ) as error:
        raise BodegaError(
            f"A task of '{label}' lost its worker {_RETRIES + 1} times: {type(error).__name__}.",
            "Look for the killer in the system's log (often a lack of memory), then run the same command again.",
        ) from error


def _threads(count: int) -> dict[str, str]:
    """What numeric libraries read when they are loaded.

    A thread of OpenMP that waits for its siblings spins, for milliseconds by default; where others want the cores too, it keeps
    the very one that it waits for from running. With three busy neighbours on four cores an epoch took 64 s; with this, 1.0.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "ARROW_NUM_THREADS")
    return dict.fromkeys(names, str(count)) | {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", _SPINS)}


def _importable() -> str:
    """What this process can import beyond its installation, so that workers can too, whatever their directory."""
    roots = (sys.prefix, sys.base_prefix)
    return os.pathsep.join(str(Path(path).absolute()) for path in sys.path if not path.startswith(roots))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray replaces the process's SIGTERM handler; the recipe's own stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
