"""Erased stays erased: in the very next list, and after every way in which an old snapshot or an old row comes back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bodega.client import BodegaRpcError, Client
from bodega.v1 import common_pb2, consent_pb2, ranking_pb2

from engine.policy import Chain, Moment, Outcome, Slate
from engine.serving.server import Server
from engine.snapshot import Registry
from jobs.operator import Operator
from tests.serving.shop import BOUGHT, Process, Shop, allow, ids

Mode = ranking_pb2.Provenance
LONG_AGO, LATER = datetime(2025, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def items_of(reply: Any) -> list[bytes]:
    return [each.SerializeToString() for each in reply.items]


def assert_like_a_newcomer(client: Client, user: str = "ana") -> None:
    """Somebody erased who granted again is somebody whom the night has not met."""
    mine, other = (client.recommend(each, limit=30) for each in (user, "newcomer"))
    assert items_of(mine) == items_of(other) == items_of(client.recommend(limit=30))
    assert mine.withheld == other.withheld
    told = [(each.provenance.mode, each.provenance.reason, each.provenance.profile) for each in (mine, other)]
    assert told == [(Mode.MODE_NON_PROFILED, "unknown_user", "")] * 2


def test_the_next_list_is_a_strangers_and_nothing_is_left_to_read(client: Client) -> None:
    allow(client, "ana")
    client.set_consent("ana", preference="purchases")
    assert client.recommend("ana").provenance.mode == Mode.MODE_LIMITED
    token = client.erase_user("ana").consent_token
    reply = client.recommend("ana", consent_token=token)
    assert items_of(reply) == items_of(client.recommend())
    assert reply.provenance.reason == client.recommend("nobody").provenance.reason == "no_consent"
    held = client.get_consent("ana", consent_token=token)
    assert not held.grants and held.preference == common_pb2.PERSONALIZATION_UNSPECIFIED
    assert not client.consent_changes("ana").changes
    assert client.recommend("ben").provenance.reason == "no_consent"


def test_one_who_returns_starts_anew(client: Client) -> None:
    for user in ("ana", "newcomer"):
        allow(client, user)
    client.erase_user("ana")
    allow(client, "ana")
    assert_like_a_newcomer(client)
    assert [each.sequence for each in client.consent_changes("ana").changes] == [4]


def test_the_receipt_is_the_same_twice_and_for_somebody_unknown_and_claims_no_more_than_is_done(client: Client) -> None:
    allow(client, "ana")
    first, again = client.erase_user("ana"), client.erase_user("ana")
    unknown = client.erase_user("nobody")
    assert (first.receipt_id, first.erased_at, first.deadlines) == (again.receipt_id, again.erased_at, again.deadlines)
    assert unknown.receipt_id not in ("", first.receipt_id)
    assert [each.copy for each in unknown.deadlines] == [each.copy for each in first.deadlines]
    assert [each.text for each in unknown.deadlines] == [each.text for each in first.deadlines]
    by = {each.copy: each for each in first.deadlines}
    assert {copy for copy, each in by.items() if each.done} == {"serving", "consent"}
    assert by["model"].by.ToDatetime(UTC) - first.erased_at.ToDatetime(UTC) == timedelta(days=7)
    assert not any(by[copy].HasField("by") for copy in ("lists", "snapshots", "logs", "backups"))
    assert all(each.text for each in first.deadlines)
    assert client.erase_user("nobody").receipt_id == unknown.receipt_id


def test_a_call_sent_again_does_not_take_what_was_granted_since(client: Client) -> None:
    allow(client, "ana")
    first = client.erase_user("ana", request_id="one")
    allow(client, "ana")
    assert client.erase_user("ana", request_id="one") == first
    assert client.get_consent("ana").grants
    assert client.erase_user("ana", request_id="two").receipt_id != first.receipt_id
    assert not client.get_consent("ana").grants


@pytest.mark.parametrize("user", ["", "a\0b", "e\u0301"])
def test_an_id_that_is_none_is_refused(client: Client, user: str) -> None:
    with pytest.raises(BodegaRpcError) as caught:
        client.erase_user(user)
    assert caught.value.field == "user_id"


@pytest.mark.parametrize(
    ("as_of", "knew", "served"), [(LATER, True, True), (LATER, False, False), (LONG_AGO, True, False)]
)
def test_a_snapshot_serves_again_if_its_night_knew_of_the_erasure_and_went_beyond_it(
    shop: Shop, as_of: datetime, knew: bool, served: bool
) -> None:
    shop.publish()
    with shop.served() as (_, client):
        for user in ("ana", "newcomer", "ben"):
            allow(client, user)
        erasure = client.erase_user("ana").sequence
        allow(client, "ana")
        name = shop.publish(1, as_of=as_of, ledger_sequence=erasure - (not knew)).snapshot_id
        eventually(lambda: client.status().snapshot.snapshot_id == name)
        if served:
            assert client.recommend("ana").provenance.mode == Mode.MODE_PROFILED
        else:
            assert_like_a_newcomer(client)
        assert client.recommend("ben").provenance.mode == Mode.MODE_PROFILED


def test_an_erasure_while_the_list_is_made_is_in_the_reply(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for user in ("ana", "newcomer"):
        allow(client, user)
    original, left = Chain.apply, [1]

    def apply(self: Chain, slate: Slate, moment: Moment, *more: Any) -> Outcome:
        outcome = original(self, slate, moment, *more)
        if moment.granted and left[0]:
            left[0] -= 1
            client.erase_user("ana")
            allow(client, "ana")
        return outcome

    monkeypatch.setattr(Chain, "apply", apply)
    reply = client.recommend("ana", limit=30)
    assert (left, reply.provenance.reason) == ([0], "unknown_user")
    assert items_of(reply) == items_of(client.recommend(limit=30))


def import_into(shop: Shop, user: str, *rows: tuple[str, str, datetime | None]) -> None:
    """A team's file again, by the command."""
    file = shop.out / "grants.parquet"
    purpose, source, when = zip(*rows, strict=True)
    columns = {"user_id": [user] * len(rows), "purpose": purpose, "source": source, "granted": [True] * len(rows)}
    pq.write_table(pa.table(columns | {"occurred_at": pa.array(when, pa.timestamp("us", tz="UTC"))}), file)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.import_consent", f"out={shop.out}", f"file={file}", "store.make_keys=false"],
        capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_neither_rollback_nor_promote_nor_restart_nor_replay_brings_anybody_back(shop: Shop) -> None:
    names = [shop.publish(first).snapshot_id for first in range(3)]
    old_rows = (("profile", "web", LONG_AGO), ("profile", "", None), ("train", "", LONG_AGO))

    def started() -> Process:
        return Process([f"out={shop.out}", "port=0", "log.format=json", "watch_seconds=0.05"])

    process = started()
    try:
        import_into(shop, "ana", *old_rows)
        with process.client() as client:
            allow(client, "newcomer")
            allow(client, "ben")
            assert client.recommend("ana").provenance.mode == Mode.MODE_PROFILED
            receipt = client.erase_user("ana").receipt_id
        import_into(shop, "ana", *old_rows)
        with process.client() as client:
            assert client.recommend("ana").provenance.reason == "no_consent"
            assert not client.get_consent("ana").grants and not client.consent_changes("ana").changes
            allow(client, "ana")
        process.kill()
        process = started()
        with Operator(process.address, timeout=20) as operator:
            assert_like_a_newcomer(operator)
            for move in (
                lambda: operator.rollback_snapshot("back to before the erasure").snapshot.snapshot_id,
                lambda: operator.promote_snapshot(names[0]).snapshot.snapshot_id,
                lambda: operator.promote_snapshot(names[2]).snapshot.snapshot_id,
            ):
                assert operator.status().snapshot.snapshot_id != move()
                assert_like_a_newcomer(operator)
                assert operator.recommend("ben").provenance.mode == Mode.MODE_PROFILED
            Registry(shop.snapshots).promote(names[1])  # by hand, beside the server
            eventually(lambda: operator.status().snapshot.snapshot_id == names[1])
            assert_like_a_newcomer(operator)
            operator.withdraw("ana")
            assert operator.erase_user("ana").receipt_id != receipt
        log = "".join(process.lines)
        assert "ana" not in log and shop.keys.stable.derive("ana").hex() not in log
    finally:
        process.kill()


