"""What is known of an item besides who wanted it: category path, creator, price and words, as a sparse bag of features.

Each field is normalised on its own, so that a long title does not drown the category. Words weigh by their rarity
(inverse document frequency, Spärck Jones 1972, doi:10.1108/eb026526); words and word pairs are hashed into a fixed number of
rows (Weinberger et al. 2009, doi:10.1145/1553374.1553516), so that new words need no new model.
"""

from __future__ import annotations

import html
import zlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

PRICE_BANDS = 12
_COMMON = 2  # a feature that only one item has says nothing about another


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """Sparse features of I items: row i holds `rows[starts[i]:starts[i+1]]` with `weights` beside them."""

    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    size: int

    def take(self, items: NDArray[np.integer]) -> Bag:
        """The bag of some items, in their order."""
        lengths = np.diff(self.starts)[items]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.arange(starts[-1]) - np.repeat(starts[:-1] - self.starts[items], lengths)
        return Bag(starts, self.rows[flat], self.weights[flat], self.size)

    def packed(self) -> Bag:
        """The same over the rows in use alone, in their order: a table of features need not hold what no item has."""
        used, rows = np.unique(self.rows, return_inverse=True)
        return Bag(self.starts, rows, self.weights, len(used))

    def reversed(self) -> Bag:
        """The other way round: for each row, the items that have it."""
        order = np.argsort(self.rows, kind="stable")
        items = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        starts = np.searchsorted(self.rows[order], np.arange(self.size + 1))
        return Bag(starts, items[order], self.weights[order], len(self.starts) - 1)


def describe(catalogue: pa.Table, hashed: int) -> Bag:
    """The features of a catalogue.

    Args:
        catalogue: schema.CATALOGUE.
        hashed: rows of the feature table; a power of two is not required.

    Returns:
        A bag over `hashed` rows; an item without any content has an empty part.
    """
    frame = pl.DataFrame(pl.from_arrow(catalogue)).with_row_index("item")
    fields = pl.concat([_categories(frame), _creators(frame), _prices(frame), _words(frame)])
    common = fields.with_columns(items=pl.len().over("feature")).filter(pl.col("items") >= _COMMON)
    # Sums of floats depend on their order: sorted, they are the same bytes every time.
    common = common.sort("item", "field", "feature")
    rarity = (pl.lit(len(frame)) / pl.col("items")).log() + 0.1
    weighed = common.with_columns(weight=pl.when(pl.col("field") >= 3).then(rarity).otherwise(1.0)).with_columns(
        weight=pl.col("weight") / (pl.col("weight") ** 2).sum().sqrt().over("item", "field")
    )
    names = weighed["feature"].unique().sort()
    # zlib's CRC is stable across versions and machines, which a library's own hash is not; the loop is over distinct words.
    places = [zlib.crc32(name.encode()) % hashed for name in names.to_list()]
    weighed = weighed.join(pl.DataFrame({"feature": names, "row": pl.Series(places, dtype=pl.Int64)}), on="feature")
    weighed = weighed.sort("item", "field", "row", "feature")
    counts = np.bincount(weighed["item"].to_numpy(), minlength=len(frame))
    return Bag(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        weighed["row"].to_numpy().astype(np.int64),
        weighed["weight"].to_numpy().astype(np.float32),
        hashed,
    )


def _feature(frame: pl.DataFrame, field: int, feature: pl.Expr) -> pl.DataFrame:
    prefixed = pl.format("{}:{}", pl.lit(field), feature)
    return (
        frame.select(pl.col("item").cast(pl.Int64), pl.lit(field).alias("field"), prefixed.alias("feature"))
        .filter(pl.col("feature").is_not_null())
        .unique(maintain_order=True)
    )


def _categories(frame: pl.DataFrame) -> pl.DataFrame:
    """Every prefix of the path, so that near categories share rows."""
    steps = frame.select("item", "categories").explode("categories").drop_nulls()
    deepest = frame.select(pl.col("categories").list.len().max()).item() or 0
    parts = [
        _feature(
            frame.filter(pl.col("categories").list.len() >= depth),
            0,
            pl.col("categories").list.head(depth).list.join(">"),
        )
        for depth in range(1, deepest + 1)
    ]
    # A flat set of tags (genres, say) is not a path: each name counts alone as well.
    return pl.concat([*parts, _feature(steps, 0, pl.col("categories"))])


def _creators(frame: pl.DataFrame) -> pl.DataFrame:
    return _feature(frame, 1, pl.col("creator"))


def _prices(frame: pl.DataFrame) -> pl.DataFrame:
    prices = frame["price"].to_numpy().astype(np.float64)
    known = np.isfinite(prices)
    edges = np.quantile(prices[known], np.linspace(0, 1, PRICE_BANDS + 1)[1:-1]) if known.any() else np.empty(0)
    band = pl.Series("band", np.where(known, np.searchsorted(edges, prices), -1))
    return _feature(frame.with_columns(band).filter(pl.col("band") >= 0), 2, pl.col("band"))


def _words(frame: pl.DataFrame) -> pl.DataFrame:
    words = pl.concat_str(pl.col("title").fill_null(""), pl.lit(" "), pl.col("text").fill_null(""))
    marked = pl.when(words.str.contains("&")).then(words)  # few are, and only these are worth a call from Python each
    tidy = frame.select("item", text=pl.coalesce(marked.map_elements(html.unescape, pl.String), words))
    each = (
        tidy.with_columns(word=pl.col("text").str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+"))
        .explode("word")
        .drop_nulls("word")
        .with_columns(following=pl.col("word").shift(-1).over("item"))
    )
    pairs = each.drop_nulls("following").select("item", word=pl.format("{} {}", "word", "following"))
    return pl.concat([_feature(each, 3, pl.col("word")), _feature(pairs, 4, pl.col("word"))])
