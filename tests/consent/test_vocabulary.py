from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.consent import PROFILE, PURPOSES, Level, Vocabulary
from engine.consent.vocabulary import RELIED_ON
from engine.errors import ConsentError
from engine.schema import DELICATE, NEVER

SHOP = Vocabulary(sources=("web", "app", "store"))
LARGEST = Vocabulary(sources=tuple(f"source{n}" for n in range(9)))  # 63 bits
ODD = Vocabulary(purposes=("profile", "sensitive", "ads", "train"), sources=tuple("abcde"))
pairs = st.sampled_from([(p, s) for p in PURPOSES for s in ("", *SHOP.sources)])
every_vocabulary = pytest.mark.parametrize("vocabulary", [SHOP, LARGEST, ODD, Vocabulary(sources=("only",))])


@every_vocabulary
def test_each_purpose_and_source_has_bits_of_its_own(vocabulary: Vocabulary) -> None:
    masks = [vocabulary.mask(p, s) for p in vocabulary.purposes for s in vocabulary.sources]
    bits = (len(vocabulary.purposes) + 1) * len(vocabulary.sources)
    assert sum(masks) == 2**bits - 1
    assert sum(mask.bit_count() for mask in masks) == bits


def test_the_bits_are_those_of_the_contract() -> None:
    assert SHOP.mask("profile", "app") == 0b11 << 2
    assert SHOP.group(1, purchase=True) == 2 and SHOP.group(1, purchase=False) == 3
    assert SHOP.mask("train", "web") == 1 << 6
    assert SHOP.mask("cross_source", "store") == 1 << 6 + 4 * 3 + 2
    assert SHOP.groups == 0b111111 and SHOP.purchase_groups == 0b010101


@every_vocabulary
def test_an_empty_source_is_the_union_of_all(vocabulary: Vocabulary) -> None:
    for purpose in vocabulary.purposes:
        union = 0
        for source in vocabulary.sources:
            union |= vocabulary.mask(purpose, source)
        assert vocabulary.mask(purpose) == union


def test_even_who_grants_everything_does_not_cover_what_nobody_may_see() -> None:
    everything = sum(LARGEST.mask(purpose) for purpose in LARGEST.purposes)
    assert (2**64 - 1) & ~everything


@given(basis=st.lists(pairs), granted=st.lists(pairs), withdrawn=pairs)
def test_withdrawing_never_lets_more_be_shown(
    basis: list[tuple[str, str]], granted: list[tuple[str, str]], withdrawn: tuple[str, str]
) -> None:
    relied = allowed = 0
    for pair in basis:
        relied |= SHOP.mask(*pair)
    for pair in granted:
        allowed |= SHOP.mask(*pair)
    left = allowed & ~SHOP.mask(*withdrawn)
    if relied & ~left == 0:
        assert relied & ~allowed == 0
        assert not relied & SHOP.mask(*withdrawn)


@given(granted=st.integers(0, 2**21 - 1))
def test_turning_the_dial_up_never_takes_away(granted: int) -> None:
    steps = [SHOP.under(level, granted) for level in (Level.NONE, Level.SESSION, Level.PURCHASES, Level.FULL)]
    assert steps[0] == 0 and steps[-1] == granted
    assert all(low & ~high == 0 for low, high in pairwise(steps))
    assert not steps[1] & SHOP.groups
    assert steps[2] & SHOP.groups == granted & SHOP.purchase_groups


@pytest.mark.parametrize("level", [0, 5, -1])
def test_an_unset_or_unknown_level_is_refused(level: int) -> None:
    with pytest.raises(ConsentError, match="level"):
        SHOP.under(level, SHOP.groups)


@given(masks=st.lists(st.integers(0, 2**63 - 1), max_size=7))
def test_a_sensitive_item_needs_the_sensitive_grant_of_each_source_it_relies_on(masks: list[int]) -> None:
    basis = np.array(masks, np.uint64)
    before = basis.copy()
    result = LARGEST.with_sensitive(basis)
    assert (basis == before).all()
    for relied, found in zip(masks, result.tolist(), strict=True):
        expected = relied
        for source in LARGEST.sources:
            if relied & LARGEST.mask("profile", source):
                expected |= LARGEST.mask("sensitive", source)
        assert found == expected


