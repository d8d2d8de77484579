"""A long import: others decide meanwhile, it may be killed at any moment, and sent again it comes out the same."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.consent import KEYED_GRANTS, Change, Ledger, Vocabulary
from engine.consent.imports import ordered, pieces

PEOPLE = 8_000
IMPORTER = """
import sys
import numpy as np
from engine.consent import Ledger, Vocabulary, imports
from tests.consent.test_long_imports import everybody
imports._PIECE = 2048
ledger = Ledger.open(sys.argv[1], Vocabulary(sources=("web", "app", "store")))
print("begins", flush=True)
print(ledger.import_grants(everybody()).people, flush=True)
"""


def key(number: int) -> bytes:
    return b"%016d" % number


def everybody() -> pa.Table:
    """Two grants of each of so many people."""
    count = 2 * PEOPLE
    rows = {
        "user_key": pa.array([key(number) for number in range(PEOPLE) for _ in "ab"], pa.binary(16)),
        "purpose": pa.array(np.tile(["profile", "train"], PEOPLE)),
        "source": pa.repeat("", count),
        "granted": pa.repeat(True, count),
        "notice_version": pa.repeat("n", count),
        "actor": pa.repeat("operator", count),
        "occurred_at": pa.nulls(count, KEYED_GRANTS.field("occurred_at").type),
    }
    return pa.table(rows, schema=KEYED_GRANTS)


@contextmanager
def importing(url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", IMPORTER, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        yield process
    finally:
        process.kill()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def test_who_withdraws_meanwhile_is_heard_and_stays_withdrawn(url: str, vocabulary: Vocabulary) -> None:
    with closing(Ledger.open(url, vocabulary, patience=3.0)) as ledger, importing(url) as process:
        until(lambda: ledger.sequence() > 0)
        withdrawn, slowest = [], 0.0
        while process.poll() is None and ledger.sequence() < PEOPLE:
            # One whose grants are there by now, and one whose may still come.
            for number in (len(withdrawn), PEOPLE - 1 - len(withdrawn)):
                began = time.monotonic()
                ledger.record(key(number), [Change("profile", "", False)], None, "n", "person", "", None)
                slowest = max(slowest, time.monotonic() - began)
                withdrawn.append(number)
        assert process.wait(60) == 0
        assert len(withdrawn) > 4 and slowest < 3.0, "it was not all one transaction"
        for number in withdrawn:
            assert not ledger.standing(key(number)).granted & ledger.vocabulary.groups
            assert ledger.standing(key(number)).granted & ledger.vocabulary.mask("train")
        assert ledger.standings()[0].num_rows == PEOPLE


@pytest.mark.parametrize("at", [1, 3_000])
def test_killed_anywhere_and_sent_again_it_comes_out_the_same(url: str, vocabulary: Vocabulary, at: int) -> None:
    with closing(Ledger.open(url, vocabulary)) as ledger:
        with importing(url) as process:
            until(lambda: ledger.sequence() >= at)
            process.kill()
        there = ledger.sequence()
        assert at <= there < PEOPLE
        done = ledger.import_grants(everybody())
        assert (done.people, done.changes) == (PEOPLE - there, 2 * (PEOPLE - there))
        table, sequence = ledger.standings()
        assert sequence == table.num_rows == PEOPLE and len(set(table["granted"].to_pylist())) == 1
        assert ledger.verify_audit().whole


def test_pieces_are_all_the_rows_and_cut_no_person(monkeypatch: pytest.MonkeyPatch, grants: Any) -> None:
    rng = np.random.default_rng(4)
    rows = [(key(int(who)), f"+profile/{'abcdef'[n % 6]}", float(n)) for n, who in enumerate(rng.integers(0, 40, 300))]
    table = grants(*rows)
    whole = ordered(table.set_column(6, "occurred_at", table["occurred_at"].cast(pa.int64())), 2**60)
    monkeypatch.setattr("engine.consent.imports._PIECE", 17)
    parts = list(pieces(whole, {}))
    assert len(parts) > 5 and pa.concat_tables(parts).equals(whole)
    people = [set(part["user_key"].to_pylist()) for part in parts]
    assert sum(len(each) for each in people) == len(set.union(*people))
    assert list(pieces(whole.slice(0, 0), {})) == []
