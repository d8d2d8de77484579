"""How a ledger on PostgreSQL is opened, what its sessions are set to, and what its readers and its errors may show."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from engine.consent import Change, Ledger, Vocabulary
from engine.consent.tables import METADATA
from engine.errors import LedgerUnavailable
from tests.consent.test_ledger_server import GRANT, many, recorded
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).parents[2]
WITHOUT_DRIVER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "psycopg":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from engine.consent import Ledger, Vocabulary
Ledger.open(f"sqlite:///{sys.argv[1]}", Vocabulary(sources=("web",))).close()
assert "psycopg" not in sys.modules
Ledger.open("postgresql://u:hidden@127.0.0.1:1/d", Vocabulary(sources=("web",)))
"""


@pytest.fixture
def schema(postgres: PostgresServer) -> str:
    return postgres.schema()


@pytest.fixture
def address(postgres: PostgresServer, schema: str) -> str:
    return postgres.url(schema)


@pytest.fixture
def on_server(address: str, vocabulary: Vocabulary) -> Any:
    with closing(Ledger.open(address, vocabulary, 3)) as ledger:
        yield ledger


def test_without_the_driver_the_command_that_installs_it_is_told_and_files_still_open(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_DRIVER, str(tmp_path / "consent.db")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "LedgerUnavailable" in done.stderr and "pip install 'bodega[postgres]'" in done.stderr, done.stderr
    assert "hidden" not in done.stderr and (tmp_path / "consent.db").stat().st_size


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("127.0.0.1:1/postgres", "refused"),
        ("127.0.0.1:{port}/nothing", "does not exist"),
        ("127.0.0.1:{port}/postgres?sslmode=require", "SSL"),
        ("127.0.0.1:{port}/postgres?nonsense=1", "nonsense"),
        ("no.such.host.invalid:{port}/postgres", "opened"),
    ],
)
def test_no_error_shows_the_password(rest: str, said: str, postgres: PostgresServer, vocabulary: Vocabulary) -> None:
    with pytest.raises(LedgerUnavailable, match=said) as caught:
        Ledger.open("postgresql://postgres:hidden%40word@" + rest.format(port=postgres.port), vocabulary, 3)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hidden" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_a_failed_statement_names_nobody(postgres: PostgresServer, schema: str, on_server: Ledger, key: Any) -> None:
    recorded(on_server, key(1), "secret-request")
    postgres.execute(f"UPDATE {schema}.consent_ledger SET sequence = 0")  # the next call's row is there already
    with pytest.raises(LedgerUnavailable, match="duplicate key") as caught:
        recorded(on_server, key(1), "another")
    assert key(1).hex() not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    encoding: str, postgres: PostgresServer, vocabulary: Vocabulary
) -> None:
    name = f"in_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    with pytest.raises(LedgerUnavailable, match=f"{encoding}.*UTF8"):
        Ledger.open(postgres.url().removesuffix("postgres") + name, vocabulary)


def test_a_user_who_may_not_make_tables_is_told(postgres: PostgresServer, schema: str, vocabulary: Vocabulary) -> None:
    postgres.execute(f"CREATE ROLE reader_{schema} LOGIN")
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO reader_{schema}")
    with pytest.raises(LedgerUnavailable, match="refuses the user"):
        Ledger.open(postgres.url(schema, user=f"reader_{schema}"), vocabulary)


def test_sessions_answer_for_what_is_on_disk_and_end_their_waiting_whatever_the_server_defaults_to(
    postgres: PostgresServer, address: str, vocabulary: Vocabulary
) -> None:
    role = address.split("search_path%3D")[1]
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    for default, used in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        postgres.execute(f"ALTER ROLE {role} SET synchronous_commit = {default}")
        postgres.execute(f"ALTER ROLE {role} SET default_transaction_isolation = 'serializable'")
        with closing(Ledger.open(address.replace("postgres@", f"{role}@"), vocabulary, 2)) as ledger:
            for opened in (ledger._store.reading, ledger._store.recording):
                with opened() as connection:
                    names = ("synchronous_commit", "statement_timeout", "lock_timeout", "transaction_isolation")
                    found = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
                assert found[:3] == [used, "2500ms", "1800ms"]
                assert found[3] == ("repeatable read" if opened == ledger._store.reading else "read committed")


