"""conf/consent as the night and the server read it, and a team's own purpose on a real server."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bodega.client import Client, grant

from engine.consent.settings import PurposeSettings
from engine.errors import ConsentError
from engine.serving.server import Server
from engine.serving.settings import load
from jobs.night import Night
from jobs.receipt import composed
from jobs.settings import Settings
from tests.serving.shop import VOCABULARY, Shop


def night_settings(tmp_path: Path, *overrides: str) -> Settings:
    return composed(tmp_path, overrides)


def test_night_and_server_read_one_vocabulary_from_one_file(tmp_path: Path) -> None:
    night, server = night_settings(tmp_path).consent, load([f"out={tmp_path}"]).consent
    assert night == server
    assert night.vocabulary() == VOCABULARY
    assert all(each.text.endswith(".") for each in night.purposes.values())


def test_a_purpose_that_the_engine_needs_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ConsentError, match="'train' is not among them"):
        night_settings(tmp_path, "~consent.purposes.train").consent.vocabulary()
    fewer = night_settings(tmp_path, "~consent.purposes.measure").consent.vocabulary()
    assert "measure" not in fewer.purposes and fewer.version != VOCABULARY.version


def test_another_text_is_not_another_night(tmp_path: Path) -> None:
    before = Night(night_settings(tmp_path), tmp_path, {}, 0, 0.0)
    told = Night(night_settings(tmp_path, "consent.purposes.profile.text=Other words."), tmp_path, {}, 0, 0.0)
    fewer = Night(night_settings(tmp_path, "consent.sources=[web,app,store]"), tmp_path, {}, 0, 0.0)
    assert before.config == told.config and before.config != fewer.config
    assert before.vocabulary.version == told.vocabulary.version


def test_withdrawing_all_takes_a_team_s_own_purpose_with_it(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "out")
    shop.publish()
    settings = copy.deepcopy(shop.settings("port=0"))
    settings.consent.purposes["loyalty"] = PurposeSettings("To count your points.", dpv=["CustomerManagement"])
    # The snapshot is of the vocabulary without it; consent is served whatever the snapshots are.
    server = Server(replace(settings, drain_seconds=2))
    server.start()
    try:
        with Client(f"127.0.0.1:{server.port}", timeout=20) as client:
            client.set_consent("ana", [grant("loyalty"), grant("profile", "web")])
            assert {each.purpose for each in client.get_consent("ana").grants} == {"loyalty", "profile"}
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "jobs.cli", "consent", "withdraw", "ana"),
                    *("--address", f"127.0.0.1:{server.port}"),
                ],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            assert not client.get_consent("ana").grants
    finally:
        server.stop()
