"""Ids put together and taken apart: one of them speaks for all while they are linked, and for itself alone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.consent import Ledger, Recorded, Vocabulary, imports, links
from engine.consent.changes import ALONE, Change
from engine.consent.links import MOST
from engine.consent.looking import LedgerView
from engine.errors import ConsentError

Key = Callable[[int], bytes]


@pytest.fixture
def link(ledger: Ledger) -> Callable[..., Recorded]:
    """link(key(1), key(2), request_id="r")"""
    return lambda *keys, request_id="": ledger.links.link(keys, "notice-2", "person", request_id, None)


@pytest.fixture
def unlink(ledger: Ledger) -> Callable[..., Recorded]:
    return lambda key, request_id="": ledger.links.unlink(key, "notice-3", "person", request_id, None)


def held(ledger: Ledger, key: bytes) -> set[str]:
    """What an id allows, but for what links bring."""
    grants = ledger.standing(key).grants
    return {f"{each.purpose}/{each.source}" for each in grants if each.purpose != "cross_source"}


def test_what_is_decided_under_one_id_holds_for_those_linked_with_it(
    ledger: Ledger, record: Any, key: Key, link: Any
) -> None:
    record(key(1), "+profile/web", "+train/web", preference=3)
    record(key(2), "+profile/app", "-train/web")
    linked = link(key(1), key(2))
    for each in (key(1), key(2)):
        assert held(ledger, each) == {"profile/web", "profile/app"}, "the last decision about each"
        assert ledger.standing(each).preference == 3
        assert Change("cross_source", "store", True) in ledger.standing(each).grants
        assert ledger.standing(each).sequence <= linked.sequence == ledger.sequence()
    withdrawn = record(key(2), "-profile/web", preference=2)
    assert held(ledger, key(1)) == held(ledger, key(2)) == {"profile/app"}
    assert ledger.standing(key(1)).preference == 2 and ledger.standing(key(2)).sequence == withdrawn.sequence
    assert ledger.standing(key(1)).sequence < withdrawn.sequence, "so that a token of one knows of all"
    assert held(ledger, key(3)) == set()


def test_linked_ids_share_a_person_until_one_is_taken_out(
    ledger: Ledger, record: Any, key: Key, link: Any, unlink: Any
) -> None:
    record(key(1), "+profile/")
    link(key(1), key(2))
    person = ledger.standing(key(1)).person
    assert person != ALONE and ledger.standing(key(2)).person == person
    link(key(2), key(3))  # the newcomer joins the person that is there
    assert ledger.standing(key(3)).person == person and ledger.links.others(key(1)) == sorted([key(2), key(3)])
    assert held(ledger, key(3)) == held(ledger, key(1))
    unlink(key(3))
    assert ledger.standing(key(3)).person == ALONE and ledger.links.others(key(3)) == []
    assert held(ledger, key(3)) == held(ledger, key(1)), "what was granted stands"
    assert not any(each.purpose == "cross_source" for each in ledger.standing(key(3)).grants)
    assert ledger.standing(key(1)).person == ledger.standing(key(2)).person not in (person, ALONE), "another one stays"
    unlink(key(1))
    assert ledger.standing(key(2)).person == ALONE, "nobody is linked with themselves"
    record(key(1), "-profile/")
    assert held(ledger, key(2)), "each decides for itself again"


def test_two_groups_become_one(ledger: Ledger, key: Key, link: Any) -> None:
    link(key(1), key(2))
    link(key(3), key(4))
    link(key(2), key(4))
    assert len({ledger.standing(key(n)).person for n in range(1, 5)}) == 1
    assert len(ledger.links.others(key(1))) == 3


@pytest.mark.parametrize("said", ["-cross_source/", "-cross_source/app"])
def test_whoever_withdraws_cross_source_is_taken_apart(
    ledger: Ledger, record: Any, key: Key, link: Any, said: str
) -> None:
    link(key(1), key(2), key(3))
    record(key(2), said, request_id="r")
    assert {ledger.standing(key(n)).person for n in (1, 2, 3)} == {ALONE}
    assert record(key(2), said, request_id="r").sequence == ledger.standing(key(2)).sequence, "sent again"


def test_erasing_one_erases_all_and_takes_them_apart(ledger: Ledger, record: Any, key: Key, link: Any) -> None:
    record(key(1), "+profile/")
    link(key(1), key(2))
    gone = ledger.erase(key(2), "person", "e1")
    assert ledger.sequence() == gone.sequence
    for each in (key(1), key(2)):
        standing = ledger.standing(each)
        assert (standing.known, standing.granted, standing.person) == (False, 0, ALONE)
        assert standing.erasure and standing.erased_at and not ledger.changes(each, 0, 9)
    record(key(1), "+profile/")
    link(key(1), key(2))
    assert ledger.erase(key(2), "person", "e1").receipt_id == gone.receipt_id, "sent again, it takes nothing"
    assert held(ledger, key(1))


def test_a_call_sent_again_gets_the_first_answer(ledger: Ledger, key: Key, link: Any, unlink: Any, record: Any) -> None:
    first = link(key(1), key(2), request_id="r1")
    assert link(key(1), key(2), request_id="r1") == first
    with pytest.raises(ConsentError, match="used before"):
        link(key(1), key(3), request_id="r1")
    with pytest.raises(ConsentError, match="used before"):
        record(key(1), "+profile/", request_id="r1")
    gone = unlink(key(1), request_id="r2")
    assert unlink(key(1), request_id="r2") == gone
    assert link(key(1), key(2), request_id="r1") == first and not ledger.links.others(key(1)), (
        "an old call links nobody"
    )
    with pytest.raises(ConsentError, match="used before"):
        unlink(key(1), request_id="r1")


def test_what_cannot_be_linked_is_refused(ledger: Ledger, key: Key, link: Any, url: str) -> None:
    with pytest.raises(ConsentError, match="one id"):
        link(key(1), key(1))
    with pytest.raises(ConsentError, match="16 bytes"):
        link(key(1), b"short")
    link(*(key(n) for n in range(MOST)))
    with pytest.raises(ConsentError, match="at most"):
        link(key(0), key(MOST))
    assert not ledger.links.others(key(MOST))
    poor = Vocabulary(purposes=("profile", "train", "sensitive"), sources=("web",))
    with closing(Ledger.open(url, poor)) as other, pytest.raises(ConsentError, match="no purpose 'cross_source'"):
        other.links.link([key(1), key(2)], "n", "person", "", None)
    with pytest.raises(ConsentError, match="Choose another name"):
        Vocabulary(purposes=("profile", "train", "sensitive", "linked"), sources=("web",))
    with pytest.raises(ConsentError, match="linked"):
        ledger.record(key(1), [Change("linked", "", True)], None, "n", "person", "", None)


def test_an_import_reaches_every_linked_id(
    ledger: Ledger, key: Key, link: Any, grants: Callable[..., pa.Table], record: Any
) -> None:
    link(key(1), key(2))
    done = ledger.import_grants(grants((key(1), "+profile/web", None), (key(3), "+profile/app", None)))
    assert (done.people, done.changes) == (3, 3)
    assert held(ledger, key(1)) == held(ledger, key(2)) == {"profile/web"} and held(ledger, key(3)) == {"profile/app"}
    assert ledger.import_grants(grants((key(2), "+profile/web", None))).changes == 0, "it was imported before"
    ledger.import_grants(grants((key(2), "-cross_source/app", None)))
    assert ledger.standing(key(1)).person == ledger.standing(key(2)).person == ALONE
    ledger.import_grants(grants((key(2), "-profile/web", None)))
    assert held(ledger, key(1)) == {"profile/web"} and not held(ledger, key(2))


OLD, LATER = 1_577_836_800.0, 1_577_923_200.0  # seconds since the epoch: the first two days of 2020


@pytest.mark.parametrize("first", ["import", "link"])
def test_an_old_grant_of_one_id_beats_no_younger_withdrawal_of_another(
    ledger: Ledger, key: Key, link: Any, grants: Callable[..., pa.Table], record: Any, first: str
) -> None:
    """Whether the file came before the link or after it."""
    record(key(1), "+profile/web")
    record(key(1), "-profile/web")
    if first == "link":
        link(key(1), key(2))
    ledger.import_grants(grants((key(2), "+profile/web", OLD), (key(2), "+train/web", OLD)))
    if first == "import":
        link(key(1), key(2))
    assert held(ledger, key(1)) == held(ledger, key(2)) == {"train/web"}


def test_at_a_link_the_younger_of_two_imported_decisions_stands(
    ledger: Ledger, key: Key, link: Any, grants: Callable[..., pa.Table]
) -> None:
    ledger.import_grants(grants((key(1), "-profile/web", OLD), (key(2), "+profile/web", LATER)))
    link(key(1), key(2))
    assert held(ledger, key(1)) == held(ledger, key(2)) == {"profile/web"}


@pytest.fixture
def between(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has an import go a row at a time, and something happen after the first."""

    def arrange(act: Callable[[], object]) -> None:
        acts = [act]
        monkeypatch.setattr(imports, "_PIECE", 1)
        monkeypatch.setattr(ledger._store, "give_way", lambda: acts and acts.pop()())

    return arrange