def test_every_text_compares_bytewise(postgres: PostgresServer, schema: str, on_server: Ledger) -> None:
    found = postgres.execute(
        "SELECT relname, attname, collname FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid"
        f" JOIN pg_collation l ON l.oid = attcollation WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r'"
    )
    assert {collation for _, _, collation in found} == {"C"}
    assert {table for table, _, _ in found} == set(METADATA.tables) - {"consent_spent"}


def test_keys_sort_as_bytes_do(on_server: Ledger) -> None:
    keys = [bytes([n]) + b"\x00\xff\x80\x7f" * 3 + bytes([255 - n] * 3) for n in (0, 127, 128, 255, 1, 92, 39)]
    for each in keys:
        recorded(on_server, each, "")
    assert on_server.standings()[0]["user_key"].to_pylist() == sorted(keys)
    assert on_server.standings(on_server.sequence())[0]["user_key"].to_pylist() == sorted(keys)
    assert all(on_server.standing(each).known for each in keys)


def test_processes_that_open_an_empty_database_at_once_make_one_ledger(address: str, vocabulary: Vocabulary) -> None:
    with ThreadPoolExecutor(6) as pool:
        ledgers = list(pool.map(lambda _: Ledger.open(address, vocabulary), range(6)))
    for n, ledger in enumerate(ledgers):
        assert recorded(ledger, bytes([n]) * 16, "r") == n + 1
        ledger.close()


def test_a_ledger_opens_and_is_read_while_somebody_writes_for_long(
    postgres: PostgresServer, schema: str, on_server: Ledger, address: str, vocabulary: Vocabulary, key: Any
) -> None:
    recorded(on_server, key(1), "r")
    with psycopg.connect(postgres.conninfo) as holder:
        holder.execute(f"UPDATE {schema}.consent_ledger SET sequence = 50")  # type: ignore[call-overload]
        with closing(Ledger.open(address, vocabulary, 1)) as second:
            assert second.sequence() == 1 and second.standing(key(1)).granted
            assert second.standings()[1] == 1
        holder.rollback()


def test_moves_and_their_head_are_of_one_moment(
    on_server: Ledger, address: str, vocabulary: Vocabulary, key: Any
) -> None:
    for n in range(3):
        recorded(on_server, key(n), "")
    with closing(Ledger.open(address, vocabulary)) as other, on_server.moves(1) as (head, batches):
        other.record(key(1), [Change("profile", "", False)], None, "n", "person", "", None)
        other.erase(key(2), "person", "")
        held = {each.key: each for batch in batches for each in batch}
    assert head == 3 and set(held) == {key(1), key(2)} and all(each.granted for each in held.values())
    with on_server.moves(3) as (head, batches):
        assert head == 5 and {each.sequence for batch in batches for each in batch} == {4, 5}


def test_many_are_read_in_little_memory_and_whoever_stops_early_harms_nobody(
    postgres: PostgresServer, schema: str, on_server: Ledger, key: Any
) -> None:
    many(postgres, schema, 250_000)
    process = psutil.Process()
    before, most, seen = process.memory_info().rss, 0, 0
    with on_server.moves(0) as (head, batches):
        for batch in batches:
            seen += len(batch)
            most = max(most, process.memory_info().rss - before)
    assert head == seen == 250_000
    assert most < 16 << 20, f"{most >> 20} MB more"
    for _ in range(3):
        with on_server.moves(0) as (_, batches):
            next(batches)
        assert on_server.record(key(1), GRANT, None, "n", "person", "", None).sequence > head
    assert on_server._store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_closed_ledger_leaves_no_connection(
    postgres: PostgresServer, schema: str, address: str, vocabulary: Vocabulary
) -> None:
    def sessions() -> int:
        found = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        return int(str(found[0][0]))

    before = sessions()
    with closing(Ledger.open(address, vocabulary)) as ledger, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: (ledger.standing(bytes([n]) * 16), ledger.sequence()), range(60)))
        assert sessions() > before
    for _ in range(200):
        if sessions() == before:
            return
    pytest.fail(f"{sessions() - before} connections are left")
