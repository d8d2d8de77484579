"""`bodega consent tcf`: a TC string becomes changes of one source on a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bodega.client import grant

from tests.consent.test_tcf import of_range, text_of, written
from tests.nights import Ran
from tests.serving.shop import Shop


def tcf(text: str, *arguments: str) -> Ran:
    command = [sys.executable, "-m", "jobs.cli", "consent", "tcf", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", input=text + "\n")
    return Ran(done.returncode, done.stdout, done.stderr)


def test_what_a_string_says_is_recorded_for_its_source_alone(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    text = text_of(written({5, 6, 8, 9}, set(), of_range([(30, 40)])))
    shop.publish()
    with shop.served() as (server, client):
        client.set_consent("ana", [grant("profile", "partner"), grant("train")])
        given = ("ana", "--source", "web", "--address", f"127.0.0.1:{server.port}")
        done = tcf(text, *given, "--vendor", "35", "--notice-version", "cmp-27")
        assert done.code == 0, done.err
        assert "grants profile:web, measure:web" in done.out and "withdraws train:web" in done.out
        held = {(each.purpose, each.source) for each in client.get_consent("ana").grants}
        assert {("profile", "web"), ("measure", "web"), ("profile", "partner"), ("train", "app")} <= held
        assert ("train", "web") not in held
        assert client.consent_changes("ana").changes[-1].notice_version == "cmp-27"
        assert tcf(text, *given, "--vendor", "41").code == 0  # to which nothing was consented
        assert not any(each.source == "web" for each in client.get_consent("ana").grants)


def test_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.publish()
    with shop.served() as (server, client):
        given = ("ana", "--vendor", "35", "--address", f"127.0.0.1:{server.port}")
        refused = tcf("nonsense", *given, "--source", "web")
        assert refused.code == 4 and "nonsense" not in refused.err
        assert tcf(text_of(written({5, 6})), *given, "--source", "wbe").code == 4
        assert not client.consent_changes("ana").changes
