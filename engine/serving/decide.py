"""A reply made again: from the request, the snapshot, the consent of then and the moment, by the code that serves.

    python -m engine.serving.decide --request REQUEST.json --snapshot ID --sequence N --at TIME out=OUT
    python -m engine.serving.decide --request REQUEST.json --reply REPLY.json out=OUT       and compare with what was sent

Both files are proto JSON (https://protobuf.dev/programming-guides/json/) of RecommendRequest and RecommendResponse; - is
standard input. The reply's provenance has snapshot_id, consent_sequence, made_at and policy; what is not given is taken from
there. Settings are the server's, and must be those of then: another policy is refused by both versions. Nothing is written.

What cannot be had again: recommendation_id, which is drawn; snapshot_age and degraded, which are of the process that answered.
That a replica did not know (consent_stale, consent_unavailable, consent_changing, record_damaged) nothing records: --doubt, or
the reply, says so. Of a person who was erased since, replies from before are gone, and that is told.

Exit codes: 0 made again, and the same where there was a reply; 4 it differs, or cannot be known; else as the server's.
"""

from __future__ import annotations

import os

# As a server does: the order in which threads add up would show in the last bit of a score.
for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import closing  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from datetime import UTC, datetime, timedelta  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, TypeVar  # noqa: E402

from bodega.v1 import ranking_pb2  # noqa: E402
from google.protobuf.json_format import MessageToDict, Parse, ParseError  # noqa: E402
from google.protobuf.message import Message  # noqa: E402

from engine.consent.changes import micros  # noqa: E402
from engine.consent.looking import LedgerView  # noqa: E402
from engine.errors import BodegaError, PolicyError, SettingsError  # noqa: E402
from engine.serving import limits  # noqa: E402
from engine.serving.past import DOUBTS, PastReplica  # noqa: E402
from engine.serving.recommend import Recommender  # noqa: E402
from engine.serving.settings import ServeSettings, load  # noqa: E402
from engine.serving.translate import ask_of, recommend_response  # noqa: E402

