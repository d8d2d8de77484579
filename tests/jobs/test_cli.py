"""`bodega` answers at once, hands jobs over, talks to a server, and says what to do when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from bodega.v1 import consent_pb2, consent_pb2_grpc, ranking_pb2, ranking_pb2_grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from engine.snapshot import Registry
from jobs import cli
from tests.snapshot_builder import publish_snapshot

HELP = """
import sys
sys.argv = ["bodega", *sys.argv[1:]]
from jobs.cli import main
try:
    main()
finally:
    print("LOADED", sorted({"torch", "ray", "hydra", "polars", "grpc", "numpy", "pyarrow"} & set(sys.modules)))
"""


class Ranking(ranking_pb2_grpc.RankingServiceServicer):
    """Answers with one item that repeats what was asked."""

    def Recommend(self, request: Any, context: Any) -> Any:
        item = ranking_pb2.Recommendation(item_id="[tea]-" + "x" * 90, lane="usual", score=0.25)
        item.reasons.add(code="due_again", text="You may need this again")
        made = ranking_pb2.Provenance(mode=ranking_pb2.Provenance.MODE_LIMITED, reason="grants_missing")
        made.policy = f"{request.context.surface}@{request.limit}@{request.diversity:.1f}@{request.personalization}"
        withheld = [ranking_pb2.Withheld(rule="exclusions", count=3, reason="bought")]
        return ranking_pb2.RecommendResponse(items=[item], provenance=made, withheld=withheld)


class Consent(consent_pb2_grpc.ConsentServiceServicer):
    """Remembers the last change; refuses the purpose `profil` as the server does."""

    def __init__(self) -> None:
        self.last = consent_pb2.SetConsentRequest()

    def GetConsent(self, request: Any, context: Any) -> Any:
        return consent_pb2.GetConsentResponse(grants=self.last.changes, preference=self.last.preference)

    def SetConsent(self, request: Any, context: Any) -> Any:
        if any(change.purpose == "profil" for change in request.changes):
            detail = any_pb2.Any()
            remedy = {"remedy": "Did you mean 'profile'?"}
            detail.Pack(error_details_pb2.ErrorInfo(reason="BAD_CONSENT", domain="bodega", metadata=remedy))
            status = status_pb2.Status(code=3, message="There is no purpose 'profil'.", details=[detail])
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message)
        self.last = request
        return consent_pb2.SetConsentResponse(consent_token="token", sequence=7, receipt_id="r-7")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = grpc.server(futures.ThreadPoolExecutor(2))
    ranking_pb2_grpc.add_RankingServiceServicer_to_server(Ranking(), made)  # type: ignore[no-untyped-call]
    consent_pb2_grpc.add_ConsentServiceServicer_to_server(Consent(), made)  # type: ignore[no-untyped-call]
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield f"127.0.0.1:{port}"
    made.stop(None)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr."""
    monkeypatch.setattr(sys, "argv", ["bodega", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err.splitlines()


def test_help_loads_nothing_heavy_and_comes_at_once() -> None:
    fastest = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", HELP, "--help"], capture_output=True, text=True, timeout=60)
        fastest = min(fastest, time.perf_counter() - began)
    assert done.returncode == 0 and "recommend" in done.stdout and "LOADED []" in done.stdout, done.stdout + done.stderr
    assert fastest < 1.5


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("simulate", "jobs.simulate"),
        ("nightly", "jobs.nightly"),
        ("backfill", "jobs.backfill"),
        ("prove", "jobs.prove"),
        ("serve", "engine.serving"),
    ],
)
def test_a_job_takes_over_with_the_arguments_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, module: str
) -> None:
    became: list[list[str]] = []

    def execv(path: str, arguments: list[str]) -> None:
        became.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    given = ("out=a b", "--cfg", "job", "--help", "+x.y=[1,2]")
    assert run(monkeypatch, capsys, command, *given)[0] == 0
    assert became == [[sys.executable, "-m", module, *given]]


def test_a_list_is_shown_with_lane_reason_score_and_how_it_was_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    asked = ("--surface", "email", "--limit", "5", "--diversity", "0.3", "--level", "purchases", "--address", server)
    code, out, errors = run(monkeypatch, capsys, "recommend", "ana", *asked)
    assert (code, errors) == (0, [])
    assert "[tea]-" + "x" * 90 in out, "ids come out whole, whatever they hold"
    assert "usual" in out and "You may need this again" in out and "0.25" in out
    assert "limited (grants_missing)" in out and "email@5@0.3@3" in out
    assert "exclusions withheld 3 (bought)" in out
    code, out, _ = run(monkeypatch, capsys, "recommend", "ana", "--address", server, "--json")
    assert json.loads(out)["items"][0]["lane"] == "usual"


