"""How far the consent ledger had come when this machine last saw it: a restart must not forget that.

cache/ledger-seen.json   {"sequence", "head"}: a sequence, and the head of the audit log at it

Without it, a ledger from a backup that is put back while no server runs would bring back what was withdrawn or erased since.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import structlog

_log = structlog.get_logger("bodega.ledger")


class LedgerMark:
    """One file, for all server processes of a machine; it only ever goes forward."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = (0, "")
        self._lock = threading.Lock()

    def read(self) -> tuple[int, str]:
        """What was seen last; (0, '') where nothing was, or the file says nothing that can be read."""
        try:
            record = json.loads(self._path.read_bytes())
            return int(record["sequence"]), str(record["head"])
        except FileNotFoundError:
            return 0, ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("ledger_mark_unreadable", path=str(self._path), error=str(error))
            return 0, ""

    def keep(self, sequence: int, head: str) -> None:
        """Keep what was seen, where it is further than what is kept."""
        with self._lock:
            if (sequence, head) == self._kept or sequence < max(self._kept[0], self.read()[0]):
                return
            unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_text(json.dumps({"sequence": sequence, "head": head}))
                unfinished.replace(self._path)
            except OSError as error:
                _log.warning("ledger_mark_not_kept", path=str(self._path), error=str(error))
                return
            self._kept = (sequence, head)
