"""Random histories of grants, withdrawals, erasures, imports and replays, against a model that says it plainly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.consent import Change, Erasure, Ledger, Recorded
from engine.errors import ConsentError
from tests.consent.test_ledger_algebra import PEOPLE, SHOP, a_ledger, apply, changes, mask, people, table_of

records = st.tuples(st.just("record"), people, st.lists(changes, min_size=1, max_size=3), st.none() | st.integers(0, 4))
erasures = st.tuples(st.just("erase"), people)
# Of long before any test: what happened before an erasure.
grants = st.builds(
    Change, st.sampled_from(("profile", "sensitive")), st.sampled_from(("", "web", "app")), st.just(True)
)
imports = st.tuples(
    st.just("import"), st.lists(st.tuples(people, grants, st.none() | st.integers(1, 3)), min_size=1, max_size=4)
)
replays = st.tuples(st.just("replay"), st.integers(0, 20))
histories = st.lists(st.one_of(records, records, erasures, imports, replays), max_size=16)


@dataclass
class Person:
    """What is so of one person, as anybody would say it."""

    held: dict[tuple[str, str], bool] = field(default_factory=dict)
    preference: int = 0
    known: bool = False  # decided something since the last erasure
    erased: Erasure | None = None
    withdrawn: set[tuple[str, str]] = field(default_factory=set)
    imported: set[Any] = field(default_factory=set)
    live: dict[str, Recorded] = field(default_factory=dict)  # answered, by request id
    gone: set[str] = field(default_factory=set)  # request ids of before an erasure
    asked: dict[str, Erasure] = field(default_factory=dict)  # erasures, by request id


class Model:
    """The ledger and its model, driven together."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.people = {key: Person() for key in PEOPLE}
        self.sent: list[Any] = []

    def do(self, step: Any) -> None:
        kind, *rest = step
        if kind == "replay":
            if self.sent:
                number = rest[0] % len(self.sent)
                self._send(*self.sent[number])
            return
        self.sent.append((step, f"r{len(self.sent)}"))
        self._send(*self.sent[-1])

    def _send(self, step: Any, request_id: str) -> None:
        kind, *rest = step
        {"record": self._record, "erase": self._erase, "import": self._import}[kind](*rest, request_id)

    def _record(self, key: bytes, call: list[Change], preference: int | None, request_id: str) -> None:
        person = self.people[key]
        before = self.ledger.standing(key)
        if request_id in person.gone:
            with pytest.raises(ConsentError, match="before this person was erased"):
                self.ledger.record(key, call, preference, "n", "person", request_id, None)
            assert self.ledger.standing(key) == before
            return
        answer = self.ledger.record(key, call, preference, "n", "person", request_id, None)
        if request_id in person.live:
            assert answer == person.live[request_id] and self.ledger.standing(key) == before
            return
        person.live[request_id] = answer
        held = {key: person.held}
        apply(held, key, call)
        person.withdrawn |= {(each.purpose, each.source) for each in call if not each.granted}
        person.preference = person.preference if preference is None else preference
        person.known = True

    def _erase(self, key: bytes, request_id: str) -> None:
        person = self.people[key]
        before = self.ledger.standing(key)
        answer = self.ledger.erase(key, "person", request_id)
        if request_id in person.asked:
            assert answer == person.asked[request_id] and self.ledger.standing(key) == before
            return
        if person.erased is not None and not person.known:
            assert answer == person.erased
        elif person.erased is not None:
            assert answer.receipt_id != person.erased.receipt_id and answer.erased_at >= person.erased.erased_at
        gone = person.gone | set(person.live)
        self.people[key] = Person(erased=answer, gone=gone, asked=person.asked | {request_id: answer})

    def _import(self, rows: list[tuple[bytes, Change, int | None]], _: str) -> None:
        self.ledger.import_grants(table_of(rows))
        # In time, the undated first; those of one moment all grant, so that their order is nothing.
        for key, change, when in rows:
            person = self.people[key]
            if person.erased is not None or (change, when) in person.imported:
                continue
            sources = (change.source,) if change.source else SHOP.sources
            taken = (
                person.withdrawn if (change.purpose, "") not in person.withdrawn else set(sources_of(change.purpose))
            )
            free = [source for source in sources if (change.purpose, source) not in taken]
            if free:
                person.imported.add((change, when))
                person.known = True
                person.held |= {(change.purpose, source): True for source in free}

    def check(self) -> None:
        now, head = self.ledger.standings()
        rows = {row["user_key"]: row for row in now.to_pylist()}
        for key, person in self.people.items():
            standing = self.ledger.standing(key)
            assert (standing.granted, standing.preference) == (mask(person.held), person.preference)
            assert standing.known == person.known and bool(standing.erased_at) == (person.erased is not None)
            history = self.ledger.changes(key, 0, 1000)
            assert all(line.sequence > standing.erasure for line in history)
            assert bool(history) == person.known
            assert (key in rows) == (person.known or person.erased is not None)
            if key in rows:
                row = rows[key]
                assert (row["granted"], row["preference"]) == (standing.granted, standing.preference)
                assert row["erased_at"] == standing.erased_at
        assert self.ledger.standings(head)[0].equals(now)


def sources_of(purpose: str) -> list[tuple[str, str]]:
    return [(purpose, source) for source in SHOP.sources]


def keeps_to_the_model(ledger: Ledger, history: list[Any]) -> None:
    model = Model(ledger)
    moments: list[tuple[int, dict[bytes, tuple[int, int]]]] = []
    for step in history:
        model.do(step)
        model.check()
        then = {key: (mask(person.held), person.preference) for key, person in model.people.items()}
        moments.append((ledger.sequence(), then))
    heads = [(sequence, ledger.audit_head(sequence)) for sequence, _ in moments]
    for key in PEOPLE[:2]:
        model.do(("erase", key))
    ledger.audit("snapshot_promoted", "operator", {})
    model.check()
    # A night that is run again at its sequence: the same for those who stayed, nothing of those who went.
    for sequence, then in moments:
        seen = {row["user_key"]: row for row in ledger.standings(sequence)[0].to_pylist()}
        for key, person in model.people.items():
            row = seen.get(key, {"granted": 0, "preference": 0, "erased_at": 0})
            erasure = ledger.standing(key).erasure
            expected = (0, 0) if erasure > sequence else then[key]
            if not erasure or erasure > sequence:
                assert (row["granted"], row["preference"]) == expected
            assert bool(row["erased_at"]) == (person.erased is not None)
    assert [(sequence, ledger.audit_head(sequence)) for sequence, _ in moments] == heads
    check = ledger.verify_audit([head for _, head in heads])
    assert check.whole and check.head == ledger.audit_head(), check


@settings(max_examples=50, deadline=None)
@given(history=histories)
def test_erased_stays_erased_through_any_history_and_its_replays(history: list[Any]) -> None:
    with a_ledger() as ledger:
        keeps_to_the_model(ledger, history)


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
@settings(max_examples=8, deadline=None)  # each takes three times as long
@given(history=histories)
def test_erased_stays_erased_on_a_server_as_well(new_url: Callable[[], str], history: list[Any]) -> None:
    with a_ledger(new_url()) as ledger:
        keeps_to_the_model(ledger, history)
