"""Progress is a bar on a terminal and a few lines elsewhere, always on stderr."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from jobs.progress import progress, say

LOOP = (
    "from jobs.progress import progress, say\nwith progress('users', 3) as a:\n [a(1) for _ in range(3)]; say('[x] y')"
)


def test_a_fast_loop_leaves_one_line_on_stderr_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("fast things", 10_000) as advance:
        for _ in range(10_000):
            advance(1)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fast things: 10000/10000 in ") and said.err.count("\n") == 1


def test_many_short_loops_of_one_label_share_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(50):
        with progress("short things", 2) as advance:
            advance(1)
            advance(1)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_slow_loop_tells_how_far_it_is_about_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("slow things", 30) as advance:
        for _ in range(25):
            time.sleep(0.1)
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert lines[-1].startswith("slow things: 25/30"), "a loop that was left early says how far it came"


def test_an_empty_loop_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("no things", 0):
        say("[not markup]")
    assert capsys.readouterr().err == "[not markup]\n"


def test_a_terminal_gets_a_bar() -> None:
    master, slave = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", LOOP], stderr=slave, check=True, env={**os.environ, "TERM": "xterm"}, timeout=60
    )
    os.close(slave)
    drawn = os.read(master, 65536).decode()
    os.close(master)
    assert "users" in drawn and "3/3" in drawn and "[x] y" in drawn
    assert "\x1b[" in drawn
