"""A process beside a driver that speaks, and clears up, when the driver no longer can.

A driver that is killed says nothing, and Ray's own code ends a driver on the spot when it finds the object store gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_BYE = b"bye"
_SAID = (
    "error: The driver has ended without a word: it was killed, or it lost Ray.\n"
    "remedy: Run the same command again: what is finished is kept.\n"
)
_present: subprocess.Popen[bytes] | None = None


@contextlib.contextmanager
def witnessed(home: Path | None, importable: str) -> Iterator[None]:
    """Have somebody there while the body runs.

    Args:
        home: folder of the Ray that is to be ended with this process; None for one that is to go on.
        importable: where it finds this module, as PYTHONPATH.
    """
    global _present
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.witness", str(home or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": importable},
    ) as _present:
        try:
            yield
        finally:
            dismiss()


def dismiss() -> None:
    """Let the witness go: this process can speak for itself."""
    if _present is not None and _present.stdin is not None and not _present.stdin.closed:
        with contextlib.suppress(BrokenPipeError):  # somebody killed it
            _present.stdin.write(_BYE)
            _present.stdin.close()


def main() -> None:
    """Wait for the end of the driver, whatever it is."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they may come to the whole group, and the driver sees to them
    if sys.stdin.buffer.read() == _BYE:
        return
    sys.stderr.write(_SAID)
    sys.stderr.flush()
    if sys.argv[1]:
        from jobs.local_ray import end

        end(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
