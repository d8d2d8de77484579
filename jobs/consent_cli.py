"""`bodega consent`: what a person allows, their receipt, their erasure, and the audit log."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.errors import SettingsError
from jobs.calls import HERE, OUT, Address, AsJson, Level, Out, Store, Timeout, Tls, connected, print_message
from jobs.tables import print_table

consent = typer.Typer(help="What a person allows.", no_args_is_help=True)

Known = Annotated[str, typer.Argument(help="The user id, as in the logs.")]
Changes = Annotated[list[str], typer.Argument(metavar="PURPOSE[:SOURCE]...", help="Without a source: all of them.")]
Notice = Annotated[str, typer.Option(help="The version of the text that the person saw.")]
Actor = Annotated[str, typer.Option(help="person, guardian or operator.")]
Overrides = Annotated[list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as consent=team.")]
Whose = Annotated[
    str, typer.Option("--user", help="The user id, as in the logs; without it, a line of standard input.")
]


@consent.command("get")
def consent_get(
    user: Known, address: Address = HERE, tls: Tls = "", timeout: Timeout = 5.0, as_json: AsJson = False
) -> None:
    """What a person allows now; what is not listed is not granted."""
    from bodega.v1.common_pb2 import Personalization

    with connected(address, tls, timeout) as client:
        reply = client.get_consent(user)
    if as_json:
        print_message(reply)
        return
    print_table(
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
    address: Address = HERE,
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
    address: Address = HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
) -> None:
    """Withdraw purposes; all of them where none is named."""
    _change(user, changes, False, None, notice_version, actor, (address, tls, timeout))


@consent.command("tcf")
def consent_tcf(
    user: Known,
    source: Annotated[str, typer.Option(help="Where it was asked for, such as web.")],
    vendor: Annotated[int, typer.Option(help="The shop's number on the Global Vendor List.")],
    overrides: Annotated[list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Such as consent=team.")] = [],  # noqa: B006
    notice_version: Notice = "",
    address: Address = HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
) -> None:
    """Record what a TC string, a line of standard input, grants and withdraws for one source."""
    import sys

    from jobs.tcf import changes_of

    said = changes_of(sys.stdin.readline().strip(), source, vendor, overrides)
    for granted in (True, False):
        if named := [f"{each.purpose}:{each.source}" for each in said if each.granted is granted]:
            print(f"{'grants' if granted else 'withdraws'} {', '.join(named)}")
    with connected(address, tls, timeout) as client:
        from bodega.client import grant

        asked = [grant(each.purpose, each.source, granted=each.granted) for each in said]
        reply = client.set_consent(user, asked, notice_version=notice_version)
    print(f"recorded as {reply.receipt_id}, change {reply.sequence}; consent token {reply.consent_token}")


@consent.command("link")
def consent_link(
    users: Annotated[list[str], typer.Argument(metavar="USER USER...", help="Ids of one person, as in the logs.")],
    notice_version: Notice = "",
    actor: Actor = "person",
    address: Address = HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
) -> None:
    """Put ids of one person together, who consents to it: one history of consent, and one list from the next night on."""
    with connected(address, tls, timeout) as client:
        reply = client.link_users(users, notice_version=notice_version, actor=actor)
    print(f"recorded as {reply.receipt_id}, change {reply.sequence}; consent token {reply.consent_token}")


@consent.command("unlink")
def consent_unlink(
    user: Known,
    notice_version: Notice = "",
    actor: Actor = "person",
    address: Address = HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
) -> None:
    """Take an id from those that it is linked with: nothing that was made of them together is used any more."""
    with connected(address, tls, timeout) as client:
        reply = client.unlink_user(user, notice_version=notice_version, actor=actor)
    print(f"recorded as {reply.receipt_id}, change {reply.sequence}; consent token {reply.consent_token}")


@consent.command("erase")
def consent_erase(
    user: Known,
    yes: Annotated[bool, typer.Option("--yes", help="Needed: what is erased cannot be had back.")] = False,
    actor: Actor = "person",
    address: Address = HERE,
    tls: Tls = "",
    timeout: Timeout = 5.0,
    as_json: AsJson = False,
) -> None:
    """Forget a person: at once in serving, and elsewhere as the receipt says."""
    if not yes:
        raise SettingsError("An erasure cannot be undone.", "Add --yes if that is what is wanted.")
    with connected(address, tls, timeout) as client:
        reply = client.erase_user(user, actor=actor)
    if as_json:
        print_message(reply)
        return
    rows = [
        (each.copy, "done" if each.done else each.by.ToJsonString()[:10] if each.HasField("by") else "open", each.text)
        for each in reply.deadlines
    ]
    print_table(("copy", "by", ""), rows)
    print(f"receipt {reply.receipt_id}, change {reply.sequence}; consent token {reply.consent_token}")


@consent.command("receipt")
def consent_receipt(
    overrides: Overrides = [],  # noqa: B006 - as above
    user: Whose = "",
    out: Out = OUT,
) -> None:
    """Print what is recorded of a person's consent, as JSON-LD after ISO/IEC TS 27560."""
    import json
    import sys

    from jobs.receipt import receipt

    given = user or sys.stdin.readline().rstrip("\n")  # other users of the machine see an argument
    print(json.dumps(receipt(out, overrides, given), indent=2, ensure_ascii=False))


