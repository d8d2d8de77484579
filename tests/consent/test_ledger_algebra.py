"""Random histories against a dict that says, in the plainest way, what they amount to."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.consent import KEYED_GRANTS, PURPOSES, Change, Ledger, Vocabulary

SHOP = Vocabulary(sources=("web", "app", "store"))
PEOPLE = [hashlib.sha256(bytes([n])).digest()[:16] for n in range(4)]
Held = dict[bytes, dict[tuple[str, str], bool]]

people = st.sampled_from(PEOPLE)
# Few names, so that changes meet.
changes = st.builds(
    Change, st.sampled_from(("profile", "sensitive")), st.sampled_from(("", "web", "app")), st.booleans()
)
calls = st.tuples(people, st.lists(changes, max_size=5), st.none() | st.integers(0, 4)).filter(
    lambda call: bool(call[1]) or call[2] is not None
)
histories = st.lists(calls, max_size=12)
imported = st.lists(st.tuples(people, changes, st.none() | st.integers(1, 6)), max_size=12)


def said_by(call: list[Change], purpose: str, source: str) -> bool | None:
    """What one call says of one pair; None if nothing."""
    of = {(c.source, c.granted): n for n, c in enumerate(call) if c.purpose == purpose}
    if (source, False) in of:
        return False
    if (source, True) in of:
        return of[source, True] > of.get(("", False), -1)
    if ("", False) in of:
        return False
    return True if ("", True) in of else None


def apply(held: Held, person: bytes, call: list[Change]) -> None:
    mine = held.setdefault(person, {})
    for purpose in PURPOSES:
        for source in SHOP.sources:
            verdict = said_by(call, purpose, source)
            if verdict is not None:
                mine[purpose, source] = verdict


def mask(held: dict[tuple[str, str], bool]) -> int:
    return sum(SHOP.mask(*pair) for pair, granted in held.items() if granted)


@contextmanager
def a_ledger(url: str = "") -> Iterator[Ledger]:
    """A new one; in a file of its own without an address."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Ledger.open(url or f"sqlite:///{folder}/a.db", SHOP)) as ledger,
    ):
        yield ledger


def table_of(rows: list[tuple[bytes, Change, int | None]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "user_key": person,
                "purpose": change.purpose,
                "source": change.source,
                "granted": change.granted,
                "notice_version": None,
                "actor": "operator",
                "occurred_at": None if when is None else datetime.fromtimestamp(when, UTC),
            }
            for person, change, when in rows
        ],
        schema=KEYED_GRANTS,
    )


def seen(ledger: Ledger, at: int | None = None) -> dict[bytes, tuple[int, int]]:
    rows = ledger.standings(at)[0].to_pydict()
    return dict(zip(rows["user_key"], zip(rows["granted"], rows["preference"], strict=True), strict=True))


@settings(max_examples=20, deadline=None)
@given(history=histories)
def test_any_history_amounts_to_what_the_plain_model_says_then_and_now(
    new_url: Callable[[], str],
    history: list[tuple[bytes, list[Change], int | None]],
) -> None:
    with a_ledger(new_url()) as ledger:
        held: Held = {}
        preferences: dict[bytes, int] = {}
        moments = [(0, seen(ledger))]
        for number, (person, call, preference) in enumerate(history):
            answer = ledger.record(person, call, preference, "n", "person", f"r{number}", None)
            apply(held, person, call)
            preferences[person] = preferences.get(person, 0) if preference is None else preference
            expected = {who: (mask(mine), preferences[who]) for who, mine in held.items()}
            moments.append((answer.sequence, expected))
            standing = ledger.standing(person)
            assert (standing.granted, standing.preference) == expected[person]
            assert {(g.purpose, g.source) for g in standing.grants} == {p for p, on in held[person].items() if on}
            assert seen(ledger) == expected
        for sequence, expected in moments:
            assert seen(ledger, sequence) == expected
        # Every call again: nothing moves.
        for number, (person, call, preference) in enumerate(history):
            again = ledger.record(person, call, preference, "n", "person", f"r{number}", None)
            assert again.sequence == moments[number + 1][0]
        assert seen(ledger) == moments[-1][1] and ledger.sequence() == len(history)


@settings(max_examples=15, deadline=None)
@given(call=st.lists(changes, min_size=1, max_size=6), random=st.randoms(use_true_random=False))
def test_a_pair_withdrawn_in_a_call_is_withdrawn_wherever_it_stands(
    new_url: Callable[[], str], call: list[Change], random: object
) -> None:
    with a_ledger(new_url()) as ledger:
        ledger.record(PEOPLE[0], [Change(p, "", True) for p in PURPOSES], None, "", "", "", None)
        random.shuffle(call)  # type: ignore[attr-defined]
        ledger.record(PEOPLE[0], call, None, "", "", "", None)
        granted = ledger.standing(PEOPLE[0]).granted
        for change in call:
            if change.source and not change.granted:
                assert not granted & SHOP.mask(change.purpose, change.source)


@settings(max_examples=20, deadline=None)
@given(first=imported, second=imported, history=histories, random=st.randoms(use_true_random=False))
def test_imports_in_any_row_order_amount_to_the_same_and_repeat_without_effect(
    new_url: Callable[[], str],
    first: list[tuple[bytes, Change, int | None]],
    second: list[tuple[bytes, Change, int | None]],
    history: list[tuple[bytes, list[Change], int | None]],
    random: object,
) -> None:
    results = []
    for shuffled in (False, True):
        if shuffled:
            random.shuffle(first)  # type: ignore[attr-defined]
            random.shuffle(second)  # type: ignore[attr-defined]
        with a_ledger(new_url()) as ledger:
            done = ledger.import_grants(table_of(first))
            assert done.changes + done.skipped == len(first)
            assert done.people == len({person for person, _, _ in first}) == ledger.sequence()
            for person, call, preference in history:
                ledger.record(person, call, preference, "n", "person", "", None)
            live = seen(ledger)
            assert ledger.import_grants(table_of(first)).changes == 0
            assert seen(ledger) == live
            ledger.import_grants(table_of(second))
            for person, (granted, _) in seen(ledger).items():
                # Everything imported is older than everything live: it cannot undo a live withdrawal.
                for _, call, _ in (entry for entry in history if entry[0] == person):
                    for change in call:
                        if not change.granted and change.source:
                            was = live[person][0] & SHOP.mask(change.purpose, change.source)
                            assert not granted & SHOP.mask(change.purpose, change.source) & ~was
            assert seen(ledger) == seen(ledger, ledger.sequence())
            results.append(ledger.standings()[0])
    assert results[0].equals(results[1])
