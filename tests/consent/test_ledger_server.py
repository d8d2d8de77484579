"""What the ledger does when its PostgreSQL server stops, hangs, dies, forgets or must not be written to."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from engine.consent import Change, Ledger, Vocabulary
from engine.errors import LedgerUnavailable
from tests.postgres_server import PostgresServer, fresh_server
from tests.tcp_proxy import proxy_to

GRANT, WITHDRAW = [Change("profile", "", True)], [Change("profile", "", False)]
PATIENCE = 1.0


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One of this test's own, to be stopped."""
    with fresh_server() as own:
        yield own


def recorded(ledger: Ledger, key: bytes, request_id: str, changes: list[Change] = GRANT) -> int:
    return ledger.record(key, changes, None, "n", "person", request_id, None).sequence


def calls(ledger: Ledger, key: bytes, grants: Any) -> dict[str, Callable[[], object]]:
    def moved() -> object:
        with ledger.moves(0) as (head, batches):
            return head, list(batches)

    return {
        "standing": lambda: ledger.standing(key),
        "sequence": ledger.sequence,
        "moves": moved,
        "state": ledger.state,
        "standings": ledger.standings,
        "standings then": lambda: ledger.standings(1),
        "changes": lambda: ledger.changes(key, 0, 9),
        "audit head": ledger.audit_head,
        "verify": ledger.verify_audit,
        "record": lambda: recorded(ledger, key, "while stopped"),
        "erase": lambda: ledger.erase(b"q" * 16, "person", "x"),
        "import": lambda: ledger.import_grants(grants((b"i" * 16, "+profile/web", 1.0))),
        "audit": lambda: ledger.audit("snapshot_promoted", "operator", {}),
        "bind": lambda: ledger.bind("aaaaaaaa"),
    }


