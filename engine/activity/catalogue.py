"""The catalogue: one row an item, sorted by id, so that the row number is the item's code."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from engine.activity.categories import PREFIX
from engine.activity.files import locate
from engine.activity.mapping import DataSettings
from engine.activity.parquet import FLAG, MAYBE_TEXT, MOMENT, NUMBER, TEXT, TEXTS, as_time, read
from engine.errors import DataError
from engine.schema import CATALOGUE

_KINDS = {
    "item_id": TEXT,
    "title": MAYBE_TEXT,
    "text": MAYBE_TEXT,
    "categories": TEXTS,
    "creator": MAYBE_TEXT,
    "price": NUMBER,
    "sensitive": TEXTS,
    "regions": TEXTS,
    "available_from": MOMENT,
    "available_until": MOMENT,
    "added": MOMENT,
}


def read_catalogue(data: DataSettings) -> tuple[pa.Table, pa.Array]:
    """Read and check the catalogue.

    Returns:
        schema.CATALOGUE of the items on offer, sorted by item_id; and the ids that `keep_items` takes off it.

    Raises:
        ContractError: a column is missing or mistyped.
        DataError: an id is missing or stands twice, a price is infinite, or nothing is on offer.
    """
    filesystem, root = locate(data.path)
    path = f"{root}/{data.catalogue}"
    wanted = {name: (data.item_column(name), kind) for name, kind in _KINDS.items() if data.item_column(name)}
    if data.keep_items:
        wanted["keep"] = (data.keep_items, FLAG)
    mapped = tuple(data.item_columns) if data.item_columns else ("item_id", "title")
    table = read(filesystem, path, wanted, (*mapped, *(["keep"] if data.keep_items else [])))
    for name in ("available_from", "available_until", "added"):
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, as_time(table[name], "us", data.time_zone))
    frame = pl.DataFrame(table)
    if frame["item_id"].null_count() or (frame["item_id"] == "").any():
        raise DataError(f"{path}: a row has no item_id.", "Give each item an id, or leave the row out.")
    if frame["item_id"].str.starts_with(PREFIX).any():
        raise DataError(f"{path}: an item_id begins as categories do in parts of the log.", "Take NUL out of item ids.")
    twice = frame.filter(pl.col("item_id").is_duplicated())["item_id"]
    if len(twice):
        raise DataError(f"{path}: item '{twice[0]}' stands there more than once.", "Keep one row an item.")
    if "price" in frame.columns:
        endless = frame.filter(pl.col("price").is_infinite())["item_id"]
        if len(endless):
            raise DataError(f"{path}: the price of item '{endless[0]}' is infinite.", "Correct it, or leave it empty.")
        frame = frame.with_columns(pl.col("price").fill_nan(None))
        if data.coarsen.price_bands:
            frame = frame.with_columns(_banded(data.coarsen.price_bands))
    if "categories" in frame.columns:
        named = pl.element().filter(pl.element() != "")  # a nameless step leads nowhere
        frame = frame.with_columns(pl.col("categories").list.eval(named))
    offered = frame["keep"].fill_null(False) if data.keep_items else pl.repeat(True, len(frame), eager=True)
    dropped = frame.filter(~offered)["item_id"]
    frame = frame.filter(offered)
    if frame.is_empty():
        raise DataError(f"{path}: no item is on offer.", "Check data.catalogue and data.keep_items.")
    frame = frame.sort("item_id")
    columns = [
        frame[name].to_arrow().cast(CATALOGUE.field(name).type)
        if name in frame.columns
        else pa.nulls(len(frame), CATALOGUE.field(name).type)
        for name in CATALOGUE.names
    ]
    return pa.Table.from_arrays(columns, schema=CATALOGUE), dropped.to_arrow().cast(pa.string())


def _banded(bands: int) -> pl.Expr:
    """Prices told by the middle of their band, a power of ten having so many; what is free stays free."""
    price = pl.col("price")
    band = (price.log10() * bands).floor()
    return pl.when(price > 0).then((10.0 ** ((band + 0.5) / bands)).round(2)).otherwise(price).alias("price")
