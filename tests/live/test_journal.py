"""The journal: what was acknowledged is there, once, whatever ended the process or hurt the file."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import JournalUnavailable
from engine.live import Journal, LiveEvent
from engine.live.segment import framed, read, whole_frames
from tests.today_events import NOON, did

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=chr(0)), max_size=30)
events = st.builds(
    LiveEvent,
    event_id=texts, user_id=texts, item_id=texts, event=st.integers(0, 9), ts=st.integers(0, 2**60),
    received=st.integers(0, 2**60), source=texts, value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    session_id=texts, recommendation_id=texts, position=st.integers(0, 10_000),
    flags=st.lists(texts, max_size=3).map(tuple), category=texts, key=st.binary(min_size=16, max_size=16) | st.just(b""),
)  # fmt: skip


def written(journal: Journal) -> list[str]:
    return [event.event_id for event in journal.replay(0)]


def test_what_was_appended_comes_back_in_its_order(tmp_path):
    journal = Journal.open(tmp_path)
    journal.append([did("ann", "1"), did("ben", "2")])
    journal.append([did("ann", "3")])
    assert written(journal) == ["1", "2", "3"]
    journal.close()
    again = Journal.open(tmp_path)
    assert again.name == journal.name, "a folder that nobody holds is taken over"
    again.append([did("ann", "4")])
    assert written(again) == ["1", "2", "3", "4"]
    again.close()


@given(st.lists(st.lists(events, min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=50)
def test_every_event_survives_as_it_was(tmp_path_factory, batches):
    path = tmp_path_factory.mktemp("journal") / "segment"
    path.write_bytes(b"".join(framed(batch) for batch in batches))
    assert list(read(path)) == [event for batch in batches for event in batch]


@given(st.integers(0, 10_000), st.binary(max_size=40))
@settings(max_examples=60)
def test_a_torn_end_costs_what_was_torn_and_nothing_before_it(tmp_path_factory, cut, noise):
    path = tmp_path_factory.mktemp("journal") / "segment"
    frames = [framed([did("ann", str(n))]) for n in range(4)]
    whole = b"".join(frames)
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut] + noise)
    kept = sum(len(b"".join(frames[: n + 1])) <= cut for n in range(4))
    assert [event.event_id for event in read(path)][:kept] == [str(n) for n in range(kept)]
    assert len(list(read(path))) == kept
    assert whole_frames(path)[1] <= cut


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_a_flipped_bit_costs_its_own_frame_alone(tmp_path, at):
    path = tmp_path / "segment"
    frames = [framed([did("ann", str(n))]) for n in range(4)]
    whole = bytearray(b"".join(frames))
    at %= len(whole)
    whole[at] ^= 0x10
    path.write_bytes(bytes(whole))
    hurt = next(n for n in range(4) if at < len(b"".join(frames[: n + 1])))
    assert [event.event_id for event in read(path)] == [str(n) for n in range(4) if n != hurt]


def test_a_torn_segment_is_mended_before_anything_is_added(tmp_path):
    journal = Journal.open(tmp_path)
    journal.append([did("ann", "1")])
    journal.close()
    (segment,) = journal.folder.glob("seg-*.log")
    with segment.open("ab") as file:
        file.write(framed([did("ann", "torn")])[:-3])
    again = Journal.open(tmp_path)
    again.append([did("ann", "2")])
    assert written(again) == ["1", "2"]
    again.close()


def test_two_processes_have_a_folder_each(tmp_path):
    one, other = Journal.open(tmp_path), Journal.open(tmp_path)
    assert one.name != other.name
    one.append([did("ann", "1")])
    assert written(other) == []
    one.close()
    other.close()


def test_nobody_else_may_read_it(tmp_path):
    journal = Journal.open(tmp_path / "live")
    journal.append([did("ann", "1")])
    for path in journal.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name
    assert stat.S_IMODE(journal.folder.stat().st_mode) & 0o077 == 0
    journal.close()


def test_callers_that_come_at_once_share_a_sync(tmp_path, monkeypatch):
    journal = Journal.open(tmp_path)
    journal.append([did("ann", "0")])
    syncs, entered, go = [], threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(handle: int) -> None:
        syncs.append(handle)
        entered.set()
        go.wait(10)
        real(handle)

    monkeypatch.setattr(os, "fdatasync", slow)
    threads = [threading.Thread(target=journal.append, args=([did("ann", str(n + 1))],)) for n in range(8)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(journal._waiting) < 7:
        pass
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(syncs) == 2
    assert sorted(written(journal), key=int) == [str(n) for n in range(9)]
    journal.close()


@pytest.mark.parametrize("step", ["write", "fdatasync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_is_told_and_nothing_of_that_call_counts(tmp_path, monkeypatch, step, code):
    journal = Journal.open(tmp_path)
    journal.append([did("ann", "1")])
    real = getattr(os, step)

    def refuse(*given: object) -> None:
        if step == "write":
            real(given[0], bytes(given[1])[:5])  # a part of it gets there
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, step, refuse)
        with pytest.raises(JournalUnavailable) as told:
            journal.append([did("secret-person", "lost")])
    assert told.value.remedy and "secret-person" not in str(told.value)
    before = journal._growing
    journal.append([did("ann", "2")])
    assert journal._growing != before or before == 0, "after a failed sync the next segment begins"
    assert written(journal) == ["1", "2"]
    journal.close()
    again = Journal.open(tmp_path)
    assert written(again) == ["1", "2"]
    again.close()


def test_a_full_journal_refuses_and_says_why(tmp_path):
    journal = Journal.open(tmp_path, most_bytes=2000)
    with pytest.raises(JournalUnavailable, match="bytes of 2000"):
        for n in range(100):
            journal.append([did("ann", str(n))])
    assert 0 < len(written(journal)) < 100
    journal.close()


def test_segments_end_at_their_size(tmp_path):
    journal = Journal.open(tmp_path, rotate_bytes=500)
    for n in range(10):
        journal.append([did("ann", str(n))])
    assert len(list(journal.folder.glob("seg-*.log"))) > 2
    assert written(journal) == [str(n) for n in range(10)]
    journal.close()


def test_replay_begins_where_it_is_told_to(tmp_path):
    journal = Journal.open(tmp_path)
    journal.append([did("ann", "old", at=NOON - 100), did("ann", "new", at=NOON)])
    assert [event.event_id for event in journal.replay(NOON)] == ["new"]
    journal.close()


def test_a_shipped_segment_keeps_no_raw_id_and_goes_in_time(tmp_path):
    journal = Journal.open(tmp_path, keep_hours=1)
    journal.append([did("ann-the-raw-id", "1")])
    journal.seal()
    (segment,) = journal.unshipped()
    journal.shipped(segment)
    assert journal.unshipped() == []
    for path in journal.folder.rglob("*"):
        assert b"ann-the-raw-id" not in path.read_bytes()
    assert written(journal) == ["1"]
    now = int(next(journal.folder.glob("*.kept")).stat().st_mtime * 1e6)
    journal.forget(now + 3_500_000_000)
    assert written(journal) == ["1"]
    journal.forget(now + 3_700_000_000)
    assert written(journal) == []
    assert journal.size == 0
    journal.close()


def test_a_kill_between_the_two_halves_of_shipping_is_mended(tmp_path):
    journal = Journal.open(tmp_path)
    journal.append([did("ann", "1")])
    journal.seal()
    (segment,) = journal.unshipped()
    content = segment.path.read_bytes()
    journal.shipped(segment)
    segment.path.write_bytes(content)  # as if it had not been removed yet
    Path(journal.folder / ".seg-00000009.kept.part").write_bytes(b"half")
    journal.close()
    again = Journal.open(tmp_path)
    assert again.unshipped() == []
    assert written(again) == ["1"]
    assert not list(again.folder.glob("*.log")) and not list(again.folder.glob(".*.part"))
    again.close()


def test_an_event_says_nothing_of_its_person_in_its_repr():
    assert "ann-the-raw-id" not in repr(did("ann-the-raw-id", "1"))
