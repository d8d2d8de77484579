"""Policies come from plain settings; every mistake is named with what was probably meant."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from engine.consent.vocabulary import Level
from engine.errors import PolicyError
from engine.policy import Chain, load_policies
from engine.policy.rules.category_cap import CategoryCap
from engine.policy.rules.consent import Consent

CONSENT = {"name": "consent"}


def home(**settings: Any) -> dict[str, Any]:
    return {"home": {"rules": [CONSENT]} | settings}


def test_the_policies_that_come_with_it_cover_five_surfaces(surfaces: dict[str, Chain]) -> None:
    assert list(surfaces) == ["home", "reorder", "email", "item_page", "basket"]
    assert all(1 <= chain.default_limit <= 100 for chain in surfaces.values())
    assert all(isinstance(chain.rules[-1], Consent) for chain in surfaces.values())


def test_a_rule_takes_its_parameters_from_the_settings() -> None:
    chain = load_policies(home(limit=7, level="purchases", rules=[{"name": "category_cap", "share": 1}, CONSENT]))[
        "home"
    ]
    assert chain.rules == (CategoryCap(share=1), Consent())
    assert (chain.name, chain.default_limit, chain.default_level) == ("home", 7, Level.PURCHASES)


def test_limit_and_level_may_be_left_out() -> None:
    chain = load_policies(home())["home"]
    assert (chain.default_limit, chain.default_level) == (20, Level.FULL)


def test_the_version_changes_with_every_setting_and_with_nothing_else() -> None:
    def version(**settings: Any) -> str:
        return load_policies(home(**settings))["home"].version

    cap = [{"name": "category_cap", "share": 0.4}, CONSENT]
    wider = [{"name": "category_cap", "share": 0.5}, CONSENT]
    found = [version(), version(limit=9), version(level="none"), version(rules=cap), version(rules=wider)]
    assert len(set(found)) == len(found)
    assert version(limit=20, level="full") == version()
    assert version(rules=[{"name": "category_cap"}, CONSENT]) == version(rules=cap)
    assert all(len(each) == 8 and int(each, 16) >= 0 for each in found)


@pytest.mark.parametrize(
    ("spec", "message", "remedy"),
    [
        ({}, "no policy", "policy=default"),
        ({"home": None}, "Policy 'home': expected limit, level and rules", "rules"),
        (home(limits=3), "Policy 'home': unknown setting 'limits'", "Did you mean 'limit'"),
        (home(limit="many"), "limit: expected a whole number", "limit"),
        (home(limit=True), "limit: expected a whole number", "limit"),
        (home(limit=0), "limit is 0", "at least one"),
        (home(level="ful"), "unknown level 'ful'", "Did you mean 'full'"),
        (home(level="unset"), "unknown level 'unset'", "Known: none, session, purchases, full"),
        (home(level=4), "unknown level '4'", "Known"),
        (home(rules=None), "rules: expected a list", "rules"),
        (home(rules=[]), "the last rule is missing", "consent"),
        (home(rules=["consent"]), "without a name", "name"),
        (home(rules=[{"name": "consnet"}]), "unknown rule 'consnet'", "Did you mean 'consent'"),
        (home(rules=[{"name": "diversity"}]), "the last rule is 'diversity'", "consent"),
        (home(rules=[CONSENT, {"name": "diversity"}]), "the last rule is 'diversity'", "consent"),
        (
            home(rules=[{"name": "diversity", "strenght": 1}, CONSENT]),
            "unknown parameter of 'diversity' 'strenght'",
            "Did you mean 'strength'",
        ),
        (home(rules=[{"name": "diversity", "pool": 2.5}, CONSENT]), "pool: expected int, found 2.5", "int"),
        (home(rules=[{"name": "diversity", "strength": "a"}, CONSENT]), "strength: expected float", "float"),
        (home(rules=[{"name": "exclusions", "hide_bought": 1}, CONSENT]), "hide_bought: expected bool", "bool"),
        (home(rules=[{"name": "category_cap", "share": 2}, CONSENT]), "Policy 'home': category_cap: share is 2", "1"),
        (home(rules=[{"name": "consent", "lax": True}]), "unknown parameter of 'consent' 'lax'", "Known: none"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(spec: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policies(spec)
    assert message in raised.value.message
    assert remedy in raised.value.remedy


def test_every_rule_is_registered_under_its_own_name() -> None:
    for point in entry_points(group="bodega.rules"):
        assert point.load().name == point.name


def install(folder: Path, entry: str, code: str) -> None:
    """A package with one registered rule, as pip would lay it down."""
    about = folder / "shop_rules-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-rules\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[bodega.rules]\n{entry}\n")
    (folder / "shop_rules.py").write_text(dedent(code))


RULE = """
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import ClassVar
    import numpy as np
    from engine.policy import Moment, Slate, Verdict

    @dataclass(frozen=True, slots=True)
    class Newest:
        name: ClassVar[str] = "newest"
        most: int

        def __call__(self, slate: Slate, moment: Moment) -> Verdict:
            return Verdict(np.arange(len(slate))[::-1])
"""


@pytest.mark.parametrize(
    ("entry", "rule", "said"),
    [
        ("newest = shop_rules:Newest", {"name": "newest", "most": 3}, "Newest(most=3)"),
        ("newest = shop_rules:Newest", {"name": "newest"}, "newest lacks most"),
        ("newest = shop_rules:Oldest", {"name": "newest"}, "cannot be loaded from shop_rules:Oldest"),
        ("newest = shop_rulez:Newest", {"name": "newest"}, "cannot be loaded from shop_rulez:Newest"),
        ("latest = shop_rules:Newest", {"name": "latest"}, "is no rule called 'latest'"),
        ("newest = shop_rules:np", {"name": "newest"}, "is no rule called 'newest'"),
    ],
)
def test_a_package_adds_a_rule_without_touching_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, rule: dict[str, Any], said: str
) -> None:
    install(tmp_path, entry, RULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop_rules", raising=False)
    try:
        answer = str(load_policies(home(rules=[rule, CONSENT]))["home"].rules[0])
    except PolicyError as error:
        answer = str(error)
    assert said in answer
