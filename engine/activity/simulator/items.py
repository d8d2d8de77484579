"""The items of the shop: shelf, maker, style, popularity, and the catalogue that tells of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.activity.simulator.draws import (
    Bools,
    Floats,
    Ints,
    Stream,
    generator,
    pick,
    pick_within,
    serial_names,
    unit,
)
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shelves import MAKERS, REGIONS, ROOTS, SHELVES, STYLE_WORDS, STYLES
from engine.schema import CATALOGUE

ALWAYS = 1 << 30  # a day that never comes
_LEAVES = len(SHELVES)
ROOT_OF = np.array([ROOTS.index(shelf.root) for shelf in SHELVES])
PERIOD_OF = np.array([shelf.period for shelf in SHELVES])
_ITEMS_A_MAKER = 12
_MAKER_LIKENESS = 0.8  # how much of an item's style is its maker's, against a noise of length 1
_NO_MAKER = 0.04
_QUALITY_SPREAD = 0.4
_BAIT_LURE, _BAIT_LOSS = 1.2, 2.2


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """I items, those of a shelf side by side: shelf s has rows starts[s]..starts[s+1]."""

    ids: pa.Array
    starts: Ints  # (L + 1,)
    leaf: Ints
    popularity: Floats  # sums to 1
    style: Floats  # (I, STYLES), rows of length 1
    price: Floats
    first_day: Ints  # on sale from this day of the log, and before `last_day`
    last_day: Ints
    ending: Bools  # end for good on `last_day`, which nobody knows before
    clickbait: Bools
    lure: Floats  # log-odds that the item adds to a click
    quality: Floats  # log-odds that it adds to satisfaction
    sold_in: Bools  # (I, len(REGIONS))
    evergreen: Bools  # sold everywhere and always, not sensitive, and no clickbait
    everything: pa.Table  # schema.CATALOGUE, one row an item, in their order
    shuffled: Ints  # the order of the catalogue

    def on_sale(self, day: int) -> Bools:
        """(I,) what can be bought on a day, somewhere."""
        return np.asarray((self.first_day <= day) & (day < self.last_day))

    def catalogue(self, day: int) -> pa.Table:
        """What the shop knows of its items at the end of a day (schema.CATALOGUE), rows shuffled.

        What comes later is not in it, and what will end for good does not say so yet.
        """
        rows = self.shuffled[self.first_day[self.shuffled] <= day]
        column = CATALOGUE.get_field_index("available_until")
        told = ~self.ending | (self.last_day <= day + 1)
        until = pc.if_else(pa.array(told), self.everything[column], pa.scalar(None, CATALOGUE.field(column).type))
        return self.everything.set_column(column, CATALOGUE.field(column), until).take(pa.array(rows))

    @property
    def demand(self) -> Floats:
        """(L,) each shelf's share of the popularity."""
        return np.asarray(np.add.reduceat(self.popularity, self.starts[:-1]))


