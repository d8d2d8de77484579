"""Code, libraries and a team's plugins are inputs: what another version of them left is not believed."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.code import libraries, our_code, plugins
from jobs.night import Night
from jobs.settings import Settings
from jobs.stage import stage

LANE = """
from engine.ranking.found import Found
from ours.{beside} import WEIGHT
class Seasonal:
    def find(self, people, shop):
        return Found.nothing()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A team's distribution with a lane and a rule, as pip would lay it down."""
    about, code = tmp_path / "site" / "ours-1.2.dist-info", tmp_path / "site" / "ours"
    about.mkdir(parents=True)
    code.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(
        "[bodega.lanes]\nseasonal = ours.seasonal:Seasonal\n[bodega.rules]\nfresh = ours:F\n"
    )
    (code / "__init__.py").touch()
    (code / "seasonal.py").write_text(LANE.format(beside="weights"))
    (code / "weights.py").write_text("WEIGHT = 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    yield code
    for name in [name for name in sys.modules if name.split(".")[0] == "ours"]:
        del sys.modules[name]


def asked(lane: bool = True, rule: bool = False) -> Settings:
    settings = Settings(policy={"home": {"rules": [{"name": "fresh" if rule else "consent"}]}})
    settings.rank.lanes = {"usual": {}} | ({"seasonal": {}} if lane else {})
    return settings


def test_a_plugin_is_known_by_its_version_and_all_files_of_its_package(package: Path) -> None:
    before = plugins(asked())
    assert before.startswith("seasonal of ours 1.2, ")
    assert plugins(asked()) == before
    (package / "weights.py").write_text("WEIGHT = 2.0\n")  # not the file that is registered, but one that it uses
    changed = plugins(asked())
    assert changed != before
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "weights.cpython-311.pyc").write_bytes(b"\0")
    assert plugins(asked()) == changed


def test_only_plugins_that_the_settings_name_count(package: Path) -> None:
    assert plugins(asked(lane=False)) == ""
    assert plugins(asked(rule=True)).startswith("fresh of ours 1.2, ")
    assert plugins(Settings()) == ""


def test_a_changed_plugin_has_all_stages_after_ingest_done_again(package: Path, tmp_path: Path) -> None:
    inputs = {"code": our_code(), "libraries": libraries()}

    def night() -> Night:
        return Night(asked(), tmp_path / "run", inputs, 0, 0.0, plugins(asked()))

    def done_again() -> list[str]:
        again = []
        for name, reads in (("ingest", ()), ("train", ("ingest",)), ("rank", ("ingest", "train"))):
            with stage(tmp_path / "run", name, night().after(*reads) if reads else inputs, {}) as work:
                if not work.whole:
                    again.append(name)
                work.finish()
        return again

    assert done_again() == ["ingest", "train", "rank"]
    assert done_again() == []
    (package / "seasonal.py").write_text(LANE.format(beside="weights") + "# mended\n")
    assert done_again() == ["train", "rank"]


def test_the_libraries_that_decide_on_bytes_are_named_with_their_versions() -> None:
    assert f"torch {version('torch')}" in libraries() and f"pyarrow {version('pyarrow')}" in libraries()