def test_who_is_taken_apart_during_an_import_gets_nothing_more_of_the_others(
    ledger: Ledger, key: Key, link: Any, unlink: Any, grants: Callable[..., pa.Table], between: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(links.secrets, "token_bytes", lambda _: b"\xff" * 16)  # the last piece is theirs
    link(key(2), key(5))
    between(lambda: unlink(key(5)))
    ledger.import_grants(grants((key(1), "+train/web", OLD), (key(2), "+profile/web", OLD)))
    assert held(ledger, key(2)) == {"profile/web"} and not held(ledger, key(5))


def test_who_is_linked_during_an_import_gets_what_it_withdraws_of_the_others(
    ledger: Ledger, key: Key, link: Any, grants: Callable[..., pa.Table], record: Any, between: Any
) -> None:
    *others, last = sorted(key(n) for n in range(2, 6))
    record(key(1), "+profile/web")
    record(last, "+profile/web")
    between(lambda: link(key(1), last))
    done = ledger.import_grants(grants(*((each, "+train/web", OLD) for each in others), (last, "-profile/web", None)))
    assert not held(ledger, key(1)) and not held(ledger, last)
    assert (done.people, done.changes, done.skipped) == (5, 5, 0)


def test_a_link_during_an_import_makes_no_count_negative(
    ledger: Ledger, key: Key, link: Any, grants: Callable[..., pa.Table], between: Any
) -> None:
    first, second = sorted([key(2), key(3)])
    between(lambda: link(second, key(9)))
    done = ledger.import_grants(grants((first, "+train/web", OLD), (second, "+train/web", OLD)))
    assert (done.people, done.changes, done.skipped) == (3, 3, 0)


def test_linked_ids_come_in_one_piece(
    ledger: Ledger, key: Key, link: Any, grants: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an older withdrawal under one of them does not come after a younger grant under another."""
    monkeypatch.setattr(imports, "_PIECE", 1)
    link(key(1), key(9))
    rows = [(key(n), "+train/web", OLD) for n in range(2, 9)]
    ledger.import_grants(grants((key(9), "-profile/web", OLD), *rows, (key(1), "+profile/web", LATER)))
    assert held(ledger, key(1)) == held(ledger, key(9)) == {"profile/web"}


def test_the_night_finds_who_was_linked_at_its_sequence(ledger: Ledger, key: Key, link: Any, unlink: Any) -> None:
    assert ledger.links.at(ledger.sequence()).num_rows == 0
    first = link(key(1), key(2)).sequence
    second = link(key(3), key(4), key(2)).sequence
    third = unlink(key(1)).sequence

    def linked(at: int) -> list[list[bytes]]:
        table = ledger.links.at(at)
        assert table["user_key"].to_pylist() == sorted(table["user_key"].to_pylist())
        groups: dict[bytes, list[bytes]] = {}
        for row in table.to_pylist():
            groups.setdefault(row["person"], []).append(row["user_key"])
        return sorted(groups.values())

    assert linked(0) == []
    assert linked(first) == [sorted([key(1), key(2)])]
    assert linked(second) == [sorted(key(n) for n in (1, 2, 3, 4))]
    assert linked(third) == [sorted(key(n) for n in (2, 3, 4))]
    ledger.erase(key(2), "person", "")
    assert linked(third) == [], "an erasure holds for every sequence"


def test_somebody_who_changes_a_link_beside_the_ledger_is_found_out(
    ledger: Ledger, key: Key, link: Any, sql: Any, url: str, vocabulary: Vocabulary
) -> None:
    link(key(1), key(2))
    with closing(LedgerView.open(url, vocabulary)) as view:
        assert view.examine().beside.sound  # type: ignore[union-attr]
        sql("UPDATE consent_current SET person = NULL WHERE user_key = :key", key=key(1))
        told = view.examine().beside
        assert told is not None and "linked with" in told.fault


IDS = st.integers(0, 4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), IDS, st.sampled_from(["+profile/web", "-profile/", "+train/", "-train/app"])),
        st.tuples(st.just("dial"), IDS, st.integers(0, 4)),
        st.tuples(st.just("link"), IDS, IDS),
        st.tuples(st.just("unlink"), IDS, st.none()),
        st.tuples(st.just("part"), IDS, st.sampled_from(["-cross_source/", "-cross_source/web"])),
        st.tuples(st.just("erase"), IDS, st.none()),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_linked_ids_stand_alike_and_the_log_agrees(
    steps: list[tuple[str, int, Any]], new_url: Callable[[], str], vocabulary: Vocabulary, key: Key
) -> None:
    groups = {n: {n} for n in range(5)}  # by id, those that it is linked with
    url = new_url()
    with closing(Ledger.open(url, vocabulary)) as ledger:
        for what, one, other in steps:
            before = {n: held(ledger, key(n)) for n in groups}
            if what == "link" and one != other:
                ledger.links.link([key(one), key(other)], "n", "person", "", None)
                together = groups[one] | groups[other]
                groups |= dict.fromkeys(together, together)
            elif what == "unlink":
                ledger.links.unlink(key(one), "n", "person", "", None)
                groups |= dict.fromkeys(groups[one] - {one}, groups[one] - {one}) | {one: {one}}
            elif what == "erase":
                ledger.erase(key(one), "person", "")
                assert not any(held(ledger, key(n)) for n in groups[one])
                groups |= {n: {n} for n in groups[one]}
            elif what in ("record", "part"):
                purpose, source = other[1:].split("/")
                ledger.record(key(one), [Change(purpose, source, other[0] == "+")], None, "n", "person", "", None)
                groups |= {n: {n} for n in groups[one]} if what == "part" else {}
            elif what == "dial":
                ledger.record(key(one), [], other, "n", "person", "", None)
            for n, group in groups.items():
                assert set(ledger.links.others(key(n))) == {key(each) for each in group - {n}}
                if what == "record" and one in group and other[0] == "-":
                    assert held(ledger, key(n)) <= before[n]
            for group in groups.values():
                if len(group) > 1:
                    assert (
                        len({(s.granted, s.preference, s.person) for s in map(ledger.standing, map(key, group))}) == 1
                    )
        linked = {bytes(row["user_key"]) for row in ledger.links.at(ledger.sequence()).to_pylist()}
        assert linked == {key(n) for n, group in groups.items() if len(group) > 1}
        at = ledger.sequence()
        now = ledger.links.at(at)
        ledger.record(key(9), [Change("train", "", True)], None, "n", "person", "", None)
        assert ledger.links.at(at).equals(now), "a replay comes to the same"
    with closing(LedgerView.open(url, vocabulary)) as view:
        examined = view.examine()
        assert examined.chain.whole and examined.beside is not None and examined.beside.sound