@consent.command("audit")
def consent_audit(
    overrides: Overrides = [],  # noqa: B006 - as above
    out: Out = OUT,
    last: Annotated[int, typer.Option(help="Rows to print.")] = 10,
    against: Annotated[
        list[str], typer.Option(metavar="SNAPSHOT", help="It must be there, and its head in the log; may be repeated.")
    ] = [],  # noqa: B006 - as above
    store: Store = "",
    as_json: AsJson = False,
) -> None:
    """Check the audit log's chain, hold ledger and snapshots against it, print its last rows; exit 4 where anything is wrong."""
    from jobs.audit import audit, show

    raise typer.Exit(show(audit(out, overrides, store, last, against), as_json))


@consent.command("held")
def consent_held(
    overrides: Overrides = [],  # noqa: B006 - as above
    user: Annotated[
        str, typer.Option(help="One person, by the id as in the logs; '-': a line of standard input.")
    ] = "",
    out: Out = OUT,
    store: Store = "",
    as_json: AsJson = False,
) -> None:
    """What is held of people, copy by copy: how many, for what, since and until when; or of one person."""
    import sys

    if not user:
        from jobs.held import held, show

        show(held(out, overrides, store), as_json)
        return
    from jobs.held_person import held_of
    from jobs.held_person import show as show_person

    given = sys.stdin.readline().rstrip("\n") if user == "-" else user  # other users of the machine see an argument
    show_person(held_of(out, overrides, store, given), as_json)


@consent.command(
    "decide",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def consent_decide(context: typer.Context) -> None:
    """Make a reply again from what it followed from, and compare: python -m engine.serving.decide --request FILE ..."""
    import os
    import sys

    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "engine.serving.decide", *context.args])  # which jobs do not import


def _change(
    user: str,
    changes: list[str],
    granted: bool,
    level: Level | None,
    notice_version: str,
    actor: str,
    server: tuple[str, str, float],
) -> None:
    from bodega.client import grant

    named = [each.partition(":") for each in changes]
    asked = [grant(purpose, source, granted=granted) for purpose, _, source in named]
    with connected(*server) as client:
        if asked or granted:
            reply = client.set_consent(
                user, asked, preference=level.value if level else None, notice_version=notice_version, actor=actor
            )
        else:
            reply = client.withdraw(user, notice_version=notice_version, actor=actor)
    print(f"recorded as {reply.receipt_id}, change {reply.sequence}; consent token {reply.consent_token}")
