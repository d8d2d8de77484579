"""TC strings: published ones, and strings written bit by bit as the specification lays the fields out."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.consent.tcf import TcString, Vendors, decode
from engine.errors import ConsentError

Field = tuple[int, int]  # value, width in bits
RESTRICTED = dict[tuple[int, int], list[tuple[int, int]]]  # by (purpose, type): first and last vendor


def ids(vendors: Vendors) -> set[int]:
    return {vendor for span in vendors for vendor in span}


# Of IAB Tech Lab's specification, and of the tests of its reference decoders iabtcf-java and iabtcf-es.
EXAMPLES: dict[str, dict[str, Any]] = {
    "COvFyGBOvFyGBAbAAAENAPCAAOAAAAAAAAAAAEEUACCKAAA.IFoEUQQgAIQwgIwQABAEAAAAOIAACAIAAAAQAIAgEAACEAAAAAgAQBAAAAAAAGBAAgAA"
    "AAAAAFAAECAAAgAAQARAEQAAAAAJAAIAAgAAAYQEAAAQmAgBC3ZAYzUw": dict(
        created=datetime(2020, 2, 20, 23, 57, 39, 300_000, UTC),
        last_updated=datetime(2020, 2, 20, 23, 57, 39, 300_000, UTC),
        cmp_id=27,
        cmp_version=0,
        consent_language="EN",
        vendor_list_version=15,
        tcf_policy_version=2,
        is_service_specific=False,
        purposes_consent={1, 2, 3},
        special_feature_opt_ins=set(),
        vendor_consent={2, 6, 8},
        vendor_legitimate_interest={2, 6, 8},
        publisher_cc="AA",
        publisher_restrictions={},
    ),
    "COtybn4PA_zT4KjACBENAPCIAEBAAECAAIAAAAAAAAAA": dict(
        created=datetime(2020, 1, 26, 17, 1, tzinfo=UTC),
        last_updated=datetime(2021, 2, 2, 17, 1, tzinfo=UTC),
        cmp_id=675,
        cmp_version=2,
        consent_screen=1,
        tcf_policy_version=2,
        purpose_one_treatment=True,
        use_non_standard_texts=False,
        special_feature_opt_ins={1},
        purposes_consent={2, 10},
        purposes_li_transparency={2, 9},
    ),
    "COrEAV4OrXx94ACABBENAHCIAD-AAAAAAACAAxAAAAgAIAwgAgAAAAEAgQAAAAAEAYQAQAAAACAAAABAAA": dict(
        purposes_consent={3, 4, 5, 6, 7, 8, 9},
        vendor_consent={23, 37, 47, 48, 53, 65, 98},
        vendor_legitimate_interest={37, 47, 48, 53, 65, 98, 129},
    ),
    "COv__-wOv__-wC2AAAENAPCgAAAAAAAAAAAAA_wAQA_gEBABAEAAAA": dict(vendor_legitimate_interest={128}),
    "COwBOpCOwBOpCLqAAAENAPCAAAAAAAAAAAAAFfwAYFfAV-BVkAGBVYFWAAA": dict(vendor_consent={702, 703}),
    "COwBOpCOwBOpCLqAAAENAPCAAAAAAAAAAAAAFfwAQFfgUbABAUaAAA": dict(vendor_consent={703}),
    # the specification's example for one service, with a publisher segment
    "CLcVDxRMWfGmWAVAHCENAXCkAKDAADnAABRgA5mdfCKZuYJez-NQm0TBMYA4oCAAGQYIAAAAAAEAIAEgAA.argAC0gAAAAAAAAAAAA": dict(
        cmp_id=21,
        is_service_specific=True,
        special_feature_opt_ins={2},
        purposes_consent={1, 3, 9, 10},
        purposes_li_transparency={3, 4, 5, 8, 9, 10},
        publisher_cc="KM",
        vendor_legitimate_interest={1, 9, 26, 27, 30, 36, 37, 43, 86, 97, 110, 113},
    ),
}


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text[:14])
def test_a_published_string_says_what_is_published_of_it(text: str) -> None:
    read = decode(text)
    assert read.version == 2
    for name, expected in EXAMPLES[text].items():
        found = getattr(read, name)
        assert (ids(found) if name.startswith("vendor_") and isinstance(expected, set) else found) == expected, name


def test_a_published_core_with_restrictions_is_read() -> None:
    head = "000010001110101110010000000000000010100000001110101110010000000000000010100000001100111110000"
    head += "00000000000000000010000110100000000111100001000000000000000" + "0" * 5 * 19 + "000000000011"
    entries = ("000001" + "01", "000010" + "00", "000011" + "10")  # a purpose, a type; then no vendors
    read = decode(text_of(head + "".join(each + "0" * 12 for each in entries)))
    assert (read.consent_language, read.vendor_list_version) == ("EN", 15)
    assert read.publisher_restrictions == {(1, 1): (), (2, 0): (), (3, 2): ()}


def text_of(bits: str) -> str:
    bits += "0" * (-len(bits) % 8)
    return base64.urlsafe_b64encode(int(bits, 2).to_bytes(len(bits) // 8, "big")).decode().rstrip("=")


def flags(numbers: set[int] | frozenset[int], width: int) -> str:
    return "".join("1" if place + 1 in numbers else "0" for place in range(width))


def ranges(spans: list[tuple[int, int]]) -> str:
    said = f"{len(spans):012b}"
    for first, last in spans:
        said += f"0{first:016b}" if first == last else f"1{first:016b}{last:016b}"
    return said


def written(
    purposes: set[int] | frozenset[int] = frozenset(),
    features: set[int] | frozenset[int] = frozenset(),
    vendors: str = "0" * 17,
    policy: int = 4,
    specific: bool = True,
    restrictions: RESTRICTED | None = None,
    version: int = 2,
    when: datetime = datetime(2017, 7, 14, tzinfo=UTC),
) -> str:
    """The bits of a core segment, field by field."""
    at = int(when.timestamp() * 10)
    head: list[Field] = [(version, 6), (at, 36), (at, 36), (27, 12), (3, 12), (1, 6)]
    head += [(4, 6), (13, 6), (200, 12), (policy, 6), (int(specific), 1), (0, 1)]
    bits = "".join(f"{value:0{width}b}" for value, width in head)
    bits += flags(features, 12) + flags(purposes, 24) + "0" * 24 + "0" + f"{8:06b}{4:06b}"
    bits += vendors + "0" * 17 + f"{len(restrictions or {}):012b}"
    for (purpose, kind), spans in (restrictions or {}).items():
        bits += f"{purpose:06b}{kind:02b}{ranges(spans)}"
    return bits


def of_range(spans: list[tuple[int, int]], highest: int = 65535) -> str:
    return f"{highest:016b}1" + ranges(spans)


def of_field(vendors: set[int], highest: int) -> str:
    return f"{highest:016b}0" + flags(vendors, highest)


def disclosed(vendors: set[int], kind: int = 1) -> str:
    return f"{kind:03b}" + of_field(vendors, max(vendors, default=0))


def test_a_vendor_that_nobody_was_shown_has_no_consent() -> None:
    for when in (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)):
        core = text_of(written({5}, set(), of_range([(30, 40)]), when=when, policy=5))
        others = text_of(disclosed({35, 99}, kind=3))
        read = decode(f"{core}.{text_of(disclosed({35, 36}))}.{others}")
        assert read.consent(35).vendor and read.consent(36).vendor
        assert not read.consent(37).vendor, "consented to, and never shown"
        assert not read.consent(99).vendor


def test_a_string_of_tcf_2_3_names_the_vendors_disclosed() -> None:
    late = text_of(written({5}, set(), of_range([(35, 35)]), when=datetime(2026, 3, 1, tzinfo=UTC)))
    with pytest.raises(ConsentError, match="2026-03-01.*disclosed"):
        decode(late).consent(35)
    assert decode(f"{late}.{text_of(disclosed({35}))}").consent(35).vendor
    early = text_of(written({5}, set(), of_range([(35, 35)]), when=datetime(2026, 2, 28, 23, 59, tzinfo=UTC)))
    assert decode(early).disclosed_vendors is None and decode(early).consent(35).vendor


def test_our_own_writer_writes_what_is_published() -> None:
    published = "COvFyGBOvFyGBAbAAAENAPCAAOAAAAAAAAAAAEEUACCKAAA"
    moment = 15_822_430_593
    head: list[Field] = [(2, 6), (moment, 36), (moment, 36), (27, 12), (0, 12), (0, 6), (4, 6), (13, 6), (15, 12)]
    bits = "".join(f"{value:0{width}b}" for value, width in [*head, (2, 6), (0, 1), (0, 1)])
    bits += flags(set(), 12) + flags({1, 2, 3}, 24) + "0" * 24 + "0" + "0" * 12
    bits += of_field({2, 6, 8}, 8) * 2 + "0" * 12
    assert text_of(bits) == published


@given(
    purposes=st.frozensets(st.integers(1, 24)),
    features=st.frozensets(st.integers(1, 12)),
    vendors=st.sets(st.integers(1, 900), max_size=30),
    as_ranges=st.booleans(),
    padding=st.integers(0, 40),
)
def test_what_is_written_is_read(
    purposes: frozenset[int], features: frozenset[int], vendors: set[int], as_ranges: bool, padding: int
) -> None:
    highest = max(vendors, default=0)
    section = of_range([(each, each) for each in sorted(vendors)], highest) if as_ranges else of_field(vendors, highest)
    read = decode(text_of(written(purposes, features, section) + "0" * padding))
    assert (read.purposes_consent, read.special_feature_opt_ins, ids(read.vendor_consent)) == (
        purposes,
        features,
        vendors,
    )
    assert (read.consent_language, read.publisher_cc, read.vendor_list_version) == ("EN", "IE", 200)
    for vendor in (*sorted(vendors)[:3], 901):
        consent = read.consent(vendor)
        assert consent.vendor == (vendor in vendors)
        assert (consent.purposes, consent.special_features) == (purposes, features)


def read_with(restrictions: RESTRICTED) -> TcString:
    return decode(text_of(written({5, 6, 10}, set(), of_range([(30, 40)]), restrictions=restrictions)))


def test_what_the_publisher_does_not_allow_is_not_consented_to() -> None:
    refused: RESTRICTED = {(5, 0): [(1, 100)], (10, 2): [(35, 35)], (6, 1): [(1, 100)]}
    read = read_with(refused)
    assert read.consent(35).purposes == {6}, "not allowed, and legitimate interest alone; consent required is no loss"
    assert read.consent(36).purposes == {6, 10}
    assert read.consent(200).purposes == {5, 6, 10}
    assert read_with({(5, 3): [(35, 35)]}).consent(35).purposes == {6, 10}, "a kind that is not defined grants nothing"


def test_an_older_policy_or_a_global_string_is_refused() -> None:
    with pytest.raises(ConsentError, match="policy version 3.*version 4.*ask again"):
        decode(text_of(written(policy=3))).consent(1)
    with pytest.raises(ConsentError, match="global scope"):
        decode(text_of(written(specific=False))).consent(1)
    with pytest.raises(ConsentError, match="policy version 2"):
        decode("COvFyGBOvFyGBAbAAAENAPCAAOAAAAAAAAAAAEEUACCKAAA").consent(2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "base64"),
        ("C OvF", "base64"),
        ("COvFyGBOvFyGB+bA", "base64"),
        ("BOvFyGBOvFyGBAbAAAENAPCAAOAAAAAAAAAAAEEUACCKAAA", "format is 1"),
        (text_of(written(version=3)), "format is 3"),
        ("COvFyGBOvFyGBAbAAAENAPCAAOAAAAAAAAAAAEE", "cut off"),
        ("COvFy", "cut off"),
        ("C", "cut off"),
        (text_of(written(vendors=of_range([(9, 3)]))), "from 9 to 3"),
        (text_of(written(vendors=of_range([(0, 0)]))), "from 0 to 0"),
        (text_of(written(vendors=of_range([(9, 9)], highest=8))), "past its last one, 8"),
        ("C" * 70_000, "70000 characters"),
        (text_of(written()) + ".", "base64"),
        (text_of(written()) + ".I", "cut off"),
        (f"{text_of(written())}.{text_of(disclosed({1}))}.{text_of(disclosed({2}))}", "twice"),
    ],
)
def test_what_is_no_tc_string_is_told_without_being_repeated(text: str, said: str) -> None:
    with pytest.raises(ConsentError, match=said) as caught:
        decode(text)
    assert len(text) < 3 or text not in str(caught.value)


@given(st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for given_text in (text, "CPokAsAPokAsAPoABAENBJ" + text):
        try:
            decode(given_text)
        except ConsentError as refusal:
            assert refusal.remedy


@given(cut=st.integers(0, 46))
def test_a_string_that_is_cut_anywhere_is_refused(cut: int) -> None:
    whole = "COvFyGBOvFyGBAbAAAENAPCAAOAAAAAAAAAAAEEUACCKAAA"
    short = whole[: min(cut, 43)]
    with pytest.raises(ConsentError):
        decode(short)


def test_a_string_that_speaks_of_all_vendors_over_and_over_is_read_in_a_moment() -> None:
    everybody = [(1, 65535)] * 20
    restrictions: RESTRICTED = {(number >> 2, number & 3): everybody for number in range(255)}
    text = text_of(written({5}, set(), of_field(set(range(1, 65536)), 65535), restrictions=restrictions))
    began = time.process_time()
    read = decode(text)
    assert read.consent(65535).vendor and read.consent(65535).purposes == set()
    assert time.process_time() - began < 5
