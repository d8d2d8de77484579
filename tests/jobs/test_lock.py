"""Two nights at once: one works, the other is told who and since when; a dead holder is no obstacle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import RunLocked
from jobs import lock
from jobs.lock import Holder, holder_of, reaches_all, run_lock
from tests.nights import SmallShop

HOLD = """
import pathlib, signal, sys
from jobs.lock import run_lock
with run_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@contextmanager
def holding(run: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_night_of_a_run_ends_with_code_8_and_says_who_works_on_it(small_shop: SmallShop) -> None:
    run = small_shop.out / "runs" / "held"
    with holding(run) as process:
        refused = small_shop.nightly("run=held", module="jobs.ingest")
        assert refused.code == 8, refused.err
        assert f"is being worked on by process {process.pid} on " in refused.err and " since 20" in refused.err
        assert "remedy: Wait" in refused.err and "Traceback" not in refused.err
    assert sorted(path.name for path in run.iterdir()) == [".lock"], "nothing was begun"
    with run_lock(run):
        pass


def test_a_holder_that_was_killed_is_told_from_one_that_let_go(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with holding(tmp_path) as process:
        holder = holder_of(tmp_path)
        assert holder is not None and (holder.pid, holder.lives, holder.ended) == (process.pid, True, False)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert holder.lives is False
    with run_lock(tmp_path):
        mine = holder_of(tmp_path)
        assert mine is not None and (mine.pid, mine.lives) == (os.getpid(), True)
    ended = holder_of(tmp_path)
    assert ended is not None and ended.ended and not ended.lives


def test_a_process_that_got_the_id_of_a_dead_holder_does_not_pass_for_it() -> None:
    mine = Holder.this_process()
    assert mine.lives
    assert Holder(mine.host, mine.pid, mine.started - 1, mine.boot, mine.since).lives is False


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose locks may stay on each machine."""
    monkeypatch.setattr(lock, "reaches_all", lambda path: False)


@pytest.mark.parametrize(("ended", "free"), [(False, False), (True, True)])
def test_where_locks_may_not_reach_a_holder_elsewhere_counts_until_it_says_that_it_ended(
    tmp_path: Path, far_away: None, ended: bool, free: bool
) -> None:
    other = Holder("elsewhere", 4711, 99, "another boot", "2026-01-31T02:00:00+00:00", ended)
    (tmp_path / ".lock").write_text(json.dumps(other.__dict__))
    if free:
        with run_lock(tmp_path):
            pass
        return
    with pytest.raises(RunLocked, match="process 4711 on elsewhere since 2026-01-31T02") as refused, run_lock(tmp_path):
        pass
    assert "remove" in refused.value.remedy and str(tmp_path / ".lock") in refused.value.remedy
    assert "nobody can tell" in refused.value.message
    assert holder_of(tmp_path) == other, "its record stays"


def test_where_locks_may_not_reach_a_dead_holder_of_this_machine_is_known_to_be_dead(
    tmp_path: Path, far_away: None
) -> None:
    with holding(tmp_path) as process:
        process.kill()
        process.wait()
    with run_lock(tmp_path):
        pass


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
31 22 0:40 / /nfs rw - nfs4 server:/a rw,vers=4.2,local_lock=none,addr=192.0.2.1
32 22 0:41 / /nfs/alone rw - nfs server:/b rw,vers=3,nolock,local_lock=all
33 22 0:42 / /two\\040words rw - fuse.sshfs me@there:/ rw,user_id=0
34 22 0:43 / /lustre rw - lustre mgs:/fs rw,flock
35 22 0:44 / /lustre/home rw - lustre mgs:/fs rw,localflock
36 22 0:45 / /windows rw - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("path", "all_see"),
    [("/data", True), ("/nfs/runs", True), ("/nfs/alone/runs", False), ("/two words/runs", False), ("/lustre/x", True),
     ("/lustre/home/x", False), ("/windows", False), ("/nfsx", True)],
)  # fmt: skip
def test_a_mount_tells_whether_its_locks_reach_every_machine(path: str, all_see: bool) -> None:
    assert reaches_all(Path(path), MOUNTS) is all_see


def test_the_mounts_of_this_machine_can_be_read(tmp_path: Path) -> None:
    assert isinstance(reaches_all(tmp_path), bool)


def test_a_run_that_a_sweep_removes_while_it_is_opened_is_held_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "night"
    take, removed = lock._take, []

    def removing(where: Path, handle: int) -> None:
        if not removed:
            removed.append(where)
            shutil.rmtree(where)
        take(where, handle)

    run.mkdir()
    monkeypatch.setattr(lock, "_take", removing)
    with run_lock(run):
        assert removed and holder_of(run)
        other = subprocess.run([sys.executable, "-c", HOLD, str(run)], capture_output=True, text=True, timeout=60)
        assert "RunLocked" in other.stderr
