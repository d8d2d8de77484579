"""Replicas whose ledger is a PostgreSQL: the same promises, and what happens to them when it stops."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from bodega.client import BodegaRpcError, Client, grant
from bodega.v1 import ranking_pb2

from engine.serving.server import Server
from tests.postgres_server import PostgresServer, fresh_server
from tests.serving.shop import Shop

Mode = ranking_pb2.Provenance.Mode
BOUND = 1.0


@contextmanager
def replicas(shop: Shop, url: str, count: int) -> Iterator[list[Client]]:
    """Clients of so many servers on one ledger."""
    settings = replace(
        shop.settings("port=0", "ledger_patience_seconds=1", "consent_poll_seconds=0.05", "drain_seconds=2"), ledger=url
    )
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            server = Server(settings)
            server.start()
            stack.callback(server.stop)
            clients.append(stack.enter_context(Client(f"127.0.0.1:{server.port}", timeout=20)))
        yield clients


def reason(client: Client, **asked: Any) -> str:
    made = client.recommend("ana", **asked).provenance
    return "" if made.mode != Mode.MODE_NON_PROFILED else made.reason


def until(held: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not held():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_one_replica_records_holds_at_all(shop: Shop, postgres: PostgresServer) -> None:
    shop.publish()
    with replicas(shop, postgres.url(postgres.schema()), 3) as clients:
        for turn in range(3):
            one, *others = clients[turn:] + clients[:turn]
            one.set_consent("ana", [grant("profile")])
            for each in others:
                until(lambda each=each: reason(each) == "", BOUND)
            token = one.withdraw("ana").consent_token
            assert reason(one) == "no_consent"
            assert all(reason(each, consent_token=token) == "no_consent" for each in others)
        erased = clients[0].erase_user("ana")
        assert all(reason(each, consent_token=erased.consent_token) == "no_consent" for each in clients)
        assert clients[1].status().consent_sequence == erased.sequence == 7
        assert not clients[2].consent_changes("ana").changes


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_database_that_stops_ends_in_strangers_lists_and_is_believed_again(shop: Shop, how: str) -> None:
    shop.publish()
    with fresh_server() as database, ExitStack() as stack:
        clients = stack.enter_context(replicas(shop, database.url(database.schema()), 2))
        clients[0].set_consent("ana", [grant("profile")])
        for each in clients:
            until(lambda each=each: reason(each) == "", BOUND)
        began = time.monotonic()
        frozen = stack.enter_context(ExitStack())
        if how == "frozen":
            frozen.enter_context(database.stopped_in_its_tracks())
            assert [reason(each) for each in clients] == ["", ""], "for less than the bound nothing changes"
        else:
            database.stop(signal.SIGKILL)
        for each in clients:
            until(lambda each=each: reason(each) in ("consent_stale", "consent_unavailable"), BOUND + 0.3)
        with pytest.raises(BodegaRpcError) as refused:
            clients[0].withdraw("ana", timeout=10)
        assert refused.value.code.name == "UNAVAILABLE"
        assert time.monotonic() - began < 12, "calls end: patience, by the client's tries"
        assert all(each.recommend("ana", timeout=2).items for each in clients)
        frozen.close()
        if how == "killed":
            database.start()
        for each in clients:
            until(lambda each=each: reason(each) == "", 10)
        clients[1].withdraw("ana")
        until(lambda: reason(clients[0]) == "no_consent", BOUND)
