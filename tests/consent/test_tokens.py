from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.consent import consent_token, sequence_of
from engine.errors import RequestError


@given(st.integers(0, 2**63 - 1))
def test_a_token_brings_its_sequence_back(sequence: int) -> None:
    token = consent_token(sequence)
    assert sequence_of(token) == sequence
    assert token.isascii() and token.replace("-", "").replace("_", "").isalnum()


@given(st.text())
def test_text_from_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        sequence_of(text)
    assert caught.value.field == "consent_token"


@given(st.integers(0, 2**63 - 1), st.integers(0, 17), st.characters(codec="ascii"))
def test_a_token_with_one_character_changed_is_refused(sequence: int, place: int, other: str) -> None:
    token = consent_token(sequence)
    changed = token[:place] + other + token[place + 1 :]
    if changed != token:
        with pytest.raises(RequestError):
            sequence_of(changed)


@pytest.mark.parametrize("sequence", [-1, 2**63])
def test_what_is_no_sequence_gets_no_token(sequence: int) -> None:
    with pytest.raises(RequestError):
        consent_token(sequence)
