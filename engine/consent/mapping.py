"""Our purposes in the words of others: IAB TCF, W3C DPV, Global Privacy Control; and a TCF consent as changes for the ledger."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.consent.changes import Change
from engine.consent.settings import PurposeSettings
from engine.consent.tcf import TcfConsent
from engine.consent.vocabulary import CROSS_SOURCE, Vocabulary, unknown_name
from engine.errors import ConsentError

# IAB Europe TCF v2.2 policies, appendix A.
TCF_PURPOSES = range(1, 12)
TCF_SPECIAL_FEATURES = range(1, 3)
_TERM = re.compile(r"[A-Z][A-Za-z0-9]*")


@dataclass(frozen=True, slots=True)
class Terms:
    """One purpose: what people are told, and what it is elsewhere. `gpc`: a request under Global Privacy Control goes without."""

    text: str
    tcf: frozenset[int]
    special_features: frozenset[int]
    dpv: tuple[str, ...]
    personal_data: tuple[str, ...]
    gpc: bool

    def granted_by(self, consent: TcfConsent) -> bool:
        """Whether a TCF consent amounts to this purpose: to all that it takes, and to something."""
        return (
            consent.vendor
            and bool(self.tcf)
            and self.tcf <= consent.purposes
            and self.special_features <= consent.special_features
        )


def terms_of(purposes: Mapping[str, PurposeSettings], vocabulary: Vocabulary) -> dict[str, Terms]:
    """The terms of each purpose of a vocabulary, in its order.

    Args:
        purposes: of conf/consent.

    Raises:
        ConsentError: a purpose is unknown (with the nearest one that is known) or has no terms, TCF has no such number, or a
            term cannot be one of DPV.
    """
    for name in purposes:
        if name not in vocabulary.purposes:
            raise unknown_name("purpose in conf/consent", name, vocabulary.purposes)
    found = {}
    for name in vocabulary.purposes:
        if name not in purposes:
            raise ConsentError(
                f"conf/consent says nothing of the purpose '{name}'.", f"Add purposes.{name} with its text and terms."
            )
        each, where = purposes[name], f"conf/consent: purposes.{name}"
        if each.special_features and not each.tcf:
            raise ConsentError(
                f"{where} names special features and no purpose.", "Name the TCF purposes that they are used for."
            )
        found[name] = Terms(
            each.text,
            _numbers(f"{where}.tcf", each.tcf, TCF_PURPOSES),
            _numbers(f"{where}.special_features", each.special_features, TCF_SPECIAL_FEATURES),
            _terms(f"{where}.dpv", each.dpv),
            _terms(f"{where}.personal_data", each.personal_data),
            each.gpc,
        )
    return found


def tcf_changes(consent: TcfConsent, source: str, terms: Mapping[str, Terms], vocabulary: Vocabulary) -> list[Change]:
    """What a TCF consent means for one source: a grant for each purpose that it covers, a withdrawal for every other one.

    But for linking: where TCF asks nothing of it, a string says nothing of it either, and ids that somebody put together by
    another consent stay together, unless the shop itself is refused.

    Args:
        source: where it was asked for; a consent for one service says nothing of another.
        terms: from `terms_of`.

    Returns:
        Changes in the order of the vocabulary, for `Ledger.record`.

    Raises:
        ConsentError: there is no such source.
    """
    vocabulary.source_code(source)  # empty, it would be a grant for all of them
    silent = {CROSS_SOURCE} if consent.vendor and CROSS_SOURCE in terms and not terms[CROSS_SOURCE].tcf else set()
    spoken_of = [name for name in vocabulary.purposes if name not in silent]
    return [Change(name, source, terms[name].granted_by(consent)) for name in spoken_of]


def stopped_by_gpc(terms: Mapping[str, Terms]) -> tuple[str, ...]:
    """The purposes that a request under Global Privacy Control goes without. It lasts for that request.

    Source: W3C, Global Privacy Control, https://www.w3.org/TR/gpc/.
    """
    return tuple(name for name, each in terms.items() if each.gpc)


def _numbers(where: str, given: Sequence[int], known: range) -> frozenset[int]:
    for number in given:
        if number not in known:
            raise ConsentError(f"{where} holds {number}.", f"TCF v2.2 numbers them {known[0]} to {known[-1]}.")
    if len(set(given)) < len(given):
        raise ConsentError(f"{where} names one twice: {list(given)}.", "Name each once.")
    return frozenset(given)


def _terms(where: str, given: Sequence[str]) -> tuple[str, ...]:
    for term in given:
        if not _TERM.fullmatch(term):
            raise ConsentError(
                f"{where} holds '{term}', which is no term.", "Write it as DPV does, such as ServicePersonalisation."
            )
    if not given:
        raise ConsentError(f"{where} is empty.", "Name at least one term of W3C DPV; receipts say it.")
    return tuple(given)
