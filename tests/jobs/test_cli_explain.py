"""`bodega explain` and `bodega reload-policies` against a real server, in the words that a person reads."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main
from tests.serving.shop import Shop, allow, ids

SHORT = {"home": {"limit": 5, "rules": [{"name": "exclusions"}, {"name": "consent"}]}}


def bodega(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bodega", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_a_list_and_an_item_are_explained_and_policies_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path / "out")
    shop.publish()
    with shop.served(again=lambda: replace(shop.settings(), policy=SHORT)) as (server, client):
        at = ("--address", f"127.0.0.1:{server.port}")
        allow(client, "ana")
        first = ids(client.recommend("ana"))[0]
        code, out, _ = bodega(monkeypatch, capsys, "explain", "ana", "--item", first, *at)
        assert code == 0 and "diversity" in out and "would change it: withdraw_source:web" in out
        code, out, _ = bodega(monkeypatch, capsys, "explain", "ana", *at)
        assert code == 0 and "taste" in out and "%" in out and "level:none" in out
        code, out, _ = bodega(monkeypatch, capsys, "explain", "", "--item", "item-0009", "--surface", "basket", *at)
        assert code == 0 and "nothing that the person can do" in out
        code, out, _ = bodega(monkeypatch, capsys, "explain", "ana", "--json", *at)
        assert code == 0 and '"would_change_it"' in out
        code, out, _ = bodega(monkeypatch, capsys, "reload-policies", *at)
        assert code == 0 and out.splitlines()[-1].startswith("home@")
        assert len(client.recommend("ana").items) == 5
        code, _, err = bodega(monkeypatch, capsys, "explain", "ana", "--item", "nothing-of-that-name", *at)
        assert code == 1 and "There is no item" in err
