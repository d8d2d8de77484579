"""What a replica knows is what the ledger says, from whichever file and after whatever history; and it says since when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.consent import Change, Ledger, Vocabulary, mirror
from engine.consent.changes import Held
from engine.consent.mirror import Mirror, clock
from engine.consent.people import People
from engine.errors import LedgerReplaced, LedgerUnavailable
from tests.consent.test_ledger_algebra import SHOP, a_ledger

Key = Callable[[int], bytes]
Record = Callable[..., Any]


def held_of(ledger: Ledger, key: bytes) -> Held:
    standing = ledger.standing(key)
    return Held(key, standing.granted, standing.preference, standing.sequence, standing.erased_at, standing.erasure)


def opened(ledger: Ledger, folder: Path | None = None) -> Mirror:
    return Mirror.open(ledger, "k", folder)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grant", "withdraw", "erase", "prefer", "import", "look", "settle", "reopen"]),
        st.integers(0, 5),
        st.sampled_from(["", *SHOP.sources]),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_after_any_history_everybody_is_as_the_ledger_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("people")
    people = [bytes([n]) * 16 for n in range(6)]
    with a_ledger() as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_MANY", 1)
        patch.setattr(mirror, "_FLOOD", 3)
        known = opened(ledger, folder)
        for step, who, source in steps:
            key = people[who]
            if step in ("grant", "withdraw"):
                ledger.record(key, [Change("profile", source, step == "grant")], None, "n", "person", "", None)
            elif step == "prefer":
                ledger.record(key, [], who % 5, "n", "person", "", None)
            elif step == "erase":
                ledger.erase(key, "person", "")
            elif step == "import":
                row = {"user_key": key, "purpose": "train", "source": source, "granted": True}
                ledger.import_grants(pa.Table.from_pylist([row], schema=_keyed()))
            elif step == "reopen":
                known = opened(ledger, folder)
            elif step == "settle":
                known.settle()
            if step in ("look", "reopen"):
                known.catch_up()
                assert [known.held(key) for key in people] == [held_of(ledger, key) for key in people]
        known.catch_up()
        assert [known.held(key) for key in people] == [held_of(ledger, key) for key in people]
        assert known.sequence == ledger.sequence() and len(files(folder)) <= 2
        assert known.held(b"s" * 16) == Held(b"s" * 16, 0, 0, 0, 0, 0)


def _keyed() -> pa.Schema:
    from engine.consent import KEYED_GRANTS

    return KEYED_GRANTS


def test_what_was_acknowledged_before_a_look_is_in_it_and_heard_says_since_when(ledger: Ledger, key: Key) -> None:
    known = opened(ledger)
    ledger.record(key(1), [Change("profile", "web", True)], None, "n", "person", "", None)
    before = clock()
    assert known.held(key(1)).granted == 0 and known.heard < before
    known.catch_up()
    assert before <= known.heard <= clock() and known.held(key(1)) == held_of(ledger, key(1))


def test_a_ledger_that_fails_leaves_what_was_known_and_its_age(
    ledger: Ledger, key: Key, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(key(1), "+profile/")
    known = opened(ledger)
    before, heard = known.held(key(1)), known.heard

    @contextmanager
    def cut(after: int) -> Iterator[tuple[int, Iterator[list[Held]]]]:
        def batches() -> Iterator[list[Held]]:
            yield [held_of(ledger, key(2))]
            raise LedgerUnavailable("It went away.", "Wait.")

        yield ledger.sequence(), batches()

    record(key(2), "+profile/web")
    with monkeypatch.context() as patch, pytest.raises(LedgerUnavailable):
        patch.setattr(ledger, "moves", cut)
        known.catch_up()
    assert (known.held(key(1)), known.heard, known.sequence) == (before, heard, 1)
    known.catch_up()
    assert known.heard > heard and known.held(key(2)) == held_of(ledger, key(2))


def test_somebody_who_waits_for_a_look_gets_one_that_began_after_they_asked(
    ledger: Ledger, key: Key, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = opened(ledger)
    under_way, go_on, looks = threading.Event(), threading.Event(), []
    original = ledger.moves

    @contextmanager
    def slow(after: int) -> Iterator[Any]:
        with original(after) as found:
            looks.append(found[0])
            if len(looks) == 1:
                under_way.set()
                assert go_on.wait(10)
            yield found

    monkeypatch.setattr(ledger, "moves", slow)
    first = threading.Thread(target=known.catch_up)
    first.start()
    assert under_way.wait(10)
    record(key(1), "+profile/web")  # the look under way cannot know of it
    with pytest.raises(LedgerUnavailable, match="not answered"):
        known.catch_up(patience=0.05)
    waiting = [threading.Thread(target=known.catch_up) for _ in range(4)]
    for thread in waiting:
        thread.start()
    go_on.set()
    for thread in (first, *waiting):
        thread.join(10)
    assert known.held(key(1)) == held_of(ledger, key(1))
    assert 2 <= len(looks) < 5, "one look does for all who asked before it"


def test_a_start_from_the_file_reads_only_what_moved_since(
    ledger: Ledger, key: Key, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(40):
        record(key(n), "+profile/web")
    opened(ledger, tmp_path / "p")
    record(key(7), "-profile/web")
    record(key(99), "+profile/app")
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "state", lambda: pytest.fail("everybody was read"))
        known = opened(ledger, tmp_path / "p")
    assert all(known.held(key(n)) == held_of(ledger, key(n)) for n in [*range(40), 99])
    assert files(tmp_path / "p") == ["00000000000000000040.people"]


@pytest.mark.parametrize("fault", ["damaged", "other past", "further than the ledger", "other key", "other vocabulary"])
def test_a_file_that_is_not_of_this_ledgers_past_is_made_anew(
    url: str, vocabulary: Vocabulary, key: Key, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "p"
    with closing(Ledger.open(url, vocabulary)) as ledger:
        for n in range(9):
            ledger.record(key(n), [Change("profile", "", True)], None, "n", "person", "", None)
        opened(ledger, folder)
        (path,) = folder.iterdir()
        if fault == "damaged":
            path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with closing(Ledger.open(url if fault != "other past" else f"sqlite:///{tmp_path}/2.db", vocabulary)) as ledger:
        names = vocabulary
        if fault == "other past":
            for n in range(9):
                ledger.record(key(n), [Change("profile", "web", False)], None, "n", "person", "", None)
        if fault == "further than the ledger":
            path.rename(path.with_name(f"{10:020d}.people"))
            people = mirror.load(folder / f"{10:020d}.people")
            origin = mirror.Origin(stable_key="k", vocabulary=vocabulary.version, sequence=10, audit_head="00")
            People(people.rows, origin).save(folder / f"{10:020d}.people")
        if fault == "other vocabulary":
            names = Vocabulary(sources=("app", "web", "store"))
    if fault == "other vocabulary":
        ledger = Ledger.open(url, names)
    elif fault == "other past":
        ledger = Ledger.open(f"sqlite:///{tmp_path}/2.db", vocabulary)
    else:
        ledger = Ledger.open(url, vocabulary)
    with closing(ledger):
        known = Mirror.open(ledger, "k2" if fault == "other key" else "k", folder)
        assert [known.held(key(n)) for n in range(9)] == [held_of(ledger, key(n)) for n in range(9)]
        assert known.sequence == 9


def test_those_who_moved_are_put_among_the_others_after_a_while_and_replies_go_on(
    ledger: Ledger, key: Key, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        record(key(n), "+profile/web")
    known = opened(ledger, tmp_path / "p")
    assert not known.unsettled, "nobody moved"
    record(key(1), "-profile/web")
    known.catch_up()
    assert not known.unsettled, "few, and not long ago"
    monkeypatch.setattr(mirror, "_LONG", 0.0)
    assert known.unsettled
    original = People.with_moved

    def meanwhile(people: People, *given: Any) -> People:
        record(key(2), "-profile/web")  # while the rows are made
        known.catch_up()
        assert known.held(key(2)).granted == 0 and known.held(key(1)).granted == 0
        return original(people, *given)

    monkeypatch.setattr(People, "with_moved", meanwhile)
    known.settle()
    assert [known.held(key(n)) for n in range(5)] == [held_of(ledger, key(n)) for n in range(5)]
    assert files(tmp_path / "p") == ["00000000000000000006.people"], "the older one, with what was withdrawn, is gone"


def test_a_disk_that_refuses_leaves_a_mirror_without_a_file(
    ledger: Ledger, key: Key, record: Record, tmp_path: Path
) -> None:
    (tmp_path / "p").write_text("no folder")
    record(key(1), "+profile/web")
    assert opened(ledger, tmp_path / "p").held(key(1)) == held_of(ledger, key(1))


def test_a_ledger_that_went_back_is_told(url: str, vocabulary: Vocabulary, key: Key, tmp_path: Path) -> None:
    with closing(Ledger.open(url, vocabulary)) as ledger:
        for n in range(3):
            ledger.record(key(n), [Change("profile", "web", True)], None, "n", "person", "", None)
        known = opened(ledger)
    with closing(Ledger.open(f"sqlite:///{tmp_path}/older.db", vocabulary)) as older:
        known._ledger = older
        heard = known.heard
        with pytest.raises(LedgerReplaced):
            known.catch_up()
        assert known.heard == heard