def test_an_acknowledged_erasure_survives_kill_9(shop: Shop) -> None:
    shop.publish()
    with shop.process() as process, process.client() as client:
        allow(client, "newcomer")
        allow(client, "ana")
        receipt = client.erase_user("ana").receipt_id
        process.kill()
    with shop.process() as process, process.client() as client:
        assert client.erase_user("ana").receipt_id == receipt
        allow(client, "ana")
        assert_like_a_newcomer(client)


@pytest.mark.parametrize(
    ("table", "mark"),
    [("ways", np.float32(9.9).tobytes()), ("seen", np.array([BOUGHT, 35], np.int32).tobytes())],  # both of ana's alone
)
def test_a_damaged_record_is_one_persons_and_a_strangers_list(shop: Shop, table: str, mark: bytes) -> None:
    name = shop.publish().snapshot_id
    with shop.process("watch_seconds=0.05") as process, process.client() as client:
        for user in ("ana", "ben"):
            allow(client, user)
        assert client.recommend("ana").provenance.mode == Mode.MODE_PROFILED
        hit = [path for path in Path(shop.snapshots, name).glob(f"{table}-*.arrow") if mark in path.read_bytes()]
        assert len(hit) == 1
        place = hit[0].read_bytes().index(mark)
        hit[0].chmod(0o600)
        with hit[0].open("r+b") as file:  # in place: it is mapped
            file.seek(place)
            file.write(bytes([mark[0] ^ 1]))
        batch = client.batch_recommend([ranking_pb2.RecommendRequest(user_id=user) for user in ("ana", "ben", "")])
        mine, bens, nobodys = (each.response for each in batch)
        assert (mine.provenance.mode, mine.provenance.reason) == (Mode.MODE_NON_PROFILED, "record_damaged")
        assert items_of(mine) == items_of(nobodys) and ids(bens) != ids(nobodys)
        assert bens.provenance.mode == Mode.MODE_PROFILED
        for _ in range(3):
            assert client.recommend("ana").provenance.reason == "record_damaged"
        status = client.status()
        assert list(status.degraded) == ["record_damaged"] and status.ready
        assert name in status.problems[0].message and status.problems[0].remedy
        fresh = shop.publish(1).snapshot_id
        eventually(lambda: client.status().snapshot.snapshot_id == fresh)
        assert not client.status().degraded
        assert client.recommend("ana").provenance.mode == Mode.MODE_PROFILED
        assert process.terminate() == 0
        said = [line for line in process.lines if "record_damaged" in line]
    assert len(said) == 1, "once a snapshot, not once a request"
    assert "ana" not in said[0] and shop.keys.rotating.derive("ana").hex() not in "".join(process.lines)


def test_what_a_reply_says_of_an_erasure_fits_the_proto(server: Server, client: Client) -> None:
    reply = client.erase_user("ana")
    assert isinstance(reply, consent_pb2.EraseUserResponse)
    assert reply.sequence == server.replica.ledger.sequence == 1
    assert abs(reply.erased_at.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)