def test_consent_is_given_read_and_withdrawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    at = ("--address", server)
    code, out, _ = run(monkeypatch, capsys, "consent", "set", "ana", "profile:web", "train", "--level", "full", *at)
    assert code == 0 and "r-7" in out and "token" in out
    code, out, _ = run(monkeypatch, capsys, "consent", "get", "ana", *at)
    assert code == 0 and "preference: full" in out
    assert [line.split()[1::2] for line in out.splitlines() if "granted" in line] == [
        ["profile", "web", "granted"],
        ["train", "every", "granted"],
    ]
    assert run(monkeypatch, capsys, "consent", "withdraw", "ana", "profile:web", *at)[0] == 0
    code, out, _ = run(monkeypatch, capsys, "consent", "get", "ana", "--json", *at)
    assert json.loads(out) == {"grants": [{"purpose": "profile", "source": "web"}]}
    assert run(monkeypatch, capsys, "consent", "withdraw", "ana", *at)[0] == 0
    code, out, _ = run(monkeypatch, capsys, "consent", "get", "ana", *at)
    assert out.count("withdrawn") == 3, "what every deployment asks for, and whatever else is held"


def test_what_the_server_refuses_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    code, _, errors = run(monkeypatch, capsys, "consent", "set", "ana", "profil", "--address", server)
    assert code == 1
    assert errors == ["error: There is no purpose 'profil'. (BAD_CONSENT)", "remedy: Did you mean 'profile'?"]


def test_no_server_there_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, errors = run(monkeypatch, capsys, "recommend", "ana", "--address", "127.0.0.1:1", "--timeout", "1")
    assert (code, out, len(errors)) == (1, "", 2)
    assert errors[0].startswith("error: No answer from 127.0.0.1:1") and "bodega serve" in errors[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("consent", "set", "ana"), "nothing to set"),
        (("recommend", "ana", "--tls", "/nowhere.pem"), "no file /nowhere.pem"),
        (("recommend", "ana", "--level", "fool"), "'fool' is not one of"),
        (("recomend", "ana"), "Did you mean 'recommend'?"),
    ],
)
def test_a_wrong_command_is_refused_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    code, _, errors = run(monkeypatch, capsys, *arguments)
    assert code == 2 and told in " ".join(errors)


def test_snapshots_are_listed_promoted_and_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = publish_snapshot(tmp_path / "snapshots", users={b"a" * 16: {}}, seed=1).snapshot_id
    second = publish_snapshot(tmp_path / "snapshots", users={b"a" * 16: {}}, seed=2).snapshot_id

    def current() -> str:
        code, out, _ = run(monkeypatch, capsys, "snapshot", "list", "--out", str(tmp_path))
        assert code == 0 and first in out and second in out
        return next(line for line in out.splitlines() if "current" in line)

    assert second in current()
    assert run(monkeypatch, capsys, "snapshot", "rollback", "--out", str(tmp_path))[1] == f"{first} is served now\n"
    assert first in current()
    assert run(monkeypatch, capsys, "snapshot", "promote", second, "--out", str(tmp_path))[0] == 0
    assert Registry(tmp_path / "snapshots").current() == second
    code, _, errors = run(monkeypatch, capsys, "snapshot", "promote", "20990101-000000000000", "--out", str(tmp_path))
    assert code == 7 and second in errors[1], "the remedy names what is there"


def test_a_lost_pointer_still_lists_what_can_be_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = publish_snapshot(tmp_path / "snapshots", users={b"a" * 16: {}}).snapshot_id
    (tmp_path / "snapshots" / "current.json").write_text("{")
    code, out, errors = run(monkeypatch, capsys, "snapshot", "list", "--out", str(tmp_path))
    assert code == 0 and only in out and errors[0].startswith("error: ")


def test_keys_are_made_once_and_named_without_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "keys", "--out", str(tmp_path))
    again = run(monkeypatch, capsys, "keys", "--out", str(tmp_path))[1]
    assert code == 0 and out == again
    secrets = [path.read_text() for path in (tmp_path / "keys").iterdir()]
    assert len(secrets) == 2 and not any(secret in out for secret in secrets)
