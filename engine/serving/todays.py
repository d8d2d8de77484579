"""What somebody's events of today say, as far as their grants allow: in the codes and bits of one snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.consent.vocabulary import Vocabulary
from engine.kernels.encode_user import Scale
from engine.live import Today
from engine.policy import allowed
from engine.schema import DELICATE, EVENTS, PURCHASE, TODAY
from engine.snapshot import ItemTable

_LIKE, _DISMISS, _DISMISS_CATEGORY, _RETURN, _GIFT, _IMPRESSION = (
    EVENTS.index(name) for name in ("like", "dismiss", "dismiss_category", "return", "gift", "impression")
)
_HIDES = (PURCHASE, _DISMISS)  # whatever the night says
_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Session:
    """How today's looks lead to other items. trust: what a score is multiplied with beside other lanes'. half_life: hours."""

    trust: float = 0.2
    half_life: float = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class Todays:
    """What is left of the events once the grants have been asked.

    item, weight, ts, strength (n,): wants that the snapshot does not know yet, oldest first; how much each weighs, when it was,
    microseconds since the epoch, and how much it still counts in a session. bits: grants that all of it relies on, schema.TODAY
    included. hidden: items, ascending, that are done with. dismissed: codes of ItemTable.paths. shown, times: items, ascending,
    that were shown and not opened, and how often. gifts: items whose last stored purchase was for somebody else. used, lacking:
    events that count, and those that grants are missing for. trust: of the session lane.
    """

    item: NDArray[np.int32]
    weight: NDArray[np.float32]
    ts: NDArray[np.int64]
    strength: NDArray[np.float32]
    bits: int
    hidden: NDArray[np.int32]
    dismissed: NDArray[np.int32]
    shown: NDArray[np.int32]
    times: NDArray[np.int32]
    gifts: NDArray[np.int32]
    used: int
    lacking: int
    trust: float


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Reads events for one snapshot.

    items, vocabulary: its own. as_of: the last moment that its night knows of, microseconds since the epoch. scale: by which
    its night weighs events, and which of them hide their item.
    """

    items: ItemTable
    vocabulary: Vocabulary
    as_of: int
    scale: Scale
    session: Session
    recent: int  # microseconds before somebody's last event: what was shown earlier tires nobody

    def read(self, today: Today, granted: int, erased_at: int) -> Todays | None:
        """What the events say; None where none may be used.

        One pass in their order, over some two hundred at most.

        Args:
            granted: mask, of today's events. erased_at: microseconds since the epoch; what was received up to it is forgotten.
        """
        codes = {name: self.items.code_of(name) for name in {*today.items} - {""}}
        sources = {name: code for code, name in enumerate(self.vocabulary.sources)}
        item = np.array([codes.get(name, -1) for name in today.items], np.int64)
        source = np.array([sources.get(name, -1) for name in today.sources], np.int64)
        known = (source >= 0) & (today.received > erased_at)
        group = 2 * source + (today.events != PURCHASE) + DELICATE * (self.items.sensitive[item] & (item >= 0))
        needs = self.vocabulary.group_bases[np.where(known, group, 0)]
        usable = known & allowed(needs, granted)
        if not usable.any():
            return None
        usable &= (today.events != _IMPRESSION) | (today.ts > today.ts.max() - self.recent)
        weight: NDArray[np.float64] = np.asarray(self.scale.event_weights, np.float64)[today.events]
        weight[today.gifts] *= self.scale.gift_weight
        told = _Told()
        for row in np.flatnonzero(usable).tolist():
            self._tell(told, row, today, int(item[row]), weight)
        wants = np.flatnonzero(usable & (weight > 0) & (item >= 0) & (today.ts > self.as_of))
        # The last look counts in full, however long ago it was: what fades is what was looked at before it.
        age = (today.ts[wants].max(initial=0) - today.ts[wants]) / (_HOUR * self.session.half_life)
        shown = sorted(told.shown)
        return Todays(
            item[wants].astype(np.int32),
            weight[wants].astype(np.float32),
            today.ts[wants],
            (weight[wants] * 0.5**age).astype(np.float32),
            int(np.bitwise_or.reduce(needs[usable])) | TODAY,
            np.array(sorted(told.hidden), np.int32),
            np.array(sorted(told.dismissed), np.int32),
            np.array(shown, np.int32),
            np.array([told.shown[code] for code in shown], np.int32),
            np.array(sorted(told.gifts), np.int32),
            int(np.count_nonzero(usable)),
            int(np.count_nonzero(known & ~usable)),
            self.session.trust,
        )

    def _tell(self, told: _Told, row: int, today: Today, item: int, weight: NDArray[np.float64]) -> None:
        """Take one event in; `weight` loses what is taken back."""
        event, category = int(today.events[row]), today.categories[row]
        if event == _DISMISS_CATEGORY:
            path = self.items.category_path(item) if item >= 0 and not category else [category]
            told.dismissed |= {code for name in path[-1:] if (code := self.items.paths.by_name.get(name, -1)) >= 0}
        elif item < 0:
            return
        elif event == _IMPRESSION:
            told.shown[item] = told.shown.get(item, 0) + int(today.counts[row])
        elif event == _RETURN:
            if bought := told.bought.get(item):
                weight[bought.pop()] = 0.0
            if not bought:
                told.hidden.discard(item)
        elif event == _GIFT:
            if bought := told.bought.get(item):
                weight[bought[-1]] = self.scale.event_weights[PURCHASE] * self.scale.gift_weight
            else:
                told.gifts.add(item)
        else:
            told.shown.pop(item, None)
            if event in (PURCHASE, _LIKE):
                # Who wants something of a category wants nothing kept from it.
                told.dismissed -= {*self._path(item)}
            if event == PURCHASE:
                told.bought.setdefault(item, []).append(row)
            if event in _HIDES or event in self.scale.hides:
                told.hidden.add(item)

    def _path(self, item: int) -> list[int]:
        paths = self.items.paths
        return [int(code) for code in paths.codes[paths.offsets[item] : paths.offsets[item + 1]]]


class _Told:
    """What the events so far come to; bought: rows of purchases by item."""

    def __init__(self) -> None:
        self.hidden: set[int] = set()
        self.dismissed: set[int] = set()
        self.gifts: set[int] = set()
        self.shown: dict[int, int] = {}
        self.bought: dict[int, list[int]] = {}