def gives_up(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        call()
    return time.monotonic() - began


def test_a_stopped_server_ends_every_call_in_time_and_all_goes_on_when_it_does(
    server: PostgresServer, vocabulary: Vocabulary, key: Any, grants: Any
) -> None:
    with closing(Ledger.open(server.url(server.schema()), vocabulary, PATIENCE)) as ledger:
        every = calls(ledger, key(1), grants)
        recorded(ledger, key(1), "before")
        for name, call in every.items():
            if name not in ("record", "erase", "import"):
                call()
        before = ledger.sequence()
        with server.stopped_in_its_tracks(), ThreadPoolExecutor(len(every)) as pool:
            took = dict(zip(every, pool.map(gives_up, every.values()), strict=True))
        assert max(took.values()) < PATIENCE + 1, took
        # What was asked meanwhile lay unread in its sockets: of that, nothing was committed.
        assert ledger.sequence() == before and ledger.verify_audit().whole
        for call in every.values():
            call()
        assert ledger.sequence() == before + 3


def test_writers_that_queue_behind_one_that_hangs_give_up_in_time_as_well(
    server: PostgresServer, vocabulary: Vocabulary, key: Any
) -> None:
    with closing(Ledger.open(server.url(server.schema()), vocabulary, PATIENCE)) as ledger:
        recorded(ledger, key(1), "before")
        with server.stopped_in_its_tracks(), ThreadPoolExecutor(12) as pool:
            took = list(pool.map(lambda n: gives_up(lambda: recorded(ledger, key(n), f"r{n}")), range(12)))
        assert max(took) < PATIENCE + 1
        assert [recorded(ledger, key(n), f"r{n}") for n in range(12)] == list(range(2, 14))


def test_a_server_that_stops_amid_a_long_read_ends_it_in_time(server: PostgresServer, vocabulary: Vocabulary) -> None:
    schema = server.schema()
    with closing(Ledger.open(server.url(schema), vocabulary, PATIENCE)) as ledger:
        many(server, schema, 60_000)
        with pytest.raises(LedgerUnavailable), ledger.moves(0) as (_, batches):
            assert len(next(batches)) < 60_000
            with server.stopped_in_its_tracks():
                began = time.monotonic()
                try:
                    list(batches)
                finally:
                    assert time.monotonic() - began < PATIENCE + 1
        with ledger.moves(0) as (head, batches):
            assert head == sum(map(len, batches)) == 60_000


def test_a_stopped_server_cannot_be_opened_and_says_so_in_time(server: PostgresServer, vocabulary: Vocabulary) -> None:
    url = server.url(server.schema())
    with server.stopped_in_its_tracks():
        assert gives_up(lambda: Ledger.open(url, vocabulary, PATIENCE)) < PATIENCE + 1
    Ledger.open(url, vocabulary, PATIENCE).close()


def test_a_network_that_swallows_everything_is_no_longer_waited_for(
    postgres: PostgresServer, vocabulary: Vocabulary, key: Any, grants: Any
) -> None:
    with (
        proxy_to(postgres.port) as proxy,
        closing(Ledger.open(postgres.url(postgres.schema(), port=proxy.port), vocabulary, PATIENCE)) as ledger,
    ):
        recorded(ledger, key(1), "before")
        every = calls(ledger, key(1), grants)
        proxy.fault = "swallow"
        for name in ("standing", "record", "moves"):
            assert gives_up(every[name]) < PATIENCE + 1, name
        proxy.fault = ""
        assert recorded(ledger, key(1), "after") == 2 and ledger.standing(key(1)).sequence == 2


def test_a_server_that_was_started_again_is_used_again_without_a_failed_call(
    server: PostgresServer, vocabulary: Vocabulary, key: Any, grants: Any
) -> None:
    with closing(Ledger.open(server.url(server.schema()), vocabulary, PATIENCE)) as ledger:
        every = calls(ledger, key(1), grants)
        recorded(ledger, key(1), "r")
        with ThreadPoolExecutor(8) as pool:  # several readers, and several pooled connections
            list(pool.map(lambda _: [every[name]() for name in ("standing", "sequence", "moves")], range(40)))
        for how, missed in ((signal.SIGINT, ()), (signal.SIGKILL, ("standing", "sequence", "record"))):
            server.stop(how)
            for name in missed:
                assert gives_up(every[name]) < PATIENCE + 1
            server.start()
            for _ in range(10):
                for call in every.values():
                    call()
        assert ledger.verify_audit().whole


def test_an_acknowledged_change_survives_a_server_that_dies_though_its_default_is_to_answer_first(
    vocabulary: Vocabulary, key: Any
) -> None:
    lazy = ("synchronous_commit=off", "wal_writer_delay=10s", "fsync=on")
    with fresh_server(*lazy) as server:
        url = server.url(server.schema())
        with closing(Ledger.open(url, vocabulary)) as ledger:
            for n in range(20):
                recorded(ledger, key(n), f"r{n}")
            server.stop(signal.SIGKILL)
        server.start(*lazy)
        with closing(Ledger.open(url, vocabulary)) as ledger:
            assert ledger.sequence() == 20 and ledger.verify_audit().whole
            assert all(ledger.standing(key(n)).granted for n in range(20))


@pytest.mark.parametrize("fault", ["cut before", "cut after"])
def test_a_commit_whose_answer_is_lost_is_recorded_once_when_sent_again(
    fault: Any, postgres: PostgresServer, vocabulary: Vocabulary, key: Any
) -> None:
    schema = postgres.schema()
    with (
        proxy_to(postgres.port) as proxy,
        closing(Ledger.open(postgres.url(schema, port=proxy.port), vocabulary, PATIENCE)) as ledger,
        closing(Ledger.open(postgres.url(schema), vocabulary)) as beside,
    ):
        recorded(ledger, key(1), "first")
        proxy.word, proxy.fault = b"COMMIT\0", fault  # and not READ COMMITTED
        with pytest.raises(LedgerUnavailable):
            recorded(ledger, key(1), "second", WITHDRAW)
        assert proxy.cuts == 1
        proxy.fault = ""
        until = time.monotonic() + 5
        while fault == "cut after" and beside.sequence() < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert beside.sequence() == (2 if fault == "cut after" else 1)
        assert recorded(ledger, key(1), "second", WITHDRAW) == 2
        assert beside.sequence() == 2 and not beside.standing(key(1)).granted
        assert len(beside.changes(key(1), 0, 9)) == 2 and beside.verify_audit().whole


def test_a_server_set_read_only_is_read_and_refuses_writes_with_the_reason(
    server: PostgresServer, vocabulary: Vocabulary, key: Any
) -> None:
    schema = server.schema()
    with closing(Ledger.open(server.url(schema), vocabulary)) as ledger:
        recorded(ledger, key(1), "r")
    server.stop()
    server.start("default_transaction_read_only=on")
    with closing(Ledger.open(server.url(schema), vocabulary)) as ledger:
        assert ledger.standing(key(1)).granted and ledger.standings()[0].num_rows == 1
        with pytest.raises(LedgerUnavailable, match=r"written: its server is read-only.*primary"):
            recorded(ledger, key(1), "s", WITHDRAW)
        with pytest.raises(LedgerUnavailable, match="read-only"):
            ledger.erase(key(1), "person", "")
        assert ledger.sequence() == 1
    with pytest.raises(LedgerUnavailable, match="opened: its server is read-only"):
        Ledger.open(server.url("public"), vocabulary)


def test_a_standby_is_refused_because_it_lags(vocabulary: Vocabulary) -> None:
    with (
        fresh_server(standby=True) as standby,
        pytest.raises(LedgerUnavailable, match=r"standby.*target_session_attrs"),
    ):
        Ledger.open(standby.url(), vocabulary)


def test_a_writer_that_hangs_amid_a_call_does_not_keep_the_others_out_for_ever(
    postgres: PostgresServer, vocabulary: Vocabulary, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.schema())
    monkeypatch.setattr("engine.consent.postgres._LEAST_IDLE", 0.0)  # 3 x patience is then the bound
    with closing(Ledger.open(url, vocabulary, 0.5)) as hung, closing(Ledger.open(url, vocabulary, 0.5)) as ledger:
        release, entered = threading.Event(), threading.Event()

        def hang() -> None:
            with hung._store.recording(at_length=True) as connection:
                connection.exec_driver_sql("SELECT * FROM consent_ledger FOR UPDATE")
                entered.set()
                release.wait(30)
                connection.exec_driver_sql("UPDATE consent_ledger SET sequence = 99")

        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(hang)
            assert entered.wait(10)
            with pytest.raises(LedgerUnavailable, match="locked by another writer"):
                recorded(ledger, key(1), "r")
            time.sleep(1.5)
            assert recorded(ledger, key(1), "r") == 1
            release.set()
            with pytest.raises(LedgerUnavailable):
                hanging.result(30)
        assert ledger.sequence() == 1


def many(server: PostgresServer, schema: str, people: int) -> None:
    """People with one grant each, put in beside the ledger."""
    server.execute(
        f"INSERT INTO {schema}.consent_current SELECT decode(md5(n::text), 'hex'), 'profile/web', 0, n"
        f" FROM generate_series(1, {people}) n"
    )
    server.execute(f"UPDATE {schema}.consent_ledger SET sequence = {people}")