_DIFFERS = 4
_M = TypeVar("_M", bound=Message)
Reply = ranking_pb2.RecommendResponse


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a reply follows from. policy: name@version that it must be made under; '': whichever the settings give."""

    request: ranking_pb2.RecommendRequest
    snapshot: str
    sequence: int
    at: datetime
    policy: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Made:
    """A reply made again, without what cannot be had again; and what an officer should know of its moment."""

    reply: Reply
    notes: list[str] = field(default_factory=list)


def decide(settings: ServeSettings, asked: Asked) -> Made:
    """Make a reply again.

    Args:
        settings: of the server then.

    Raises:
        RequestError: the request is one that is refused. NoSnapshot: the snapshot is not kept any more.
        ConsentError: the person was erased since, or the ledger never came that far. PolicyError: today's policy is another.
        LedgerUnavailable, SnapshotError, SettingsError: something is not there, or not of this deployment.
    """
    limits.check(asked.request)
    vocabulary = settings.consent.vocabulary()
    with closing(LedgerView.open(settings.ledger, vocabulary, settings.ledger_patience_seconds)) as ledger:
        replica = PastReplica(settings, asked.snapshot, ledger, asked.sequence, asked.doubt)
        with closing(replica):
            ask = ask_of(asked.request)
            chain = replica.chain(ask.surface, "context.surface")
            today = f"{chain.name}@{chain.version}"
            if asked.policy not in ("", today):
                raise PolicyError(
                    f"The reply was made under the policy {asked.policy}, today's settings give {today}.",
                    "Give the settings of then, such as policy=NAME, or run this where they are checked out.",
                )
            answer = Recommender(replica).recommend(ask, micros(asked.at))
            past = replica.past
    made = recommend_response(answer, ())
    made.ClearField("recommendation_id")
    made.provenance.ClearField("snapshot_age")
    notes = [f"'{asked.doubt}' is taken from the reply: nothing records it"] if asked.doubt else []
    if past is not None and past.next_at is not None:
        late = (asked.at - past.next_at) / timedelta(seconds=1)
        bound = settings.consent_bound_seconds
        if late > bound:
            notes.append(
                f"LATE: the person's next change, {past.next}, was recorded {late:.1f} s before this reply was made; "
                f"the bound is {bound:g} s"
            )
        elif late > 0:
            notes.append(f"the person's next change, {past.next}, was recorded {late:.3f} s before, within the bound")
    return Made(made, notes)


def difference(sent: Reply, made: Reply) -> tuple[str, Any, Any] | None:
    """Where two replies first differ, items first: the field, what was sent and what was made again; None: nowhere."""
    one, other = (
        dict(_fields(MessageToDict(_comparable(each), preserving_proto_field_name=True))) for each in (sent, made)
    )
    for name in sorted({*one, *other}, key=_order):
        if one.get(name) != other.get(name):
            return name, one.get(name), other.get(name)
    return None


def _comparable(reply: Reply) -> Reply:
    bare = Reply()
    bare.CopyFrom(reply)
    bare.ClearField("recommendation_id")
    for name in ("snapshot_age", "degraded"):
        bare.provenance.ClearField(name)
    return bare


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _fields(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _fields(each, f"{name}[{place}]")
    else:
        yield name, value


def _order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Items, then provenance, then the rest; places by number."""
    parts = name.replace("]", "").replace("[", ".").split(".")
    first = ("items", "provenance").index(parts[0]) if parts[0] in ("items", "provenance") else 2
    return first, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        given, overrides = _parser().parse_known_args(arguments)
        asked, sent = _asked(given)
        if given.out:
            # Quoted for Hydra's grammar: a path may hold what an override cannot.
            place = str(Path(given.out).resolve()).replace("\\", "\\\\").replace("'", "\\'")
            overrides = [f"out='{place}'", *overrides]
        made = decide(load(overrides), asked)
        if sent is not None and (count := sent.provenance.today_events):
            made.notes.append(
                f"the reply also went by {count} events of that day, which are not kept: what they did is missing here"
            )
    except BodegaError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    found = difference(sent, made.reply) if sent is not None else None
    plain = MessageToDict(made.reply, preserving_proto_field_name=True)
    if given.json:
        told: dict[str, Any] = {"reply": plain, "notes": made.notes}
        if sent is not None:
            told |= {"same": found is None}
            told |= {"difference": dict(zip(("field", "sent", "made"), found, strict=True))} if found else {}
        print(json.dumps(told, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print(json.dumps(plain, indent=2, ensure_ascii=False))  # noqa: T201
        for note in made.notes:
            print(note, file=sys.stderr)  # noqa: T201
        if found is not None:
            print(f"DIFFERS at {found[0]}: sent {found[1]!r}, made again {found[2]!r}", file=sys.stderr)  # noqa: T201
        elif sent is not None:
            print(f"the same: {len(sent.items)} items, provenance and all that was withheld", file=sys.stderr)  # noqa: T201
    return _DIFFERS if found is not None else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bodega consent decide",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--request", required=True, metavar="FILE")
    parser.add_argument("--reply", default="", metavar="FILE", help="what was sent, to compare with")
    parser.add_argument("--snapshot", default="", metavar="ID")
    parser.add_argument("--sequence", type=int, metavar="N", help="the reply's consent_sequence")
    parser.add_argument("--at", default="", metavar="TIME", help="the reply's made_at, as 2026-01-31T12:00:00.000000Z")
    parser.add_argument("--doubt", default="", choices=DOUBTS, help="what its replica did not know")
    parser.add_argument("--out", default="", metavar="DIR", help="as out=DIR, the deployment's folder")
    parser.add_argument("--json", action="store_true")
    return parser


def _asked(given: argparse.Namespace) -> tuple[Asked, Reply | None]:
    request = _read(given.request, ranking_pb2.RecommendRequest)
    sent = _read(given.reply, Reply) if given.reply else None
    told = sent.provenance if sent is not None else ranking_pb2.Provenance()
    snapshot, policy = given.snapshot or told.snapshot_id, told.policy
    sequence = given.sequence if given.sequence is not None else told.consent_sequence if sent is not None else None
    at = _time(given.at) if given.at else told.made_at.ToDatetime(UTC) if told.HasField("made_at") else None
    if not snapshot or sequence is None or at is None:
        lacking = [
            name
            for name, value in (("--snapshot", snapshot), ("--sequence", sequence), ("--at", at))
            if value in ("", None)
        ]
        raise SettingsError(
            f"{', '.join(lacking)} is missing.", "Take it from the reply's provenance, or give the --reply."
        )
    doubt = given.doubt or (told.reason if told.reason in DOUBTS else "")
    return Asked(request=request, snapshot=snapshot, sequence=sequence, at=at, policy=policy, doubt=doubt), sent


def _read(path: str, kind: type[_M]) -> _M:
    """A message from a file; what is wrong with it is not repeated, for it may name a person."""
    name = kind.DESCRIPTOR.name
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The {name} cannot be read: {error.__class__.__name__}.", "Name a file of proto JSON, or -."
        ) from None
    try:
        return Parse(text, kind())
    except (ParseError, ValueError):
        raise SettingsError(
            f"What is given as {name} is none.", 'Write it as proto JSON, such as {"user_id": "u", "limit": 20}.'
        ) from None


def _time(text: str) -> datetime:
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"--at is '{text}'.", "Write it as the reply's made_at: 2026-01-31T12:00:00.000000Z."
        ) from None
    return made if made.tzinfo else made.replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
