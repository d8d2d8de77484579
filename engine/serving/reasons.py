"""Why an item is in a list: a stable code, words ready to show, and the item that justifies it.

Only the evidence of the alternative that was chosen is ever named, so a reason relies on no grant but the item's own. And only
where it is a cause: the night (engine/ranking/causes.py), and by day what finds the items of a session, hand on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.consent.vocabulary import SENSITIVE, Vocabulary
from engine.schema import LANES, NO_ITEM
from engine.snapshot import ItemTable


@dataclass(frozen=True, slots=True)
class Why:
    """One reason of one item."""

    code: str
    text: str
    evidence: tuple[str, ...] = ()  # item ids
    causal: bool = False  # whether the rank rests on the evidence


# By lane: code and words without evidence.
_PLAIN = {
    "two_tower": Why("for_you", "Picked for you"),
    "similar": Why("for_you", "Picked for you"),
    "usual": Why("due_again", "Time for this again?"),
    "discovery": Why("something_different", "Something different"),
    "popular": Why("popular", "Popular in the shop"),
    "session": Why("seen_today", "Goes with what you looked at today"),
    "pinned": Why("pinned", "Chosen by the shop"),
    "other": Why("for_you", "Picked for you"),
}
# By lane: code and words around the title of the evidence.
_WITH_EVIDENCE = {
    "two_tower": ("because_you_liked", "Close to your taste: {}"),
    "similar": ("because_you_liked", "Goes with {}"),
    "usual": ("due_again", "Time for {} again?"),
    "discovery": ("something_different", "Something different, not far from {}"),
    "session": ("seen_today", "Goes with {}, which you looked at today"),
}
_BOUGHT = ("because_you_bought", "Because you bought {}")


class Reasons:
    """Makes reasons under one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._beyond_purchases = vocabulary.groups ^ vocabulary.purchase_groups
        self._profile = vocabulary.groups
        self._sensitive = vocabulary.mask(SENSITIVE)

    def of(self, items: ItemTable, lane: int, basis: int, evidence: int) -> Why:
        """The reason of one line of a list.

        Args:
            items: of the snapshot that the codes belong to.
            lane: code of schema.LANES.
            basis: grants that the chosen alternative relies on.
            evidence: code of the item that justifies it, or NO_ITEM.
        """
        name = LANES[lane]
        if evidence == NO_ITEM or name not in _WITH_EVIDENCE or not self._may_name(items, basis, evidence):
            return _PLAIN[name]
        title = items.title(evidence)
        if not title:
            return _PLAIN[name]
        code, words = _WITH_EVIDENCE[name]
        # Where nothing but purchases was relied on, the evidence is a purchase.
        if name in ("two_tower", "similar") and basis & self._profile and not basis & self._beyond_purchases:
            code, words = _BOUGHT
        return Why(code, words.format(title), (items.id_of(evidence),), causal=True)

    def _may_name(self, items: ItemTable, basis: int, evidence: int) -> bool:
        return not items.sensitive[evidence] or bool(basis & self._sensitive)


def popular_in(categories: tuple[str, ...]) -> Why:
    """The reason of a popular item where the caller asked for certain categories."""
    return (
        Why("popular_in_category", f"Popular in {', '.join(categories)}") if len(categories) == 1 else _PLAIN["popular"]
    )


SIMILAR = Why("similar_item", "Like the one you look at")
