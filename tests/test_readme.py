"""The README names only what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_test_that_holds_a_guarantee_exists():
    named = set(re.findall(r"`(tests/[\w/.]*)`", README))
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_module_and_config_that_a_command_names_exists():
    modules = set(re.findall(r"python -m ((?:jobs|engine)[\w.]*)", README))
    assert modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for group in re.search(r"Groups: `([^`]*)`", README)[1].split():
        assert list((ROOT / "conf" / group).glob("*.yaml")), group


def test_every_config_opens_with_a_command_that_uses_it():
    for path in (ROOT / "conf").rglob("*.yaml"):
        head = "".join(path.read_text().splitlines(keepends=True)[:6])
        assert "python -m " in head, path
