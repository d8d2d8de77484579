"""The ledger's audit log by hand: is it whole, what does it say last, and what was done beside the servers."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.consent import AuditCheck, AuditRow, Ledger, Vocabulary
from engine.errors import SettingsError
from engine.snapshot import Registry

_BROKEN = 4  # the exit code of ConsentError
# Rows of the audit log name neither purposes nor sources, so that any vocabulary reads them.
_ANY = Vocabulary(sources=("any",))


def audit(
    out: Path, store: str, last: int, against: Sequence[str]
) -> tuple[AuditCheck, list[AuditRow], dict[str, str]]:
    """Check the log of a deployment, and read its last rows.

    Args:
        out: the deployment's folder.
        store: of its snapshots; '' is `out`/snapshots.
        last: rows to read, 0 or more.
        against: ids of snapshots whose recorded head must be in the log.

    Returns:
        What the check found, the rows, oldest first, and the recorded head by snapshot; '' where its night wrote none.

    Raises:
        SettingsError: there is no ledger, or `last` is below 0. NoSnapshot: there is none of that id.
        LedgerUnavailable: the ledger cannot be read.
    """
    path = (out / "consent.db").resolve()
    if not path.is_file() or not path.stat().st_size:  # opening would begin a new one, which is whole
        raise SettingsError(f"There is no ledger at {path}.", "Name the deployment's folder with --out.")
    if last < 0:
        raise SettingsError(f"--last is {last}.", "Use 0 or more.")
    registry = Registry(store or out / "snapshots")
    heads = {name: registry.manifest(name).lineage.audit_head for name in against}
    with contextlib.closing(Ledger.open(f"sqlite:///{path}", _ANY)) as ledger:
        return ledger.verify_audit(tuple(heads.values())), ledger.audit_rows(last), heads


def actor() -> str:
    """Who runs this process, by the system's own account."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number alone
        return f"uid {os.getuid()}"


@contextlib.contextmanager
def noting(out: Path) -> Iterator[Callable[[str, Mapping[str, str]], None]]:
    """What writes into the audit log of a deployment what is done by hand in the block; says so where there is none.

    Opened before anything is done: what cannot be recorded is not begun.

    Raises:
        LedgerUnavailable: it cannot be opened or written.
    """
    path = (out / "consent.db").resolve()
    if not path.is_file():
        yield lambda action, detail: print(f"Not in the audit log: there is no ledger at {path}.", file=sys.stderr)
        return
    with contextlib.closing(Ledger.open(f"sqlite:///{path}", _ANY)) as ledger:
        ledger.audit_head()
        yield lambda action, detail: ledger.audit(action, actor(), detail)


def show(check: AuditCheck, rows: Sequence[AuditRow], heads: dict[str, str], as_json: bool) -> int:
    """Print what was found; returns the exit code, 4 where the log is not whole or lacks a recorded head."""
    missing = {name for name, head in heads.items() if head in check.missing}
    if as_json:
        sys.stdout.write(json.dumps(_plain(check, rows, heads), indent=2, sort_keys=True) + "\n")
    else:
        for row in rows:
            moved = f" -> {row.sequence}" if row.sequence is not None else ""
            when = row.at.isoformat(sep=" ", timespec="seconds")
            sys.stdout.write(f"{row.number:>8} {when} {row.actor} {row.action}{moved} {row.detail} {row.hash[:12]}\n")
        whole = "whole" if not check.fault else f"BROKEN after row {check.rows}: {check.fault}"
        sys.stdout.write(f"audit log: {check.rows} rows, head {check.head or 'none'}, {whole}\n")
        for name, head in heads.items():
            said = (
                "was made without an audit log" if not head else "NOT in the log" if name in missing else "in the log"
            )
            sys.stdout.write(f"snapshot {name}: head {head or 'none'} {said}\n")
    return 0 if check.whole else _BROKEN


def _plain(check: AuditCheck, rows: Sequence[AuditRow], heads: dict[str, str]) -> dict[str, Any]:
    return {
        "whole": check.whole,
        "rows": check.rows,
        "head": check.head,
        "fault": check.fault,
        "snapshots": {
            name: {"head": head, "in_log": bool(head) and head not in check.missing} for name, head in heads.items()
        },
        "last": [
            {
                "number": row.number,
                "at": row.at.isoformat(),
                "actor": row.actor,
                "action": row.action,
                "sequence": row.sequence,
                "detail": _said(row.detail),
                "hash": row.hash,
            }
            for row in rows
        ],
    }


def _said(detail: str) -> Any:
    try:
        return json.loads(detail)
    except ValueError:  # a row that was edited; the check says so
        return detail
