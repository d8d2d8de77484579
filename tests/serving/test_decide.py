"""Replies that a real server gave, made again once it is gone: from the request, the snapshot, the ledger and the moment."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bodega.client import Client, recommend_request
from bodega.v1 import ranking_pb2
from google.protobuf.json_format import MessageToJson, Parse

from engine.consent import consent_token
from engine.serving import decide
from engine.snapshot import Registry
from tests.serving.shop import Process, Shop, allow, item

Mode = ranking_pb2.Provenance


class Kept:
    """Requests and replies in files, as an officer gets them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replies: dict[str, Any] = {}
        folder.mkdir()

    def ask(self, client: Client, name: str, request: ranking_pb2.RecommendRequest) -> ranking_pb2.RecommendResponse:
        (result,) = client.batch_recommend([request])
        assert not result.HasField("problem"), result
        (self.folder / f"{name}.request.json").write_text(MessageToJson(request))
        (self.folder / f"{name}.reply.json").write_text(MessageToJson(result.response))
        self.replies[name] = result.response
        return result.response

    def arguments(self, name: str, shop: Shop, *more: str) -> list[str]:
        return [
            *("--request", f"{self.folder}/{name}.request.json", "--reply", f"{self.folder}/{name}.reply.json"),
            *("--out", str(shop.out), *more),
        ]  # fmt: skip


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def state_of(folder: Path) -> dict[str, str]:
    """Every file of the deployment but SQLite's empty companions."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def serving(client: Client, name: str) -> None:
    eventually(lambda: client.status().snapshot.snapshot_id == name)


def lived(shop: Shop, kept: Kept) -> list[str]:
    """A day of a real server: grants, withdrawals, somebody else's erasure, a new snapshot, a rollback."""
    first = shop.publish(0).snapshot_id
    request = recommend_request
    with shop.process("watch_seconds=0.05") as process, process.client() as client:
        kept.ask(client, "nobody", request("", limit=12))
        kept.ask(client, "ana as a stranger", request("ana", limit=12))
        allow(client, "ana")
        allow(client, "ben", "web")
        kept.ask(client, "ana with all", request("ana", limit=30))
        kept.ask(client, "ana on another surface", request("ana", surface="email"))
        kept.ask(client, "ana with wishes", request("ana", limit=7, diversity=0.8, exclude=[item(3), item(13)]))
        kept.ask(client, "ana under gpc", request("ana", limit=5, global_privacy_control=True))
        kept.ask(client, "ana as a minor", request("ana", limit=30, minor=True))
        kept.ask(client, "ana on purchases", request("ana", limit=30, level="purchases"))
        kept.ask(client, "ben", request("ben", limit=30))
        token = client.withdraw("ana", "profile", "partner").consent_token
        kept.ask(client, "ana without the partner", request("ana", limit=30, consent_token=token))
        client.set_consent("ana", preference="purchases")
        kept.ask(client, "ana who prefers purchases", request("ana", limit=30))
        token = client.erase_user("ben").consent_token
        kept.ask(client, "ben erased", request("ben", limit=30, consent_token=token))
        kept.ask(client, "ana after an erasure", request("ana", limit=30))
        second = shop.publish(2).snapshot_id
        serving(client, second)
        kept.ask(client, "ana on the next", request("ana", limit=30))
        client.set_consent("ana", preference="full")
        kept.ask(client, "ana who opened up", request("ana", limit=30))
        Registry(shop.out / "snapshots").rollback()
        serving(client, first)
        kept.ask(client, "ana after the rollback", request("ana", limit=30))
        token = client.withdraw("ana", "profile").consent_token
        kept.ask(client, "ana without anything", request("ana", limit=30, consent_token=token))
        kept.ask(client, "cat", request("cat", limit=30, consent_token=consent_token(999)))
    return [first, second]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Kept, list[str]]:
    folder = tmp_path_factory.mktemp("day")
    shop, kept = Shop(folder / "out"), Kept(folder / "kept")
    return shop, kept, lived(shop, kept)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "consent", "decide", *arguments],
        capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip


def told(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, dict[str, Any], str]:
    code = decide.main([*arguments, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def test_every_reply_is_made_again_from_its_provenance(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    shop, kept, snapshots = day
    before = state_of(shop.out)
    again = set(kept.replies) - {"ben"}
    for name in again:
        code, found, error = told(capsys, kept.arguments(name, shop))
        assert (code, error) == (0, ""), (name, found.get("difference"), error)
        made = Parse(json.dumps(found["reply"]), ranking_pb2.RecommendResponse())
        sent = kept.replies[name]
        assert [each.SerializeToString() for each in made.items] == [each.SerializeToString() for each in sent.items]
        assert made.withheld == sent.withheld and made.provenance.made_at == sent.provenance.made_at
    modes = {(each.provenance.mode, each.provenance.reason) for each in kept.replies.values()}
    assert len(modes) == 8, "the day was as varied as it seems"
    assert {each.provenance.snapshot_id for each in kept.replies.values()} == set(snapshots)
    assert state_of(shop.out) == before


def test_the_command_compares_and_names_nobody(day: tuple[Shop, Kept, list[str]]) -> None:
    shop, kept, _ = day
    done = command(*kept.arguments("ana without the partner", shop))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("the same: 30 items") and "the person's next change" not in done.stderr
    assert json.loads(done.stdout)["provenance"]["reason"] == "grants_missing"
    assert "ana" not in done.stdout + done.stderr
    helped = command("--help")
    assert helped.returncode == 0 and "--doubt" in helped.stdout


def test_it_is_made_again_from_its_parts_alone(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    shop, kept, (first, _) = day
    name = "ana without the partner"
    how = kept.replies[name].provenance
    parts = ["--request", f"{kept.folder}/{name}.request.json", f"out={shop.out}", "--snapshot", first]
    parts += ["--sequence", str(how.consent_sequence), "--at", how.made_at.ToJsonString()]
    code, found, _ = told(capsys, parts)
    assert code == 0 and "same" not in found
    assert (
        decide.difference(kept.replies[name], Parse(json.dumps(found["reply"]), ranking_pb2.RecommendResponse()))
        is None
    )
    for missing in ("--snapshot", "--sequence", "--at"):
        place = parts.index(missing)
        code, _, error = told(capsys, [*parts[:place], *parts[place + 2 :]])
        assert code == 2 and f"{missing} is missing" in error


def test_with_the_consent_of_another_moment_it_is_another_reply(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    shop, kept, (_, second) = day
    name = "ana without the partner"
    sent = kept.replies[name]
    earlier = kept.replies["ana with all"].provenance.consent_sequence
    # The request has the token of the withdrawal: under an older state it would have been a stranger's list.
    code, found, _ = told(capsys, kept.arguments(name, shop, "--sequence", str(earlier)))
    assert code == 4 and not found["same"] and found["reply"]["provenance"]["reason"] == "consent_stale"
    code, found, _ = told(
        capsys, kept.arguments("ana with all", shop, "--sequence", str(sent.provenance.consent_sequence))
    )
    assert code == 4 and found["difference"]["field"].startswith("items[0]")
    assert found["difference"]["sent"] != found["difference"]["made"]
    assert found["reply"]["provenance"]["mode"] == "MODE_LIMITED"
    code, found, _ = told(capsys, kept.arguments(name, shop, "--snapshot", second))
    assert code == 4 and found["reply"]["provenance"]["snapshot_id"] == second
    assert "DIFFERS at items[0]" in command(*kept.arguments(name, shop, "--snapshot", second)).stderr


FORGED = {
    "items[2].score": lambda reply: setattr(reply.items[2], "score", 0.5),
    "items[0].reasons[0].text": lambda reply: setattr(reply.items[0].reasons[0], "text", "Because."),
    "items[29].item_id": lambda reply: reply.items.pop(),
    "provenance.consent_sequence": lambda reply: setattr(reply.provenance, "consent_sequence", 4),
    "provenance.mode": lambda reply: setattr(reply.provenance, "mode", Mode.MODE_PROFILED),
    "withheld[0].count": lambda reply: setattr(reply.withheld[0], "count", 99),
}


@pytest.mark.parametrize("field", FORGED)
def test_what_was_changed_in_a_reply_is_named(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path, field: str
) -> None:
    shop, kept, _ = day
    name = "ana without the partner"
    forged = ranking_pb2.RecommendResponse()
    forged.CopyFrom(kept.replies[name])
    FORGED[field](forged)
    (tmp_path / "forged.json").write_text(MessageToJson(forged))
    arguments = kept.arguments(name, shop)
    arguments[3] = str(tmp_path / "forged.json")
    if field == "provenance.consent_sequence":
        arguments += ["--sequence", str(kept.replies[name].provenance.consent_sequence)]
    code, found, _ = told(capsys, arguments)
    assert code == 4 and found["difference"]["field"] == field


def test_what_an_erased_person_was_shown_before_cannot_be_known_again_and_that_is_told(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    shop, kept, _ = day
    assert kept.replies["ben"].provenance.mode == Mode.MODE_PROFILED
    code, found, error = told(capsys, kept.arguments("ben", shop))
    assert code == 4 and not found
    assert "was erased at 5" in error and "cannot be known again" in error and "'ben'" not in error


def test_what_was_recorded_before_the_reply_and_not_heeded_is_told(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    shop, kept, _ = day
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    code, found, _ = told(capsys, kept.arguments("ana with all", shop, "--at", later))
    assert code == 4 and found["difference"]["field"] == "provenance.made_at"
    assert found["notes"][0].startswith("LATE: the person's next change, 3, was recorded 36")


def test_another_policy_is_refused_with_both_versions(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    shop, kept, _ = day
    then = kept.replies["nobody"].provenance.policy
    code, _, error = told(capsys, kept.arguments("nobody", shop, "policy.home.limit=3"))
    assert code == 2 and then in error and error.count("home@") == 2


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--snapshot", "20990101-000000000000"), 7, "20990101-000000000000"),
        (("--sequence", "99"), 4, "stands at 7, asked was 99"),
        (("--at", "yesterday"), 2, "--at is 'yesterday'"),
        (("--request", "/nowhere/there.json"), 2, "cannot be read"),
        (("keys=/nowhere",), 2, "stable.key is missing"),
        (("ledger=sqlite:////nowhere/consent.db",), 4, "There is no consent ledger"),
        (("prot=1",), 2, "Did you mean 'port'?"),
    ],
)
def test_what_is_missing_is_named(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: int, words: str
) -> None:
    shop, kept, _ = day
    found, _, error = told(capsys, kept.arguments("ana with all", shop, *more))
    assert found == code and words in error, error


def test_a_request_that_is_none_is_not_repeated(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shop, kept, _ = day
    for text in ('{"user_id": ["anastasia"]}', '{"usr_id": "anastasia"}', "anastasia"):
        (tmp_path / "request.json").write_text(text)
        code, _, error = told(capsys, kept.arguments("nobody", shop, "--request", str(tmp_path / "request.json")))
        assert code == 2 and "RecommendRequest" in error and "anastasia" not in error


def test_a_ledger_of_another_key_is_refused_rather_than_all_be_strangers(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shop, kept, _ = day
    other = Shop(tmp_path / "other")
    (other.out / "keys" / "rotating.key").write_text((shop.out / "keys" / "rotating.key").read_text())
    code, _, error = told(capsys, kept.arguments("ana with all", shop, f"keys={other.out}/keys"))
    assert code == 4 and "names people by the stable key" in error


def test_a_reply_made_while_the_ledger_was_away_is_made_again_from_what_it_says_itself(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(tmp_path / "kept")
    shop.publish()
    process = Process([f"out={shop.out}", "port=0", "log.format=json", "watch_seconds=0.05"])
    try:
        with process.client() as client:
            allow(client, "ana")
            (shop.out / "consent.db").rename(shop.out / "away.db")
            eventually(lambda: client.recommend("ana").provenance.reason == "consent_unavailable")
            kept.ask(client, "doubtful", recommend_request("ana", limit=9))
    finally:
        process.kill()
    for end in ("", "-wal", "-shm"):  # SQLite knows its log by the name of the file
        if (shop.out / f"consent.db{end}").exists() and end:
            (shop.out / f"consent.db{end}").rename(shop.out / f"away.db{end}")
    for path in shop.out.glob("away.db*"):
        path.rename(shop.out / path.name.replace("away", "consent"))
    code, found, error = told(capsys, kept.arguments("doubtful", shop))
    assert code == 0 and found["same"], (found, error)
    assert found["notes"] == ["'consent_unavailable' is taken from the reply: nothing records it"]


@pytest.mark.parametrize("doubt", ["consent_changing", "record_damaged"])
def test_a_doubt_gives_a_strangers_list_with_its_reason(
    day: tuple[Shop, Kept, list[str]], capsys: pytest.CaptureFixture[str], doubt: str
) -> None:
    shop, kept, _ = day
    code, found, _ = told(capsys, kept.arguments("ana with all", shop, "--doubt", doubt))
    how = found["reply"]["provenance"]
    assert code == 4 and (how["mode"], how["reason"]) == ("MODE_NON_PROFILED", doubt)
    assert int(how["consent_sequence"]) == kept.replies["ana with all"].provenance.consent_sequence
    strangers = [each.item_id for each in kept.replies["ana without anything"].items]
    assert [each["item_id"] for each in found["reply"]["items"]] == strangers