def test_sensitivity_keeps_the_shape_and_leaves_what_relies_on_nobody() -> None:
    basis = np.array([[0, 1, 2**64 - 1], [0, 2, 1 << 6]], np.uint64)
    sensitive = SHOP.mask("sensitive", "web")
    assert SHOP.with_sensitive(basis).tolist() == [[0, 1 | sensitive, 2**64 - 1], [0, 2 | sensitive, 1 << 6]]


def test_a_basis_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConsentError, match="uint64, found int64"):
        SHOP.with_sensitive(np.zeros(3, np.int64))


def test_an_unknown_name_names_the_near_miss() -> None:
    with pytest.raises(ConsentError, match=r"purpose 'profil'.*Did you mean 'profile'"):
        SHOP.mask("profil", "web")
    with pytest.raises(ConsentError, match=r"source 'stor'.*Did you mean 'store'"):
        SHOP.source_code("stor")


@pytest.mark.parametrize("sources", [10, 33])
def test_more_bits_than_a_mask_holds_are_refused(sources: int) -> None:
    with pytest.raises(ConsentError, match=f"{7 * sources} bits.*at most 9"):
        Vocabulary(sources=tuple(f"s{n}" for n in range(sources)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sources": ()},
        {"sources": "web"},
        {"sources": ("web", "web")},
        {"sources": ("a/b",)},
        {"sources": ("a b",)},
        {"sources": ("",)},
        {"sources": (1,)},
        {"sources": ("web",), "purposes": ("train", "profile", "sensitive")},
        {"sources": ("web",), "purposes": ("profile", "train")},
        {"sources": ("web",), "purposes": ("profile", "sensitive")},
        {"sources": ("web",), "purposes": ("train", "sensitive")},
    ],
)
def test_a_vocabulary_that_cannot_work_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConsentError) as caught:
        Vocabulary(**wrong)
    assert caught.value.remedy


def test_a_misspelt_purpose_that_the_engine_needs_is_named() -> None:
    with pytest.raises(ConsentError, match=r"'sensitive' is not among them.*by 'sensitve'.*profile, train, sensitive"):
        Vocabulary(purposes=("profile", "train", "sensitve"), sources=("web",))


def test_too_many_bits_name_what_to_merge_or_drop() -> None:
    with pytest.raises(ConsentError) as caught:
        Vocabulary(sources=tuple("abcdefghij"))
    told = caught.value.remedy
    assert (
        "at most 9" in told and "a, b, c" in told and "drop 1 of the purposes measure, location, cross_source" in told
    )
    many = (*PURPOSES, *(f"own{n}" for n in range(60)))
    with pytest.raises(ConsentError) as caught:
        Vocabulary(purposes=many, sources=("web",))
    assert "Drop 4 of the purposes measure" in caught.value.remedy and "Merge" not in caught.value.remedy
    with pytest.raises(ConsentError) as caught:
        Vocabulary(sources=tuple(f"s{n}" for n in range(33)))
    assert "drop" not in caught.value.remedy, "three purposes over 33 sources are still too many"


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_what_the_remedy_says_fits(spare: int) -> None:
    purposes = (*PURPOSES, *(f"own{n}" for n in range(spare)))
    fit = 63 // (len(purposes) + 1)
    assert len(Vocabulary(purposes=purposes, sources=tuple(f"s{n}" for n in range(fit))).sources) == fit
    with pytest.raises(ConsentError, match=f"at most {fit} "):
        Vocabulary(purposes=purposes, sources=tuple(f"s{n}" for n in range(fit + 1)))


@pytest.mark.parametrize("code", [-1, 3])
def test_a_source_code_out_of_range_has_no_group(code: int) -> None:
    with pytest.raises(ConsentError):
        SHOP.group(code, True)


