"""Withdrawals bind every replica within the bound, without a reply that waits for the ledger, whatever fails meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
from bodega.client import BodegaRpcError, Client, grant
from bodega.v1 import ranking_pb2

from engine.consent import Change, Ledger, consent_token
from engine.consent.mirror import Mirror
from engine.errors import LedgerUnavailable
from tests.serving.shop import VOCABULARY, Shop

Mode = ranking_pb2.Provenance.Mode
BOUND = 1.0


@pytest.fixture
def stocked(shop: Shop) -> Shop:
    shop.publish()
    return shop


def profiled(client: Client, user: str = "ana", **asked: Any) -> bool:
    return client.recommend(user, **asked).provenance.mode != Mode.MODE_NON_PROFILED


def until(held: Callable[[], bool], seconds: float = 5.0) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not held():
        assert time.monotonic() - began < seconds
        time.sleep(0.002)
    return time.monotonic() - began


def elsewhere(shop: Shop, granted: bool, user: str = "ana") -> None:
    """What another process records."""
    with closing(Ledger.open(f"sqlite:///{shop.out}/consent.db", VOCABULARY)) as other:
        other.record(shop.keys.stable.derive(user), [Change("profile", "", granted)], None, "n", "person", "", None)


def test_a_reply_never_waits_for_the_ledger(stocked: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asking: set[str] = set()

    def telling(original: Callable[..., Any]) -> Callable[..., Any]:
        def told(*given: Any) -> Any:
            asking.add(threading.current_thread().name)
            return original(*given)

        return told

    for name in ("standing", "sequence", "moves", "audit_head", "state"):
        monkeypatch.setattr(Ledger, name, telling(getattr(Ledger, name)))
    with stocked.served() as (_, client):
        client.set_consent("ana", [grant("profile")])
        asking.clear()
        assert all(profiled(client) for _ in range(200))
        client.recommend("nobody-here")
        time.sleep(0.1)
    assert asking == {"bodega-ledger"}


def test_a_withdrawal_binds_the_replica_that_took_it_at_once(stocked: Shop) -> None:
    with stocked.served("consent_poll_seconds=0.5") as (_, client):
        for _ in range(50):
            client.set_consent("ana", [grant("profile")])
            assert profiled(client)
            client.withdraw("ana")
            assert not profiled(client)


def test_a_withdrawal_binds_every_other_replica_within_the_bound(stocked: Shop) -> None:
    with stocked.served() as (_, one), stocked.served() as (_, other):
        for _ in range(5):
            one.set_consent("ana", [grant("profile")])
            assert until(lambda: profiled(other)) < BOUND
            one.withdraw("ana")
            assert until(lambda: not profiled(other)) < BOUND
            assert other.recommend("ana").provenance.reason == "no_consent"


def test_a_token_is_never_answered_from_an_older_state(stocked: Shop) -> None:
    with stocked.served() as (_, one), stocked.served("consent_poll_seconds=0.5") as (_, other):
        for _ in range(10):
            one.set_consent("ana", [grant("profile")])
            assert profiled(other, consent_token=one.get_consent("ana").consent_token)
            token = one.withdraw("ana").consent_token
            assert not profiled(other, consent_token=token)
        reply = other.recommend("ana", consent_token=consent_token(10**6))
        assert (reply.provenance.mode, reply.provenance.reason) == (Mode.MODE_NON_PROFILED, "consent_stale")


def test_a_ledger_that_hangs_ends_in_lists_without_a_profile_and_is_believed_again_when_it_answers(
    stocked: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, original = threading.Event(), Ledger.moves

    @contextmanager
    def hanging(self: Ledger, after: int) -> Iterator[Any]:
        with original(self, after) as found:
            assert go_on.wait(30)
            yield found

    with stocked.served() as (server, client):
        client.set_consent("ana", [grant("profile")])
        monkeypatch.setattr(Ledger, "moves", hanging)
        began = time.monotonic()
        elsewhere(stocked, granted=False)
        until(lambda: not profiled(client))
        assert 0.5 < time.monotonic() - began < BOUND + 0.3
        assert client.recommend("ana").provenance.reason == "consent_stale"
        token = client.recommend("ana", consent_token=consent_token(2), timeout=5).provenance
        assert token.reason == "consent_stale", "nor does a token wait"
        assert client.status().consent_staleness_seconds > BOUND
        go_on.set()
        until(lambda: client.recommend("ana").provenance.reason == "no_consent")
        elsewhere(stocked, granted=True)
        until(lambda: profiled(client))
        assert not server.replica.problems()


def test_a_ledger_that_is_away_for_less_than_the_bound_changes_nothing_and_for_longer_is_told(
    stocked: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Any:
        raise LedgerUnavailable("It is away.", "Wait.")

    with stocked.served() as (server, client):
        client.set_consent("ana", [grant("profile")])
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "moves", away)
            lists = [profiled(client) for _ in range(20)]
            assert all(lists)
            with pytest.raises(BodegaRpcError):
                until(lambda: bool(server.replica.problems()))
                client.withdraw("ana")
            until(lambda: client.recommend("ana").provenance.reason == "consent_unavailable")
        until(lambda: profiled(client))
        client.withdraw("ana")


def test_a_withdrawal_that_cannot_be_enforced_is_not_acknowledged(
    stocked: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Any:
        raise LedgerUnavailable("It is away.", "Wait.")

    with stocked.served("consent_poll_seconds=0.5") as (server, client):
        client.set_consent("ana", [grant("profile")])
        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "catch_up", away)
            with pytest.raises(BodegaRpcError) as refused:
                client.set_consent("ana", [grant("profile", granted=False)], request_id="once")
            assert refused.value.code.name == "UNAVAILABLE"
        until(lambda: not server.replica.problems())
        again = client.set_consent("ana", [grant("profile", granted=False)], request_id="once")
        assert again.sequence == 2 and not profiled(client)


def test_writes_that_hang_leave_threads_for_lists(stocked: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, original = threading.Event(), Ledger.record

    def hanging(*given: Any) -> Any:
        assert go_on.wait(30)
        return original(*given)

    with stocked.served("threads=4") as (_, client), ThreadPoolExecutor(12) as pool:
        client.set_consent("ana", [grant("profile")])
        monkeypatch.setattr(Ledger, "record", hanging)
        writes = [pool.submit(client.set_consent, f"u{n}", [grant("train")]) for n in range(12)]
        time.sleep(0.05)
        for _ in range(20):
            assert client.recommend("ana", timeout=2.0).items
        until(lambda: sum(write.done() for write in writes) == 10)
        refused = [write.exception() for write in writes if write.done()]
        assert all(isinstance(each, BodegaRpcError) and each.code.name == "UNAVAILABLE" for each in refused)
        go_on.set()
        assert sum(write.exception() is None for write in writes) == 2


def test_a_process_that_was_stopped_believes_nothing_that_it_knew_before(stocked: Shop) -> None:
    overrides = ("consent_bound_seconds=0.4", "consent_poll_seconds=0.05")
    with stocked.process(*overrides) as process, process.client() as client, ThreadPoolExecutor(64) as pool:
        client.set_consent("ana", [grant("profile")])
        assert profiled(client)
        for _ in range(3):
            os.kill(process.pid, signal.SIGSTOP)
            elsewhere(stocked, granted=False)
            time.sleep(0.6)
            late = [pool.submit(profiled, client) for _ in range(64)]  # sent later than the bound
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGCONT)
            assert not any(each.result() for each in late)
            elsewhere(stocked, granted=True)
            until(lambda: profiled(client))
