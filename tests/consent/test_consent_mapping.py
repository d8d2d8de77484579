"""Our purposes in TCF, DPV and under Global Privacy Control, as conf/consent declares them."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from engine.consent import PURPOSES, Change, Ledger, Vocabulary
from engine.consent.mapping import TCF_PURPOSES, Terms, stopped_by_gpc, tcf_changes, terms_of
from engine.consent.settings import ConsentSettings, MinorSettings, PurposeSettings
from engine.consent.tcf import TcfConsent
from engine.errors import ConsentError

DEFAULT = Path(__file__).parents[2] / "conf" / "consent" / "default.yaml"


def declared(changes: dict[str, object] | None = None) -> ConsentSettings:
    """conf/consent/default.yaml, typed as Hydra types it."""
    merged = OmegaConf.merge(
        OmegaConf.structured(ConsentSettings), OmegaConf.load(DEFAULT), OmegaConf.create(changes or {})
    )
    made = OmegaConf.to_object(merged)
    assert isinstance(made, ConsentSettings)
    return made


SETTINGS = declared()
SHOP = SETTINGS.vocabulary()
TERMS = terms_of(SETTINGS.purposes, SHOP)


def changed(name: str, **values: object) -> dict[str, PurposeSettings]:
    purposes = copy.deepcopy(SETTINGS.purposes)
    purposes[name] = replace(purposes.get(name, PurposeSettings()), **values)  # type: ignore[arg-type]
    return purposes


def test_the_file_declares_the_vocabulary_that_ledgers_and_snapshots_know() -> None:
    assert SHOP.purposes == PURPOSES
    assert SHOP.version == "3990b0ec"
    assert list(yaml.safe_load(DEFAULT.read_text())["purposes"]) == list(PURPOSES)


def test_a_team_s_own_purpose_comes_last_and_gives_another_version() -> None:
    own = {"purposes": {"loyalty": {"text": "To count your points.", "dpv": ["CustomerManagement"]}}}
    grown = declared(own).vocabulary()
    assert grown.purposes == (*PURPOSES, "loyalty") and grown.version != SHOP.version
    assert grown.translated(grown.mask("profile", "web") | grown.mask("loyalty"), SHOP) == SHOP.mask("profile", "web")


def test_without_purposes_the_engine_s_own_are_meant() -> None:
    assert ConsentSettings(sources=["web"]).vocabulary() == Vocabulary(sources=("web",))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("train", {"text": " "}, r"purposes\.train\.text is empty"),
        ("profile", {"events": ["purchase"]}, r"purposes\.profile\.events.*\[purchase, other\]"),
        ("measure", {"events": ["purchase"]}, r"purposes\.measure\.events.*one bit a source"),
        ("profile", {"gpc": False}, r"profile\.gpc is false.*Set it to true"),
        ("sensitive", {"gpc": False}, r"sensitive\.gpc is false"),
        ("train", {"gpc": True}, r"train\.gpc is true.*the ledger alone"),
    ],
)
def test_a_file_cannot_promise_what_the_engine_does_not_do(name: str, values: dict[str, object], said: str) -> None:
    with pytest.raises(ConsentError, match=said):
        replace(SETTINGS, purposes=changed(name, **values)).vocabulary()


@pytest.mark.parametrize("lifted", ["profiled", "sensitive_items"])
def test_nothing_lifts_what_protects_minors(lifted: str) -> None:
    assert SETTINGS.minors == MinorSettings(profiled=False, sensitive_items=False)
    with pytest.raises(ConsentError, match=f"minors.{lifted} is true.*no grant lifts that"):
        replace(SETTINGS, minors=MinorSettings(**{lifted: True})).vocabulary()


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("profile", {"tcf": [5, 12]}, r"profile\.tcf holds 12.*1 to 11"),
        ("profile", {"tcf": [0]}, r"holds 0"),
        ("profile", {"tcf": [5, 5]}, r"twice"),
        ("location", {"special_features": [3]}, r"special_features holds 3.*1 to 2"),
        ("location", {"tcf": []}, r"special features and no purpose"),
        ("train", {"dpv": ["dpv:Purpose"]}, r"holds 'dpv:Purpose', which is no term"),
        ("train", {"dpv": []}, r"train\.dpv is empty"),
        ("train", {"personal_data": []}, r"train\.personal_data is empty"),
        ("profle", {"text": "x"}, r"Unknown purpose in conf/consent 'profle'.*Did you mean 'profile'"),
    ],
)
def test_a_wrong_term_is_named(name: str, values: dict[str, object], said: str) -> None:
    with pytest.raises(ConsentError, match=said):
        terms_of(changed(name, **values), SHOP)


def test_a_purpose_without_terms_is_named() -> None:
    purposes = {name: each for name, each in SETTINGS.purposes.items() if name != "measure"}
    with pytest.raises(ConsentError, match="nothing of the purpose 'measure'"):
        terms_of(purposes, SHOP)


def test_privacy_control_stops_whatever_shapes_a_list() -> None:
    assert stopped_by_gpc(TERMS) == ("profile", "sensitive", "location", "cross_source")


def granted(consent: TcfConsent, source: str = "web", terms: dict[str, Terms] = TERMS) -> set[str]:
    changes = tcf_changes(consent, source, terms, SHOP)
    silent = {"cross_source"} if consent.vendor and not terms["cross_source"].tcf else set()
    assert [each.purpose for each in changes] == [name for name in SHOP.purposes if name not in silent]
    assert {each.source for each in changes} == {source}
    return {each.purpose for each in changes if each.granted}


def test_a_purpose_is_granted_by_all_of_its_tcf_purposes_or_not_at_all() -> None:
    everything = TcfConsent(True, frozenset(TCF_PURPOSES), frozenset({1, 2}))
    assert granted(everything) == {"profile", "train", "measure", "location"}
    assert granted(replace(everything, purposes=frozenset({5}))) == set()
    assert granted(replace(everything, purposes=frozenset({5, 6}))) == {"profile"}
    assert granted(replace(everything, special_features=frozenset({2}))) == {"profile", "train", "measure"}


def test_without_the_vendor_everything_is_withdrawn() -> None:
    assert granted(TcfConsent(False, frozenset(range(1, 25)), frozenset(range(1, 13)))) == set()


@given(
    vendor=st.booleans(),
    purposes=st.frozensets(st.integers(1, 24)),
    features=st.frozensets(st.integers(1, 12)),
    less=st.integers(1, 24),
)
def test_less_consent_never_grants_more(
    vendor: bool, purposes: frozenset[int], features: frozenset[int], less: int
) -> None:
    consent = TcfConsent(vendor, purposes, features)
    given_now = granted(consent)
    for name in given_now:
        assert vendor and TERMS[name].tcf <= purposes and TERMS[name].special_features <= features
    assert "sensitive" not in given_now and "cross_source" not in given_now
    assert granted(replace(consent, purposes=purposes - {less})) <= given_now
    assert granted(replace(consent, special_features=features - {less})) <= given_now


@pytest.mark.parametrize(("source", "said"), [("", "Unknown source ''"), ("wbe", "Did you mean 'web'")])
def test_a_tcf_consent_is_for_one_source(source: str, said: str) -> None:
    with pytest.raises(ConsentError, match=said):
        tcf_changes(TcfConsent(True, frozenset(TCF_PURPOSES), frozenset()), source, TERMS, SHOP)


def test_a_tcf_consent_says_nothing_of_links_but_where_the_shop_itself_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(Ledger.open(f"sqlite:///{tmp_path}/consent.db", SHOP)) as ledger:
        one, other = b"k" * 16, b"l" * 16
        ledger.links.link([one, other], "n", "person", "", None)
        for vendor, together in ((True, [other]), (False, [])):
            consent = TcfConsent(vendor, frozenset(TCF_PURPOSES), frozenset())
            ledger.record(one, tcf_changes(consent, "web", TERMS, SHOP), None, "tcf-4", "person", "", None)
            assert ledger.links.others(one) == together


def test_a_later_tcf_consent_takes_back_what_an_earlier_one_gave_in_the_ledger(tmp_path: Path) -> None:
    ledger, key = Ledger.open(f"sqlite:///{tmp_path}/consent.db", SHOP), b"k" * 16
    try:
        ledger.record(key, [Change("profile", "app", True)], None, "n", "person", "", None)
        for purposes, held in (({5, 6, 10}, {"profile", "train"}), ({10}, {"train"}), (set(), set())):
            consent = TcfConsent(True, frozenset(purposes), frozenset())
            ledger.record(key, tcf_changes(consent, "web", TERMS, SHOP), None, "tcf-4", "person", "", None)
            grants = ledger.standing(key).grants
            assert {each.purpose for each in grants if each.source == "web"} == held
            assert Change("profile", "app", True) in grants, "another source is not spoken of"
    finally:
        ledger.close()
