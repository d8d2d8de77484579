"""The ledger's audit log by hand: is it whole, does all else agree with it, what does it say last; and notes of work by hand."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.consent import Ledger, Vocabulary
from engine.consent.beside import Beside
from engine.consent.looking import Examined, LedgerView
from engine.errors import SettingsError
from engine.snapshot import Registry
from engine.snapshot.pointer import ID
from jobs.receipt import composed
from jobs.settings import Settings

_BROKEN = 4  # the exit code of ConsentError
# Rows of the audit log name neither purposes nor sources, so that any vocabulary reads them.
_ANY = Vocabulary(sources=("any",))
_COUNTS = tuple(each.name for each in fields(Beside) if each.name not in ("faults", "fault", "kinds", "_first"))


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found. heads: by snapshot, as its manifest recorded it; '' where its night wrote none. unread: snapshots
    whose manifest cannot be read, so that nothing is compared with it.
    """

    found: Examined
    heads: dict[str, str]
    unread: list[str]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong, and nothing was left out."""
        beside = self.found.beside
        return self.found.chain.whole and beside is not None and beside.sound and not self.unread


def audit(out: Path, overrides: Sequence[str], store: str, last: int, against: Sequence[str]) -> Audit:
    """Check the log of a deployment, hold ledger and snapshots against it, and read its last rows. Writes nothing.

    Args:
        out: the deployment's folder.
        overrides: settings of conf/nightly.yaml, such as `store.ledger=postgresql://...`.
        store: of its snapshots; '' is the settings'. The head that each of them records must be in the log.
        last: rows to read, 0 or more.
        against: ids of snapshots that must be there.

    Raises:
        SettingsError: there is no ledger, or `last` is below 0. NoSnapshot: there is none of that id.
        LedgerUnavailable: the ledger cannot be read, or is of a format without an audit log.
    """
    if last < 0:
        raise SettingsError(f"--last is {last}.", "Use 0 or more.")
    settings = composed(out.resolve(), overrides)
    url = settings.store.ledger
    there(url)
    registry = registry_of(settings, store)
    manifests = {each.snapshot_id: each for each in registry.list()}
    manifests |= {name: registry.manifest(name) for name in against}
    heads = {name: each.lineage.audit_head for name, each in manifests.items()}
    with contextlib.closing(LedgerView.open(url, _ANY)) as ledger:
        return Audit(ledger.examine(tuple(heads.values()), last), heads, _unread(registry, manifests))


def registry_of(settings: Settings, store: str) -> Registry:
    """The snapshots of a deployment; `store` in the place of the settings', where it is given."""
    where = store or settings.store.snapshots
    return Registry(where, settings.store.cache if "://" in where else None)


def there(url: str) -> None:
    """Refuse a ledger that is not there, for a look would begin a new one or find nothing wrong with it.

    Raises:
        SettingsError: there is no file at its address.
    """
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and (not path.is_file() or not path.stat().st_size):
        raise SettingsError(f"There is no ledger at {path}.", "Name the deployment's folder with --out.")


def _unread(registry: Registry, known: Mapping[str, object]) -> list[str]:
    """Snapshots of a folder that the registry leaves out; those of an object store it names on stderr itself."""
    if "://" in registry.where or not registry.root.is_dir():
        return []
    return sorted(each.name for each in registry.root.iterdir() if ID.fullmatch(each.name) and each.name not in known)


def actor() -> str:
    """Who runs this process, by the system's own account."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number alone
        return f"uid {os.getuid()}"


@contextlib.contextmanager
def noting(out: Path, url: str = "") -> Iterator[Callable[[str, Mapping[str, str]], None]]:
    """What writes into the audit log of a deployment what is done by hand in the block; says so where there is none.

    Opened before anything is done: what cannot be recorded is not begun.

    Args:
        url: of the ledger; '': the one in the deployment's folder.

    Raises:
        LedgerUnavailable: it cannot be opened or written.
    """
    path = (out / "consent.db").resolve()
    if not url and not path.is_file():
        yield lambda action, detail: print(f"Not in the audit log: there is no ledger at {path}.", file=sys.stderr)
        return
    there(url)
    with contextlib.closing(Ledger.open(url or f"sqlite:///{path}", _ANY)) as ledger:
        ledger.audit_head()
        yield lambda action, detail: ledger.audit(action, actor(), detail)


def show(audit: Audit, as_json: bool) -> int:
    """Print what was found; returns the exit code, 4 where anything is wrong or could not be compared."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(audit), indent=2, sort_keys=True) + "\n")
        return 0 if audit.whole else _BROKEN
    chain, beside = audit.found.chain, audit.found.beside
    for row in audit.found.rows:
        moved = f" -> {row.sequence}" if row.sequence is not None else ""
        when = row.at.isoformat(sep=" ", timespec="seconds")
        print(f"{row.number:>8} {when} {row.actor} {row.action}{moved} {row.detail} {row.hash[:12]}")
    whole = "whole" if not chain.fault else f"BROKEN after row {chain.rows}: {chain.fault}"
    print(f"audit log: {chain.rows} rows, head {chain.head or 'none'}, {whole}")
    if beside is None:
        print("ledger: NOT held against the log, for the log itself is broken")
    else:
        counts = ", ".join(f"{name.replace('_', ' ')} {getattr(beside, name)}" for name in _COUNTS)
        says = "agrees with the log" if beside.sound else f"{beside.faults} FAULTS, the first {beside.fault}"
        print(f"ledger: {says}; {counts}")
        if beside.gone:
            print(f"ledger: of {beside.gone} changes nothing is left; an erasure came after each, the log names nobody")
    for name, head in audit.heads.items():
        print(f"snapshot {name}: head {head or 'none'} {_verdict(head, chain.missing)}")
    for name in audit.unread:
        print(f"snapshot {name}: NOT compared, its manifest cannot be read")
    return 0 if audit.whole else _BROKEN


def _verdict(head: str, missing: Sequence[str]) -> str:
    if not head:
        return "was made without an audit log"
    return "NOT in the log" if head in missing else "in the log"


def _plain(audit: Audit) -> dict[str, Any]:
    chain, beside = audit.found.chain, audit.found.beside
    return {
        "whole": audit.whole,
        "rows": chain.rows,
        "head": chain.head,
        "fault": chain.fault,
        "ledger": None
        if beside is None
        else {name: getattr(beside, name) for name in (*_COUNTS, "faults", "fault", "kinds")} | {"sound": beside.sound},
        "snapshots": {
            name: {"head": head, "in_log": bool(head) and head not in chain.missing}
            for name, head in audit.heads.items()
        },
        "unread": audit.unread,
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
            for row in audit.found.rows
        ],
    }


def _said(detail: str) -> Any:
    try:
        return json.loads(detail)
    except ValueError:  # a row that was edited; the check says so
        return detail
