"""`bodega`: one command for what people do by hand. Imports are made inside the commands, so that help is instant.

Exit codes: as in jobs/launch.py; a call that the server refused or never got exits with 1.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from engine.errors import BodegaError
from jobs.calls import HERE as _HERE
from jobs.calls import OUT as _OUT
from jobs.calls import PORT as _PORT
from jobs.calls import Address, AsJson, Level, Out, Store, Timeout, Tls
from jobs.calls import connected as _client
from jobs.calls import print_message as _print_message
from jobs.consent_cli import consent
from jobs.launch import guarded, report
from jobs.runs_cli import runs
from jobs.tables import print_table

if TYPE_CHECKING:
    from engine.snapshot import Registry

app = typer.Typer(
    help="A shop that knows your usual and keeps it to itself.", no_args_is_help=True, pretty_exceptions_enable=False
)
snapshot = typer.Typer(help="What is published.", no_args_is_help=True)
app.add_typer(consent, name="consent")
app.add_typer(snapshot, name="snapshot")
app.add_typer(runs, name="runs")


User = Annotated[str, typer.Argument(help="The user id, as in the logs; '' is a stranger.")]
_ANY = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_PIPE_WIDTH = 200


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
    print_table(("", "item", "lane", "reason", "score"), rows)
    made = reply.provenance
    mode = made.Mode.Name(made.mode).removeprefix("MODE_").lower()
    why = f" ({made.reason})" if made.reason else ""
    print(f"{mode}{why}, snapshot {made.snapshot_id}, policy {made.policy}, {elapsed_ms:.1f} ms with the way")
    for held in reply.withheld:
        print(f"{held.rule} withheld {held.count}{f' ({held.reason})' if held.reason else ''}")


@app.command()
def explain(
    user: User,
    item: Annotated[str, typer.Option(help="An item, in the list or not; '': the list as a whole.")] = "",
    surface: Annotated[str, typer.Option(help="home, email, ...; '': the server's default.")] = "",
    level: Annotated[Level | None, typer.Option(help="How far the list may go at most.")] = None,
    address: Address = _HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
    as_json: AsJson = False,
) -> None:
    """Say why a person's list, or one item's place in it, is what it is, and what they can do about it."""
    with _client(address, tls, timeout) as client:
        told = client.explain(user, item_id=item, surface=surface, level=level.value if level else None)
    if as_json:
        _print_message(told)
        return
    acts = [
        (
            act.rule,
            act.effect,
            *((str(act.rank_before), str(act.rank_after or "-")) if item else (str(act.count), "")),
            act.reason,
        )
        for act in told.effects
    ]
    print_table(("rule", "", "rank", "then", "reason") if item else ("rule", "", "items", "", "reason"), acts)
    if item and not acts:
        print(f"{item} was no candidate")
    for reason in told.reasons:
        print(reason.text or reason.code)
    weights = [(each.name, f"{each.weight:.1%}", each.description) for each in told.parameters]
    print_table(("parameter", "weight", ""), weights)
    print("would change it: " + (", ".join(told.would_change_it) or "nothing that the person can do"))


@app.command("reload-policies")
def reload_policies(address: Address = _HERE, tls: Tls = "", timeout: Timeout = 30.0) -> None:
    """Have a server read conf/policy again; where anything is wrong in it, what holds stays."""
    with _client(address, tls, timeout) as operator:
        for name in operator.reload_policies().policies:
            print(name)


Noted = Annotated[
    str, typer.Option("--ledger", help="Whose audit log tells of it: an address as in conf/store; '': OUT's own.")
]
Why = Annotated[str, typer.Option("--reason", help="For the audit log.")]
Through = Annotated[str, typer.Option("--address", help="host:port of a server that does it; '': done here, on OUT.")]


@snapshot.command("list")
def snapshot_list(out: Out = _OUT, store: Store = "") -> None:
    """The snapshots here, newest first."""
    registry = _registry(out, store)
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
    print_table(("", "snapshot", "written", "users", "items", "MiB"), rows)


@snapshot.command("promote")
def snapshot_promote(
    snapshot_id: str,
    out: Out = _OUT,
    store: Store = "",
    ledger: Noted = "",
    reason: Why = "",
    address: Through = "",
    tls: Tls = "",
    timeout: Timeout = 600.0,
) -> None:
    """Serve a snapshot that is here already; with --address, only if that server can, and at once."""
    if address:
        with _client(address, tls, timeout) as operator:
            operator.promote_snapshot(snapshot_id)
    else:
        from jobs.audit import noting

        with noting(out, ledger) as note:
            _registry(out, store).promote(snapshot_id)
            note("snapshot_promoted", {"snapshot": snapshot_id} | ({"because": reason} if reason else {}))
    print(f"{snapshot_id} is served now")


@snapshot.command("rollback")
def snapshot_rollback(
    out: Out = _OUT,
    store: Store = "",
    ledger: Noted = "",
    reason: Annotated[str, typer.Option(help="For the audit log; needed with --address.")] = "",
    address: Through = "",
    tls: Tls = "",
    timeout: Timeout = 600.0,
) -> None:
    """Serve what was served before; with --address, only if that server can, and at once."""
    if address:
        with _client(address, tls, timeout) as operator:
            name = operator.rollback_snapshot(reason).snapshot.snapshot_id
    else:
        from jobs.audit import noting

        with noting(out, ledger) as note:
            name = _registry(out, store).rollback()
            note("snapshot_rolled_back", {"snapshot": name, "because": reason})
    print(f"{name} is served now")


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


def _registry(out: Path, store: str) -> Registry:
    from engine.snapshot import Registry

    return Registry(store or out / "snapshots")


if __name__ == "__main__":
    main()
