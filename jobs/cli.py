"""`bodega`: one command for what people do by hand. Imports are made inside the commands, so that help is instant.

Exit codes: as in jobs/launch.py; a call that the server refused or never got exits with 1.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from engine.errors import BodegaError, SettingsError
from jobs.launch import guarded, report

if TYPE_CHECKING:
    from bodega.client import Client

    from engine.snapshot import Registry

app = typer.Typer(
    help="A shop that knows your usual and keeps it to itself.", no_args_is_help=True, pretty_exceptions_enable=False
)
consent = typer.Typer(help="What a person allows.", no_args_is_help=True)
snapshot = typer.Typer(help="What is published.", no_args_is_help=True)
app.add_typer(consent, name="consent")
app.add_typer(snapshot, name="snapshot")


class Level(StrEnum):
    """How far a list may go."""

    none = "none"
    session = "session"
    purchases = "purchases"
    full = "full"


_PORT = 50051
Out = Annotated[Path, typer.Option(help="Folder of the deployment, as out=DIR of the jobs.")]
User = Annotated[str, typer.Argument(help="The user id, as in the logs; '' is a stranger.")]
Known = Annotated[str, typer.Argument(help="The user id, as in the logs.")]
Address = Annotated[str, typer.Option(envvar="BODEGA_ADDRESS", help="host:port of the server.")]
Tls = Annotated[str, typer.Option(envvar="BODEGA_TLS", help="'system', or a PEM file of authorities; '': plain text.")]
Timeout = Annotated[float, typer.Option(help="Seconds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Changes = Annotated[list[str], typer.Argument(metavar="PURPOSE[:SOURCE]...", help="Without a source: all of them.")]
Notice = Annotated[str, typer.Option(help="The version of the text that the person saw.")]
Actor = Annotated[str, typer.Option(help="person, guardian or operator.")]
_ANY = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_HERE = f"127.0.0.1:{_PORT}"
_PIPE_WIDTH = 200
_OUT = Path(".bodega/out")


def main() -> None:
    """The entry point."""
    sys.exit(guarded(app))


@app.command(context_settings=_ANY, add_help_option=False)
def simulate(context: typer.Context) -> None:
    """Make a small shop with a log: python -m jobs.simulate key=value..."""
    _become("jobs.simulate", context.args)


@app.command(context_settings=_ANY, add_help_option=False)
def nightly(context: typer.Context) -> None:
    """Run the night and publish: python -m jobs.nightly key=value..."""
    _become("jobs.nightly", context.args)


@app.command(context_settings=_ANY, add_help_option=False)
def backfill(context: typer.Context) -> None:
    """Ingest days of the past: python -m jobs.backfill key=value..."""
    _become("jobs.backfill", context.args)


@app.command(context_settings=_ANY, add_help_option=False)
def prove(context: typer.Context) -> None:
    """Try a policy on simulated people who react: python -m jobs.prove key=value..."""
    _become("jobs.prove", context.args)


@app.command(context_settings=_ANY, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Serve what is published: python -m engine.serving key=value..."""
    _become("engine.serving", context.args)


