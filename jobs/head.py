"""The head of a Ray (its GCS, and the raylet of a local one): watched, because Ray itself may wait for a dead one for minutes."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.errors import BodegaError
from jobs import local_ray, witness

_EVERY = 0.25  # seconds
_SILENCE = 30.0  # seconds without an answer after which the head of a joined cluster is taken for dead
_KNOCK = 5.0
_GOODBYE = 10.0
_LAST_RESORT = 20.0  # seconds for the main thread to leave by the ordinary way
_WAKE = signal.SIGUSR2
_REMEDY = "Run the same command again: what is finished is kept."


@dataclass
class Head:
    """What must live for work to go on.

    Args:
        fault: says what has died, or ''.
    """

    fault: Callable[[], str]
    lost: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def local(cls) -> Head:
        """Of the Ray that this process has just started."""
        import psutil  # type: ignore[import-untyped]
        from ray._private import worker

        node: Any = worker._global_node
        started = node.all_processes
        watched = [
            (name, psutil.Process(info.process.pid)) for name in ("gcs_server", "raylet") for info in started[name]
        ]

        def fault() -> str:
            for name, process in watched:
                if not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    return f"{name}, process {process.pid}, has ended"
            return ""

        return cls(fault)

    @classmethod
    def joined(cls, address: str) -> Head:
        """Of a running cluster, whose GCS answers at host:port."""
        host, _, port = address.rpartition(":")
        heard = time.monotonic()

        def fault() -> str:
            nonlocal heard
            with contextlib.suppress(OSError):
                socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
                heard = time.monotonic()
            silent = time.monotonic() - heard
            return f"the GCS at {address} has not answered for {silent:.0f} s" if silent > _SILENCE else ""

        return cls(fault)

    def error(self) -> BodegaError:
        """What to tell people."""
        return BodegaError(f"The head of Ray is lost: {self.lost}.", _REMEDY)

    def leave(self, shutdown: Callable[[], None]) -> None:
        """Disconnect from a head that is lost, in bounded time: where Ray waits for it all the same, this process ends without
        asking Ray again, once it has said what it has to say.
        """
        thread = threading.Thread(target=shutdown, daemon=True)
        thread.start()
        thread.join(_GOODBYE)
        if thread.is_alive():
            atexit.register(os._exit, self.error().exit_code)  # before what Ray has registered: the last comes first

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch while the body runs; where the head dies, the body is interrupted.

        Raises:
            BodegaError: the head died.
        """
        thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True, name="Ray's head")
        with _woken():
            thread.start()
            try:
                yield
            except KeyboardInterrupt:
                if self.lost:
                    raise self.error() from None
                raise
            except Exception as error:
                self.lost = self.lost or self.fault()
                if self.lost:  # whatever it was, it followed from that
                    raise self.error() from error
                raise
            finally:
                with self._ending:
                    self._over.set()

    def _watch(self, body: int) -> None:
        lost = ""
        while not lost and not self._over.wait(_EVERY):
            lost = self.fault()
        with self._ending:
            if self._over.is_set():
                return
            self.lost = lost
            if body == threading.main_thread().ident:
                signal.pthread_kill(body, _WAKE)
        if not self._over.wait(_LAST_RESORT):
            print(f"error: {self.error().message}\nremedy: {_REMEDY}", file=sys.stderr, flush=True)
            witness.dismiss()
            local_ray.end_ours()
            os._exit(self.error().exit_code)


@contextlib.contextmanager
def _woken() -> Iterator[None]:
    """Let a signal interrupt the main thread: nothing else reaches one that waits inside Ray."""

    def wake(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt  # the one exception of a handler that Ray lets pass

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(_WAKE, wake)  # not SIGINT: a shell's background jobs ignore that
    try:
        yield
    finally:
        signal.signal(_WAKE, before)
