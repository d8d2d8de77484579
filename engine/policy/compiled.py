"""The compiled halves of the chain and of its filters. All in one file: a compiled cache knows the changes of its own alone.

They hold the interpreter's lock: each takes about a microsecond, and who gives the lock away in a busy server may wait for
milliseconds until it comes round again.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types

from engine.consent.vocabulary import MAX_BITS
from engine.kernels.rerank.compiled import inner
from engine.schema import LANES, NEVER, TODAY

# Compiled when imported, so before a server listens; read-only, for what is mapped from a snapshot is.
_BITS, _I1, _I8, _U1, _U8, _F1, _U82, _F2, _U12, _I2 = (
    types.Array(kind, ndim, "C", readonly=True)
    for kind, ndim in (
        (types.bool_, 1), (types.int32, 1), (types.int64, 1), (types.uint8, 1), (types.uint64, 1), (types.float32, 1),
        (types.uint64, 2), (types.float32, 2), (types.uint8, 2), (types.int32, 2),
    )
)  # fmt: skip
_MASK, _KEPT, _COUNT = types.int64, types.int64[::1], types.int64
_several: Any = types.Tuple
_COLUMNS = (types.int32[::1], types.uint8[::1], types.uint64[::1], types.float32[::1], types.int32[::1])

TIMED, LIMITED = 1, 2  # of an item's flags: sold at some times only, in some regions only
# No vocabulary reaches past these bits. Masking to them keeps schema.NEVER out whatever a caller passes as granted.
GRANTABLE: Final = (1 << MAX_BITS) - 1
_NOTHING, _TODAY, _NEVER = np.uint64(0), np.uint64(TODAY), np.uint64(NEVER)
_USUAL = np.uint8(LANES.index("usual"))  # this lane is about buying again
_SPREAD = np.uint32(2654435769)  # 2^32 over the golden ratio: near codes fall far apart (Knuth 1998, section 6.4)
_STRANGE = "an item code lies outside the snapshot"


@inner()
def _withheld(granted: Any) -> Any:
    return ~np.uint64(granted)


@inner()
def _withheld_today(granted: Any, granted_today: Any) -> Any:
    """Of bases with schema.TODAY; all bits where nothing of today may be used."""
    return ~(np.uint64(granted | granted_today) | _TODAY) if granted_today else _NEVER


@inner()
def _inside(basis: Any, withheld: Any, withheld_today: Any) -> Any:
    return (basis & withheld) == _NOTHING or (
        basis >= _TODAY and basis != _NEVER and (basis & withheld_today) == _NOTHING
    )


@njit(_COUNT(_U8, _MASK, _MASK), cache=True)
def outside(basis: Any, granted: Any, granted_today: Any) -> Any:
    """How many bases do not lie inside the grants; masks up to GRANTABLE."""
    withheld, withheld_today = _withheld(granted), _withheld_today(granted, granted_today)
    found = 0
    for each in basis:
        found += not _inside(each, withheld, withheld_today)
    return found


@inner()
def _settle(basis: Any, score: Any, ways: Any, granted: Any, granted_today: Any, row: Any, way: Any, best: Any) -> Any:
    """The best allowed way of each candidate that has one: how many, and whether their scores fall."""
    withheld, withheld_today = _withheld(granted), _withheld_today(granted, granted_today)
    falling: Any = True
    found, last = 0, np.float32(np.inf)
    for i in range(len(basis) // ways):
        top, at = np.float32(-np.inf), -1
        for k in range(i * ways, i * ways + ways):
            # A score that is no number, of a broken model, is above none.
            if score[k] > top and _inside(basis[k], withheld, withheld_today):
                top, at = score[k], k
        if at >= 0:
            top += np.float32(0)  # -0.0 is as good as 0.0
            row[found], way[found], best[found] = i, at, top
            falling &= top <= last
            last = top
            found += 1
    return found, falling


@inner()
def _order(bits: Any, keys: Any, rows: Any, counts: Any) -> Any:
    """Radix sort, stable, of float32 scores by their bits: the positions, highest score first, in rows[0]."""
    count = len(bits)
    for i in range(count):
        own = bits[i]
        # Bits of positive numbers rise with them, and of negative ones fall; turned round, as the highest comes first.
        key = own if own >> np.uint32(31) else own ^ np.uint32(0x7FFFFFFF)
        keys[0, i], rows[0, i] = key, i
        for byte in range(4):
            counts[byte, (key >> np.uint32(8 * byte)) & np.uint32(255)] += 1
    for byte in range(4):
        shift, source, target = np.uint32(8 * byte), byte & 1, 1 - (byte & 1)
        before = 0
        for each in range(256):
            before, counts[byte, each] = before + counts[byte, each], before
        for i in range(count):
            key = keys[source, i]
            slot = (key >> shift) & np.uint32(255)
            place = counts[byte, slot]
            counts[byte, slot] = place + 1
            keys[target, place], rows[target, place] = key, rows[source, i]


@njit(nogil=True)
def _resolved(item: Any, basis: Any, score: Any, granted: Any, granted_today: Any) -> Any:
    count = len(item)
    if len(score) != len(basis) or (count == 0 and len(basis) > 0) or (count > 0 and len(basis) % count):
        raise ValueError("columns of candidates differ in length")
    ways = len(basis) // count if count else 1
    row, way, best = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.float32)
    found, falling = _settle(basis, score, max(1, ways), granted, granted_today, row, way, best)
    items = np.empty(found, np.int32)
    if falling:
        for i in range(found):
            items[i] = item[np.uint64(row[i])]
        return items, way[:found]
    rows = np.empty((2, found), np.int32)
    _order(best[:found].view(np.uint32), np.empty((2, found), np.uint32), rows, np.zeros((4, 256), np.int32))
    chosen = np.empty(found, np.int64)
    for i in range(found):
        at = np.uint64(rows[0, i])
        items[i], chosen[i] = item[np.uint64(row[at])], way[at]
    return items, chosen


@njit([_several((types.int32[::1], _KEPT))(_I1, basis, score, _MASK, _MASK)
       for basis, score in ((_U8, _F1), (_U82, _F2))], cache=True)  # fmt: skip
def resolve(item: Any, basis: Any, score: Any, granted: Any, granted_today: Any) -> Any:
    """Candidates with an allowed way, best score first: their items, and where in the flattened columns their way is."""
    return _resolved(item, basis.reshape(basis.size), score.reshape(score.size), granted, granted_today)


@inner()
def _slot(item: Any, items: Any, holder: Any, shift: Any) -> Any:
    """Where an item is, or would be, among those of a hash table that holds their positions."""
    mask = len(holder) - 1
    slot = np.int64(np.uint32(np.uint32(item) * _SPREAD) >> shift)
    while holder[slot] >= 0 and items[holder[slot]] != item:
        slot = (slot + 1) & mask
    return slot


@inner()
def _bits_for(count: Any) -> Any:
    bits = 4
    while 1 << bits < 2 * count:
        bits += 1
    return bits


@njit(nogil=True)
def _table_of(items: Any) -> Any:
    """Positions by item, and the shift of their hash; of equal items the first."""
    bits = _bits_for(len(items))
    holder, shift = np.full(1 << bits, -1, np.int32), np.uint32(32 - bits)
    for i in range(len(items)):
        slot = _slot(items[i], items, holder, shift)
        if holder[slot] < 0:
            holder[slot] = i
    return holder, shift


@inner()
def _behind(score: Any, lowest: Any, top: Any) -> Any:
    """A score of anybody's list on the scale of a person's: below their lowest, whose own scale it does not share."""
    if lowest > np.float32(0):
        return np.float32(np.float64(score) * (0.999 * np.float64(lowest) / max(np.float64(top), 1e-30)))
    return np.float32(np.float64(lowest) - 1.0 - (np.float64(top) - np.float64(score)))


@njit([_several((*_COLUMNS, _COUNT, _COUNT))(_I1, lane, basis, score, evidence, _I1, _U1, _U8, _F1, _I1, _MASK, _MASK)
       for lane, basis, score, evidence in ((_U1, _U8, _F1, _I1), (_U12, _U82, _F2, _I2))], cache=True)  # fmt: skip
def join(
    item: Any, lane: Any, basis: Any, score: Any, evidence: Any,
    rest: Any, rest_lane: Any, rest_basis: Any, rest_score: Any, rest_evidence: Any, granted: Any, granted_today: Any,
) -> Any:  # fmt: skip
    """The columns of a person's resolved candidates and, behind them, of what else anybody may see; with how many of the
    latter there were that the person's do not hold, and how many are the person's own."""
    size, others = basis.size, len(rest)
    if lane.size != size or evidence.size != size:
        raise ValueError("columns of candidates differ in length")
    if len(rest_lane) != others or len(rest_basis) != others or len(rest_score) != others:
        raise ValueError("columns of anybody's list differ in length")
    if len(rest_evidence) != others:
        raise ValueError("columns of anybody's list differ in length")
    own, way = _resolved(item, basis.reshape(size), score.reshape(size), granted, granted_today)
    lanes, bases, scores, reasons = lane.reshape(size), basis.reshape(size), score.reshape(size), evidence.reshape(size)
    holder, shift = _table_of(own)
    count, unlike, top = len(own), 0, np.float32(-np.inf)
    stays = np.empty(others, np.int32)
    for i in range(others):
        if holder[_slot(rest[i], own, holder, shift)] < 0:
            unlike += 1
            if rest_score[i] > np.float32(-np.inf):
                stays[count - len(own)] = i
                count += 1
                top = max(top, rest_score[i])
    a, b, c = np.empty(count, np.int32), np.empty(count, np.uint8), np.empty(count, np.uint64)
    d, e = np.empty(count, np.float32), np.empty(count, np.int32)
    for i in range(len(own)):
        at = np.uint64(way[i])
        a[i], b[i], c[i], d[i], e[i] = own[i], lanes[at], bases[at], scores[at], reasons[at]
    lowest = d[len(own) - 1] if len(own) else np.float32(0)
    for i in range(len(own), count):
        at = np.uint64(stays[i - len(own)])
        a[i], b[i], c[i], e[i] = rest[at], rest_lane[at], rest_basis[at], rest_evidence[at]
        d[i] = _behind(rest_score[at], lowest, top) if len(own) else rest_score[at]
    return a, b, c, d, e, unlike, len(own)


@inner()
def _known(items: Any, count: Any) -> Any:
    """Whether nothing is read from outside a column of the item table."""
    lowest, highest = np.int32(0), np.int32(-1)
    for each in items:
        lowest, highest = min(lowest, each), max(highest, each)
    return lowest >= 0 and highest < count


@njit([_several((_KEPT, _COUNT, _COUNT, _COUNT))(_I1, _U1, _I8, _I8, _I1, _BITS, types.int64)], cache=True)
def available(items: Any, flags: Any, since: Any, until: Any, places: Any, covered: Any, now: Any) -> Any:
    """Positions of what can be had, how many are out of time, how many out of place, and of how many the place is not known.

    Args:
        flags, since, until, places: (I,) of the catalogue; places are rows of covered, others are not known yet.
        covered: (P,) whether a place's items are sold where the person is.
    """
    if not _known(items, min(len(flags), len(since), len(until), len(places))):
        raise IndexError(_STRANGE)
    kept = np.empty(len(items), np.int64)
    count, late, elsewhere, unknown = 0, 0, 0, 0
    for i in range(len(items)):
        at = np.uint64(items[i])
        flag = flags[at]
        if flag & TIMED and (since[at] > now or until[at] <= now):
            late += 1
            continue
        if flag & LIMITED:
            place = places[at]
            if place < 0 or place >= len(covered):
                unknown += 1
                continue
            if not covered[place]:
                elsewhere += 1
                continue
        kept[count] = i
        count += 1
    return kept[:count], late, elsewhere, unknown


@njit([_several((_KEPT, types.int32[::1]))(_I1, _U1, _I1, _I1, _I1, _U8, _MASK, _BITS)], cache=True)
def unwanted(
    items: Any, lanes: Any, exclude: Any, hidden: Any, seen: Any, seen_basis: Any, granted: Any, matching: Any
) -> Any:
    """Positions of what is left, and how many went as excluded, hidden, of another category, and seen.

    Args:
        lanes: (n,) of the items. seen, seen_basis: (s,) with what each relies on.
        matching: (n,) whether the category is one that was asked for; (0,): none was.
    """
    count = len(items)
    if len(lanes) != count or len(seen) != len(seen_basis) or (len(matching) != 0 and len(matching) != count):
        raise ValueError("columns of a slate differ in length")
    holder, shift = _table_of(items)
    reason = np.zeros(count, np.uint8)
    for codes, why in ((exclude, 1), (hidden, 2)):
        for code in codes:
            at = holder[_slot(code, items, holder, shift)]
            if at >= 0 and reason[at] == 0:
                reason[at] = why
    for i in range(len(matching)):
        if reason[i] == 0 and not matching[i]:
            reason[i] = 3
    # Hiding an item says that it was bought: that is profiling too, and needs the same grants.
    withheld = _withheld(granted)
    for i in range(len(seen)):
        if (seen_basis[i] & withheld) == _NOTHING:
            at = holder[_slot(seen[i], items, holder, shift)]
            if at >= 0 and reason[at] == 0 and lanes[at] != _USUAL:
                reason[at] = 4
    kept, left = np.empty(count, np.int64), 0
    counts = np.zeros(5, np.int32)
    for i in range(count):
        kept[left] = i
        left += reason[i] == 0
        counts[reason[i]] += 1
    return kept[:left], counts


@njit(_KEPT(_I1, _I1, types.int64, types.int64), cache=True)
def beyond(items: Any, values: Any, most: Any, limit: Any) -> Any:
    """Positions of the first `most` items of each value, and behind them of as many others as a list of `limit` lacks.

    Args:
        values: (I,) of the catalogue; negative ones are not capped.
    """
    if not _known(items, len(values)):
        raise IndexError(_STRANGE)
    count = len(items)
    bits = _bits_for(count)
    holder, tally, shift = np.full(1 << bits, -1, np.int32), np.zeros(1 << bits, np.int32), np.uint32(32 - bits)
    own, kept, over = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.int32)
    inside, waiting = 0, 0
    for i in range(count):
        own[i] = value = values[np.uint64(items[i])]
        full = False
        if value >= 0:
            slot = _slot(value, own, holder, shift)
            holder[slot] = i  # any candidate that has the value
            tally[slot] += 1
            full = tally[slot] > most
        kept[inside], over[waiting] = i, i
        inside += not full
        waiting += full
    back = max(0, min(limit - inside, waiting))
    for i in range(back):
        kept[inside + i] = over[i]
    return kept[: inside + back]


@njit(
    [_several((types.int32[::1], types.float64[::1]))(_I1, _I1, _I1, _F1, _U8, _MASK, _MASK, types.float64)], cache=True
)
def targets(
    items: Any, roots: Any, category: Any, share: Any, basis: Any, granted: Any, granted_today: Any, burst: Any
) -> Any:
    """The root category of each item, and the share of each category in what may be known of a person; (0,) where that is
    nothing.

    Args:
        roots: (I,) of the catalogue. category, share, basis: (m,) a person's mix. burst: what no share may pass.
    """
    if not _known(items, len(roots)):
        raise IndexError(_STRANGE)
    if len(share) != len(category) or len(basis) != len(category):
        raise ValueError("columns of a mix differ in length")
    kinds = np.empty(len(items), np.int32)
    widest = np.int32(-1)
    for i in range(len(items)):
        kinds[i] = roots[np.uint64(items[i])]
        widest = max(widest, kinds[i])
    withheld, withheld_today = _withheld(granted), _withheld_today(granted, granted_today)
    for each in category:
        widest = max(widest, each)
    found, total = np.zeros(widest + 1, np.float64), 0.0
    for i in range(len(category)):
        if category[i] >= 0 and share[i] > np.float32(0) and _inside(basis[i], withheld, withheld_today):
            found[np.uint64(category[i])] += np.float64(share[i])
            total += np.float64(share[i])
    if not 0.0 < total < np.inf:
        return kinds, found[:0]
    left = 0.0
    for i in range(len(found)):
        found[i] = min(found[i] / total, burst)
        left += found[i]
    for i in range(len(found)):
        found[i] /= left
    return kinds, found