@app.command()
def recommend(
    user: User,
    surface: Annotated[str, typer.Option(help="home, email, ...; '': the server's default.")] = "",
    limit: Annotated[int, typer.Option(help="Items; 0: the surface's default.")] = 0,
    level: Annotated[Level | None, typer.Option(help="How far the list may go at most.")] = None,
    diversity: Annotated[float | None, typer.Option(help="0..1, in place of the surface's own strength.")] = None,
    address: Address = _HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask the server for a person's list."""
    with _client(address, tls, timeout) as client:
        began = time.perf_counter()
        reply = client.recommend(
            user, surface=surface, limit=limit, diversity=diversity, level=level.value if level else None
        )
        elapsed_ms = 1000 * (time.perf_counter() - began)
    if as_json:
        _print_message(reply)
        return
    rows = [
        (
            str(place),
            item.item_id,
            item.lane,
            "; ".join(reason.text or reason.code for reason in item.reasons),
            f"{item.score:.4g}",
        )
        for place, item in enumerate(reply.items, 1)
    ]
    _print_table(("", "item", "lane", "reason", "score"), rows)
    made = reply.provenance
    mode = made.Mode.Name(made.mode).removeprefix("MODE_").lower()
    why = f" ({made.reason})" if made.reason else ""
    print(f"{mode}{why}, snapshot {made.snapshot_id}, policy {made.policy}, {elapsed_ms:.1f} ms with the way")
    for held in reply.withheld:
        print(f"{held.rule} withheld {held.count}{f' ({held.reason})' if held.reason else ''}")


@consent.command("get")
def consent_get(
    user: Known, address: Address = _HERE, tls: Tls = "", timeout: Timeout = 5.0, as_json: AsJson = False
) -> None:
    """What a person allows now; what is not listed is not granted."""
    from bodega.v1.common_pb2 import Personalization

    with _client(address, tls, timeout) as client:
        reply = client.get_consent(user)
    if as_json:
        _print_message(reply)
        return
    _print_table(
        ("purpose", "source", ""),
        [(each.purpose, each.source or "every", "granted" if each.granted else "withdrawn") for each in reply.grants],
    )
    preference = Personalization.Name(reply.preference).removeprefix("PERSONALIZATION_").lower()
    print(f"preference: {'none stated' if preference == 'unspecified' else preference}")


@consent.command("set")
def consent_set(
    user: Known,
    changes: Changes = [],  # noqa: B006 - typer reads the default, nobody writes to it
    level: Annotated[Level | None, typer.Option(help="How far lists may go at most.")] = None,
    notice_version: Notice = "",
    actor: Actor = "person",
    address: Address = _HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
) -> None:
    """Grant purposes, such as `profile` or `profile:web`."""
    if not changes and level is None:
        raise SettingsError("There is nothing to set.", "Name a purpose, such as profile, or a --level.")
    _change(user, changes, True, level, notice_version, actor, (address, tls, timeout))


@consent.command("withdraw")
def consent_withdraw(
    user: Known,
    changes: Changes = [],  # noqa: B006 - as above
    notice_version: Notice = "",
    actor: Actor = "person",
    address: Address = _HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
) -> None:
    """Withdraw purposes; all of them where none is named."""
    _change(user, changes, False, None, notice_version, actor, (address, tls, timeout))


@snapshot.command("list")
def snapshot_list(out: Out = _OUT) -> None:
    """The snapshots here, newest first."""
    registry = _registry(out)
    listed = registry.list()
    current = ""
    try:
        current = registry.current()
    except BodegaError as error:  # the list is what helps to mend a lost pointer
        report(error)
    rows = [
        (
            "current" if each.snapshot_id == current else "",
            each.snapshot_id,
            each.created_at.isoformat(sep=" ", timespec="seconds"),
            f"{each.counts.get('users', 0):,}",
            f"{each.counts.get('items', 0):,}",
            f"{sum(file.bytes for file in each.files.values()) / 2**20:,.1f}",
        )
        for each in listed
    ]
    _print_table(("", "snapshot", "written", "users", "items", "MiB"), rows)


@snapshot.command("promote")
def snapshot_promote(snapshot_id: str, out: Out = _OUT) -> None:
    """Serve a snapshot that is here already."""
    _registry(out).promote(snapshot_id)
    print(f"{snapshot_id} is served now")


@snapshot.command("rollback")
def snapshot_rollback(out: Out = _OUT) -> None:
    """Serve what was served before."""
    print(f"{_registry(out).rollback()} is served now")


@app.command()
def doctor(
    out: Out = _OUT,
    port: Annotated[int, typer.Option(help="Where the server would listen.")] = _PORT,
    quick: Annotated[bool, typer.Option("--quick", help="Do not start Ray.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at this machine and say what to do."""
    from jobs.doctor import examine, show

    raise typer.Exit(show(examine(out, port, quick), as_json))


@app.command()
def keys(out: Out = _OUT) -> None:
    """Make the two user keys where they are missing, and name them."""
    from engine.identity import UserKeys

    made = UserKeys.load(out / "keys", create=True)
    print(f"stable {made.stable.key_id}, rotating {made.rotating.key_id} in {out / 'keys'}: back up the stable one")


def _become(module: str, arguments: list[str]) -> NoReturn:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def _registry(out: Path) -> Registry:
    from engine.snapshot import Registry

    return Registry(out / "snapshots")


@contextmanager
def _client(address: str, tls: str, timeout: float) -> Iterator[Client]:
    import grpc
    from bodega.client import BodegaRpcError, Client

    if tls not in ("", "system") and not Path(tls).is_file():
        raise SettingsError(f"--tls: there is no file {tls}.", "Name a PEM file, or 'system'.")
    trust: Any = {"": None, "system": True}.get(tls, tls)
    try:
        with Client(address, tls=trust, timeout=timeout) as client:
            yield client
    except BodegaRpcError as error:
        if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) and not error.remedy:
            raise BodegaError(
                f"No answer from {address}: {error.message}.",
                "Start a server with `bodega serve out=DIR`, or name another with --address.",
            ) from error
        raise BodegaError(f"{error.message} ({error.reason})", error.remedy) from error


def _change(
    user: str,
    changes: list[str],
    granted: bool,
    level: Level | None,
    notice_version: str,
    actor: str,
    server: tuple[str, str, float],
) -> None:
    from bodega.client import PURPOSES, grant

    pairs = [each.partition(":") for each in changes] or [(each, "", "") for each in (() if granted else PURPOSES)]
    asked = [grant(purpose, source, granted=granted) for purpose, _, source in pairs]
    with _client(*server) as client:
        reply = client.set_consent(
            user, asked, preference=level.value if level else None, notice_version=notice_version, actor=actor
        )
    print(f"recorded as {reply.receipt_id}, change {reply.sequence}; consent token {reply.consent_token}")


def _print_message(message: Any) -> None:
    from google.protobuf.json_format import MessageToJson

    print(MessageToJson(message, preserving_proto_field_name=True))


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*titles)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)  # a pipe must not cut ids in two


if __name__ == "__main__":
    main()