def stock(settings: ShopSettings) -> Items:
    """Draw the items of a shop. Each shelf has at least one evergreen item."""
    rng, count = generator(settings.seed, Stream.ITEMS), settings.items
    sizes = 1 + rng.multinomial(count - _LEAVES, rng.dirichlet(np.full(_LEAVES, 4.0)))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    leaf = np.repeat(np.arange(_LEAVES), sizes)
    zipf = (1.0 + rng.permutation(count)) ** -settings.popularity_slope
    popularity = np.asarray(zipf / zipf.sum(), np.float64)

    makers = max(2 * len(ROOTS), count // _ITEMS_A_MAKER // len(ROOTS) * len(ROOTS))
    per_root = makers // len(ROOTS)
    first = ROOT_OF[leaf] * per_root
    maker = pick_within(rng.lognormal(0.0, 0.8, makers), first, first + per_root, rng)
    maker_style = unit(rng.standard_normal((makers, STYLES)))
    style = unit(_MAKER_LIKENESS * maker_style[maker] + unit(rng.standard_normal((count, STYLES))))
    median = np.array([shelf.price for shelf in SHELVES])
    price = np.asarray(np.round(median[leaf] * rng.lognormal(0.0, 0.4, count), 2), np.float64)

    chance = rng.random(count)
    chance[starts[:-1]] = 2.0  # the first of each shelf stays plain
    order = np.argsort(chance, kind="stable")[: count - _LEAVES]
    shares = (settings.late_share, settings.limited_share, settings.ended_share)
    late, limited, ended, _ = np.split(order, np.cumsum([round(share * count) for share in shares]))
    regional, dated = limited[::2], limited[1::2]

    first_day, last_day = np.full(count, -ALWAYS), np.full(count, ALWAYS)
    first_day[late] = rng.integers(min(1, settings.days - 1), settings.days, len(late))
    last_day[ended] = rng.integers(1, max(2, settings.days), len(ended))
    first_day[dated] = rng.integers(-10, max(1, settings.days // 2), len(dated))
    last_day[dated] = first_day[dated] + rng.integers(7, 22, len(dated))
    added = np.where(first_day > -ALWAYS, first_day, -rng.integers(1, 700, count))

    sold_in = np.ones((count, len(REGIONS)), bool)
    sold_in[regional] = rng.random((len(regional), len(REGIONS))) < 0.4
    sold_in[regional, rng.integers(len(REGIONS), size=len(regional))] = True

    telling = np.array([bool(shelf.sensitive) for shelf in SHELVES])[leaf]
    reluctance = rng.random(count) + ~telling
    reluctance[starts[:-1]] = 3.0
    sensitive = np.zeros(count, bool)
    shy = min(count - _LEAVES, round(settings.sensitive_share * count))
    sensitive[np.argsort(reluctance, kind="stable")[:shy]] = True

    ids = serial_names("item", rng.permutation(count))
    named = np.where(rng.random(count) < _NO_MAKER, -1, maker)
    columns = {
        "item_id": ids,
        **_words(leaf, style, named, rng),
        "categories": _lists(_names(shelf.root for shelf in SHELVES), _names(shelf.leaf for shelf in SHELVES), leaf),
        "price": pa.array(price),
        "sensitive": _chosen(
            sensitive[:, None], pa.array(np.array([shelf.sensitive or "personal" for shelf in SHELVES])[leaf])
        ),
        "regions": _chosen(sold_in & ~sold_in.all(axis=1, keepdims=True), _names(REGIONS)),
        "available_from": _midnight(settings, first_day, np.isin(np.arange(count), dated)),
        "available_until": _midnight(settings, last_day, last_day < ALWAYS),
        "added": _midnight(settings, added, np.ones(count, bool)),
    }
    everything = pa.table([columns[name] for name in CATALOGUE.names], schema=CATALOGUE)
    clickbait, lure, quality = _promises(settings, starts)
    return Items(
        ids=ids,
        starts=starts,
        leaf=leaf,
        popularity=popularity,
        style=style,
        price=price,
        first_day=first_day,
        last_day=last_day,
        ending=np.isin(np.arange(count), ended),
        clickbait=clickbait,
        lure=lure,
        quality=quality,
        sold_in=sold_in,
        evergreen=(first_day == -ALWAYS) & (last_day == ALWAYS) & sold_in.all(axis=1) & ~sensitive & ~clickbait,
        everything=everything,
        shuffled=rng.permutation(count),
    )


def _promises(settings: ShopSettings, starts: Ints) -> tuple[Bools, Floats, Floats]:
    """Which items are clickbait, and what each adds to a click and to satisfaction, in log-odds."""
    rng = generator(settings.seed, Stream.QUALITY)
    candidates = np.setdiff1d(np.arange(settings.items), starts[:-1])  # the first of each shelf stays plain
    clickbait = np.zeros(settings.items, bool)
    clickbait[rng.permutation(candidates)[: round(settings.clickbait_share * settings.items)]] = True
    spread = _QUALITY_SPREAD * rng.standard_normal(settings.items)
    return clickbait, np.where(clickbait, _BAIT_LURE, 0.0), spread - np.where(clickbait, _BAIT_LOSS, 0.0)


def _names(values: Iterable[str]) -> pa.Array:
    return pa.array(list(values), pa.string())


def _words(leaf: Ints, style: Floats, maker: Ints, rng: np.random.Generator) -> dict[str, pa.Array]:
    """Titles and texts: nouns and details tell the shelf, adjectives the two strongest sides of the style."""
    count = len(leaf)
    strongest = np.argsort(-np.abs(style), axis=1, kind="stable")[:, :2]
    pole = np.take_along_axis(style, strongest, axis=1) > 0
    adjectives = _names(word for dimension in STYLE_WORDS for words in dimension for word in words)
    words = len(STYLE_WORDS[0][0])
    spoken = (strongest * 2 + pole) * words + rng.integers(words, size=(count, 2))
    each = len(SHELVES[0].nouns)
    nouns = _names(noun for shelf in SHELVES for noun in shelf.nouns)
    details = _names(detail for shelf in SHELVES for detail in shelf.details)
    noun = nouns.take(pa.array(leaf * each + rng.integers(each, size=count)))
    chosen = leaf * each + np.argsort(rng.random((count, each)), axis=1)[:, :2].T
    detail, other = (details.take(pa.array(row)) for row in chosen)
    loud, soft = (adjectives.take(pa.array(column)) for column in spoken.T)
    ampersand = len(MAKERS[0]) * len(MAKERS[1])
    series = maker // ampersand
    creator = pc.binary_join_element_wise(
        _names(MAKERS[0]).take(pa.array(maker % len(MAKERS[0]), mask=maker < 0)),
        _names(MAKERS[1]).take(pa.array(maker // len(MAKERS[0]) % len(MAKERS[1]), mask=maker < 0)),
        " & ",
    )
    numbered = pc.binary_join_element_wise(creator, pa.array(series + 1).cast(pa.string()), " ")
    creator = pc.if_else(pa.array(series > 0), numbered, creator)
    text = pc.binary_join_element_wise(
        loud, pc.utf8_lower(soft), pc.utf8_lower(noun), detail, pc.binary_join_element_wise("and", other, " "), " "
    )
    return {"title": pc.binary_join_element_wise(loud, noun, detail, " "), "text": text, "creator": creator}


def _lists(roots: pa.Array, leaves: pa.Array, leaf: Ints) -> pa.Array:
    paths = pa.ListArray.from_arrays(
        np.arange(0, 2 * len(roots) + 1, 2, dtype=np.int32),
        pa.concat_arrays([roots, leaves]).take(pa.array(np.arange(2 * len(roots)).reshape(2, -1).T.ravel())),
    )
    return paths.take(pa.array(leaf))


def _chosen(mask: Bools, names: pa.Array) -> pa.Array:
    """Per row the names of its true columns; with one column, the row's own name."""
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    rows, columns = np.nonzero(mask)
    return pa.ListArray.from_arrays(offsets, names.take(pa.array(rows if mask.shape[1] == 1 else columns)))


def _midnight(settings: ShopSettings, day: Ints, known: Bools) -> pa.Array:
    first = np.datetime64(settings.start, "us").astype(np.int64)
    return pa.array(first + np.where(known, day, 0) * 86_400_000_000, mask=~known).cast(CATALOGUE.field("added").type)


def evergreen_of(items: Items, leaf: Ints, rng: np.random.Generator) -> Ints:
    """(N,) an evergreen item of each shelf asked for, by popularity."""
    return pick_within(items.popularity * items.evergreen, items.starts[leaf], items.starts[leaf + 1], rng)


def any_shelf(demand: Floats, count: int, rng: np.random.Generator) -> Ints:
    """(count,) shelves, by the demand for each (L,)."""
    return pick(np.broadcast_to(demand, (count, _LEAVES)), rng)
