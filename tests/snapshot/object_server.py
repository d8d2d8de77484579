"""An S3-compatible server for tests: moto's, over HTTP on loopback, with faults of the network where a test wants them.

moto checks If-Match and If-None-Match, but checks first and writes then; S3 does both at once. So writes wait for one another
here, and nothing else is changed: which write wins is up to moto's own check.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "shop"


@dataclass
class Fault:
    """What happens to the requests that `matches` names, `times` of them.

    how: reset_before or reset_after the work (the connection ends without an answer), error_before, error_after (500),
    or hang_after (the answer comes `seconds` late).
    """

    how: str
    matches: Callable[[str, str], bool]  # method, path below the bucket
    times: int = 1
    seconds: float = 0.0


@dataclass
class ObjectServer:
    """One server with one bucket; `asked` tells what came: (method, path below the bucket)."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    watch: Callable[[str, bool], None] | None = None  # before (True) and after each request
    _stop: Callable[[], None] = lambda: None

    @classmethod
    def start(cls) -> ObjectServer:
        """Serve until `stop`, in a thread of this process."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self = cls()
        app = DomainDispatcherApplication(create_backend_app)
        writes = threading.Lock()

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
            self.asked.append((method, path))
            fault = next((each for each in self.faults if each.times > 0 and each.matches(method, path)), None)
            if fault is not None:
                fault.times -= 1
                if fault.how.endswith("before"):
                    return _end(fault, environ, start_response)
            if self.watch is not None:
                self.watch(path, True)
            held: list[tuple[Any, ...]] = []
            if method in ("PUT", "POST", "DELETE"):
                with writes:
                    body = list(app(environ, lambda *said: held.append(said)))
            else:
                body = list(app(environ, lambda *said: held.append(said)))
            if self.watch is not None:
                self.watch(path, False)
            if fault is not None:
                if fault.how == "hang_after":
                    time.sleep(fault.seconds)
                else:
                    return _end(fault, environ, start_response)
            start_response(*held[-1][:2])
            return body

        server = make_server("127.0.0.1", 0, answer, threaded=True)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self._stop = lambda: (server.shutdown(), thread.join(), server.server_close())  # type: ignore[assignment,func-returns-value]
        return self

    def stop(self) -> None:
        """End it."""
        self._stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(self, how: str, method: str, part: str, times: int = 1, seconds: float = 0.0) -> None:
        """Let the next requests of a method, to paths that hold `part`, fail."""
        self.faults.append(Fault(how, lambda found, path: found == method and part in path, times, seconds))


def _end(fault: Fault, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if fault.how.startswith("reset"):
        connection: socket.socket = environ["werkzeug.socket"]
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError
    start_response("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]
