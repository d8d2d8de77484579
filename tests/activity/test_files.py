"""The files of a log are found, and read for their digest only when they may have changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from engine.activity.files import UNREADABLE, Digests, LogFile, digest, locate, log_files
from engine.activity.mapping import DataSettings
from engine.errors import DataError

LOCAL = fs.LocalFileSystem()


# --- where files are --------------------------------------------------------------------------------------------------


def test_a_local_path_and_its_uri_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(".")[1] == locate(str(tmp_path))[1] == locate(f"file://{tmp_path}/")[1] == str(tmp_path)


@pytest.mark.parametrize("path", ["nothing://there/logs", "file://another.host/logs"])
def test_a_place_that_cannot_be_opened_is_named(path: str) -> None:
    with pytest.raises(DataError, match=path):
        locate(path)


def test_the_log_is_found_in_folders_and_files_and_drafts_are_left_alone(tmp_path: Path) -> None:
    wanted = ["log/date=2026-01-01/a.parquet", "log/date=2026-01-02/a.parquet", "log/flat.parquet", "old.parquet"]
    drafts = ["log/_temporary/0/a.parquet", "log/.hidden/a.parquet", "log/.a.parquet", "log/_SUCCESS", "log/a.txt"]
    for name in wanted + drafts:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for path in (str(tmp_path), f"file://{tmp_path}"):
        found = log_files(DataSettings(path=path, log=["old.parquet", "log", "log/flat.parquet"]))
        assert [file.name for file in found] == sorted(wanted)
        assert [Path(file.path) for file in found] == [tmp_path / name for name in sorted(wanted)]
        assert all(file.bytes == 0 and file.modified == Path(file.path).stat().st_mtime_ns for file in found)


def test_a_folder_that_itself_begins_with_a_dot_may_hold_the_log(tmp_path: Path) -> None:
    saved_at = tmp_path / ".bodega" / "log"
    saved_at.mkdir(parents=True)
    (saved_at / "a.parquet").touch()
    assert [file.name for file in log_files(DataSettings(path=str(tmp_path / ".bodega")))] == ["log/a.parquet"]


def test_a_part_of_the_log_that_is_missing_is_named_with_its_near_miss(tmp_path: Path) -> None:
    (tmp_path / "one.parquet").touch()
    (tmp_path / "interactions.parquet").touch()
    with pytest.raises(DataError, match=r"'interaction\.parquet'.*did you mean 'interactions\.parquet'"):
        log_files(DataSettings(path=str(tmp_path), log=["one.parquet", "interaction.parquet"]))
    with pytest.raises(DataError, match="'log'"):
        log_files(DataSettings(path=str(tmp_path / "nowhere")))


def test_a_log_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(DataError, match="No Parquet file"):
        log_files(DataSettings(path=str(tmp_path)))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 3])
def test_a_digest_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.gz"  # the name must not make it decompress
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert digest(LOCAL, str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


class Counting:
    """A filesystem that counts what is opened."""

    def __init__(self) -> None:
        self.opened = 0

    def open_input_stream(self, path: str, **how: Any) -> Any:
        self.opened += 1
        return LOCAL.open_input_stream(path, **how)


def listed(folder: Path) -> list[LogFile]:
    return log_files(DataSettings(path=str(folder), log=["."]))


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    memory, log = tmp_path / "store" / "digests.json", tmp_path / "log"
    log.mkdir()
    for name in "abc":
        (log / f"{name}.parquet").write_text(name)
        os.utime(log / f"{name}.parquet", (1000, 1000))
    counting = Counting()
    first = Digests(memory).of(counting, listed(log))  # type: ignore[arg-type]
    assert first == {f"{name}.parquet": hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
    assert counting.opened == 3
    assert Digests(memory).of(counting, listed(log)) == first  # type: ignore[arg-type]
    assert counting.opened == 3
    (log / "b.parquet").write_text("B")  # as many bytes as before
    changed = Digests(memory).of(counting, listed(log))  # type: ignore[arg-type]
    assert counting.opened == 4
    assert changed["b.parquet"] == hashlib.sha256(b"B").hexdigest()


def test_a_file_that_has_just_changed_is_read_again_next_time(tmp_path: Path) -> None:
    """Within one tick of the clock it may change once more without a trace."""
    counting, memory = Counting(), tmp_path / "digests.json"
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.parquet").write_text("a")
    for turn in (1, 2):
        Digests(memory).of(counting, listed(tmp_path / "log"))  # type: ignore[arg-type]
        assert counting.opened == turn


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"a.parquet": 3}', "\0"])
def test_a_broken_memory_of_digests_is_none(tmp_path: Path, broken: str) -> None:
    memory = tmp_path / "digests.json"
    memory.write_text(broken)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.parquet").write_text("a")
    os.utime(tmp_path / "log" / "a.parquet", (1000, 1000))
    expected = {"a.parquet": hashlib.sha256(b"a").hexdigest()}
    assert Digests(memory).of(LOCAL, listed(tmp_path / "log")) == expected
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["digests.json"]


def test_what_cannot_be_read_has_no_digest_and_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.parquet").symlink_to(tmp_path / "nowhere")
    (file,) = listed(tmp_path / "log")
    assert Digests(tmp_path / "digests.json").of(LOCAL, [file]) == {file.name: UNREADABLE}
    (tmp_path / "nowhere").write_text("a")
    (file,) = listed(tmp_path / "log")
    assert Digests(tmp_path / "digests.json").of(LOCAL, [file]) != {file.name: UNREADABLE}