@every_vocabulary
def test_a_vocabulary_survives_json(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_a_stored_vocabulary_whose_names_were_changed_is_refused() -> None:
    stored = SHOP.to_json() | {"sources": ["app", "web", "store"]}
    with pytest.raises(ConsentError, match="calls itself"):
        Vocabulary.from_json(stored)
    with pytest.raises(ConsentError, match="lacks"):
        Vocabulary.from_json({})


def test_the_version_follows_names_and_order() -> None:
    versions = {v.version for v in (SHOP, LARGEST, ODD, Vocabulary(sources=("app", "web", "store")))}
    assert len(versions) == 4 and all(len(version) == 8 for version in versions)


def test_today_s_names_keep_the_version_that_snapshots_and_ledgers_hold() -> None:
    assert SHOP.version == "054d2499"
    assert Vocabulary(sources=("web", "app", "store", "partner")).version == "3990b0ec"


@every_vocabulary
def test_each_bit_has_a_name_and_the_masks_are_made_of_them(vocabulary: Vocabulary) -> None:
    bits = vocabulary.bits()
    assert sorted(bits.values()) == list(range((len(vocabulary.purposes) + 1) * len(vocabulary.sources)))
    for purpose in vocabulary.purposes:
        for source in vocabulary.sources:
            named = sum(1 << bit for (p, s, _), bit in bits.items() if (p, s) == (purpose, source))
            assert named == vocabulary.mask(purpose, source)
    for code, source in enumerate(vocabulary.sources):
        assert bits["profile", source, "purchase"] == vocabulary.group(code, purchase=True)
        assert bits["profile", source, "other"] == vocabulary.group(code, purchase=False)


def test_a_snapshot_made_before_a_source_was_added_is_read_by_name() -> None:
    grown = Vocabulary(sources=(*SHOP.sources, "kiosk"))
    assert grown.translated(grown.mask("profile"), SHOP) == SHOP.mask("profile")
    assert grown.translated(grown.mask("sensitive", "store"), SHOP) == SHOP.mask("sensitive", "store")
    assert grown.translated(grown.mask("profile", "kiosk") | grown.mask("train", "kiosk"), SHOP) == 0
    assert SHOP.translated(SHOP.mask("profile"), grown) == grown.mask("profile") & ~grown.mask("profile", "kiosk")


def test_names_decide_where_the_order_changed() -> None:
    turned = Vocabulary(purposes=(PURPOSES[0], *reversed(PURPOSES[1:])), sources=tuple(reversed(SHOP.sources)))
    assert turned.version != SHOP.version
    for purpose in PURPOSES:
        for source in SHOP.sources:
            assert turned.translated(turned.mask(purpose, source), SHOP) == SHOP.mask(purpose, source)
    purchases = turned.under(Level.PURCHASES, turned.mask("profile", "web"))
    assert turned.translated(purchases, SHOP) == SHOP.mask("profile", "web") & SHOP.purchase_groups


def test_what_nobody_may_see_stays_so_under_any_vocabulary() -> None:
    assert LARGEST.translated(2**64 - 1, LARGEST) == 2**63 - 1
    assert SHOP.translated(~0, SHOP) == 2**21 - 1, "bits that name nothing are no grants"


_names = st.sampled_from(["web", "app", "store", "partner", "kiosk", "post"])


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    rest = draw(st.permutations(PURPOSES[1:]))
    kept = [name for name in rest if name in RELIED_ON or draw(st.booleans())]
    own = draw(st.lists(st.sampled_from(["ads", "loyalty"]), unique=True, max_size=1))
    return Vocabulary(
        purposes=(PROFILE, *kept, *own), sources=tuple(draw(st.lists(_names, unique=True, min_size=1, max_size=6)))
    )


@given(st.data(), vocabularies(), vocabularies())
def test_translating_never_allows_what_was_not_granted_by_name(
    data: st.DataObject, of: Vocabulary, to: Vocabulary
) -> None:
    granted = data.draw(st.integers(0, 2**64 - 1))
    held = {name for name, bit in of.bits().items() if granted >> bit & 1}
    translated = of.translated(granted, to)
    allowed = {name for name, bit in to.bits().items() if translated >> bit & 1}
    assert allowed == held & set(to.bits()), "no more, and no less, than what was granted and is named there"
    assert translated < 2 ** len(to.bits())
    assert to.translated(translated, of) & ~granted == 0, "the way back adds nothing either"
    level = data.draw(st.sampled_from([Level.NONE, Level.SESSION, Level.PURCHASES, Level.FULL]))
    assert of.translated(of.under(level, granted), to) == to.under(level, translated), (
        "the dial may be turned before or after"
    )


def test_groups_of_sensitive_items_need_one_grant_more() -> None:
    vocabulary = Vocabulary(sources=("web", "app"))
    bases = vocabulary.group_bases
    assert bases[:4].tolist() == [1, 2, 4, 8] and bases.shape == (2 * DELICATE,)
    for group in range(4):
        delicate = vocabulary.mask("sensitive", vocabulary.sources[group // 2])
        assert bases[DELICATE + group] == 1 << group | delicate
    assert set(bases[4:DELICATE].tolist()) == set(bases[DELICATE + 4 :].tolist()) == {NEVER}
