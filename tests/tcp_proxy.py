"""A proxy between a client and a server on loopback, whose connections a test cuts, silences and slows."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Fault = Literal["", "swallow", "cut before", "cut after"]


class TcpProxy:
    """Make it with `proxy_to`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.fault: Fault = ""  # "swallow" forwards nothing; the others cut when the client sends `word`
        self.word = b""
        self.delay = 0.0  # seconds that each piece takes, each way
        self.cuts = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            _end(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # it is down, and may come back
                    _end(client)
                    continue
                self._sockets += [client, server]
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.fault == "swallow":
                    continue
                if asks and self.word and self.word in data and self.fault:
                    self.cuts += 1
                    if self.fault == "cut after":
                        _end(source)  # the answer finds nobody
                        target.sendall(data)
                        target.shutdown(socket.SHUT_WR)
                        return
                    break
                if self.delay:
                    time.sleep(self.delay)
                target.sendall(data)
        _end(source)
        _end(target)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def proxy_to(port: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
