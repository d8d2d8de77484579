"""The shop of one fit, as lanes, snapshot and evaluation need it, from what the stages before left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine import schema
from engine.ranking.kinds import Kinds
from engine.ranking.lanes.popular import PopularLane, sold_in
from engine.ranking.people import Shop
from jobs.embed import load_items
from jobs.ingest import popularity, sensitive
from jobs.night import Night, table
from jobs.stage import finished

_OPEN_FROM, _OPEN_UNTIL = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Shelves:
    """Shop: what lanes read. root (I,): root category or -1. categories: their names. sensitive (I,). people (I,): who wanted it.
    neighbour, likeness: (I, N) with all the neighbours that were counted. kinds: all categories, the roots by the same codes.
    """

    shop: Shop
    root: NDArray[np.int32]
    categories: list[str]
    sensitive: NDArray[np.bool_]
    people: NDArray[np.int64]
    neighbour: NDArray[np.int32]
    likeness: NDArray[np.float32]
    kinds: Kinds


def load_shelves(this: Night, part: str) -> Shelves:
    """Read the stages ingest and embed."""
    embed = finished(this.folder, "embed")
    vectors, _ = load_items(this.folder / "embed", part)
    catalogue = table(this.folder / "ingest" / "catalogue.arrow")
    counted = table(this.folder / "embed" / f"shop-{part}.arrow")
    neighbour, likeness = _matrix(counted["neighbour"]), _matrix(counted["likeness"])
    wants = popularity(this, part)
    weight, people = np.zeros(len(vectors)), np.zeros(len(vectors), np.int64)
    weight[wants["item"].to_numpy()] = wants["weight"].to_numpy()
    people[wants["item"].to_numpy()] = wants["people"].to_numpy()
    shares = weight / max(weight.sum(), 1e-12)
    rising = np.lexsort((np.arange(len(shares)), shares))
    tail = np.zeros(len(shares), bool)
    tail[rising[np.cumsum(shares[rising]) <= this.settings.tail_share]] = True
    paths = catalogue["categories"].to_pylist()
    roots = [path[0] if path else None for path in paths]
    categories = sorted({name for name in roots if name is not None})
    place = {name: code for code, name in enumerate(categories)}
    keep = this.settings.neighbours
    shop = Shop(
        vectors,
        np.ascontiguousarray(neighbour[:, :keep]),
        np.ascontiguousarray(likeness[:, :keep]),
        counted["hazard"].to_numpy(),
        shares,
        tail,
        embed.shards[f"shop-{part}"]["fresh_rate"],
    )
    return Shelves(
        shop,
        np.array([place.get(name, -1) if name else -1 for name in roots], np.int32),
        categories,
        sensitive(catalogue),
        people,
        neighbour,
        likeness,
        Kinds.of(paths, categories),
    )


def item_table(this: Night, shelves: Shelves) -> pa.Table:
    """schema.items_schema of a snapshot."""
    catalogue = table(this.folder / "ingest" / "catalogue.arrow").combine_chunks()
    shop = shelves.shop
    fields = schema.items_schema(shop.vectors.shape[1], shop.neighbour.shape[1])
    creators = catalogue["creator"].combine_chunks().dictionary_encode()
    columns: dict[str, Any] = {
        "item_id": catalogue["item_id"],
        "title": pc.fill_null(catalogue["title"], ""),
        "categories": _no_nulls(catalogue["categories"]),
        "root_category": shelves.root,
        "creator": pc.fill_null(creators.indices, -1),
        "price": pc.fill_null(catalogue["price"], float("nan")),
        "sensitive": shelves.sensitive,
        "regions": _no_nulls(catalogue["regions"]),
        "available_from": pc.fill_null(catalogue["available_from"].cast(pa.int64()), _OPEN_FROM),
        "available_until": pc.fill_null(catalogue["available_until"].cast(pa.int64()), _OPEN_UNTIL),
        "popularity": shop.popularity,
        "tail": shop.tail,
        "vector": shop.vectors,
        "neighbour": shop.neighbour,
        "likeness": shop.likeness,
    }
    arrays = []
    for field in fields:
        value = columns[field.name]
        if pa.types.is_fixed_size_list(field.type):
            arrays.append(
                pa.FixedSizeListArray.from_arrays(pa.array(value.ravel(), field.type.value_type), type=field.type)
            )
        elif isinstance(value, np.ndarray):
            arrays.append(pa.array(value).cast(field.type))
        else:
            arrays.append((value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value).cast(field.type))
    return pa.table(arrays, schema=fields)


def fallback_table(this: Night, shelves: Shelves) -> pa.Table:
    """schema.FALLBACK: the lists that rely on nobody's grant."""
    lane = PopularLane(**this.settings.rank.lanes.get("popular", {}))
    regions = table(this.folder / "ingest" / "catalogue.arrow")["regions"]
    return lane.lists(
        shelves.shop.popularity, shelves.people, shelves.root, len(shelves.categories), sold_in(regions.to_pylist())
    )


def _matrix(column: pa.ChunkedArray) -> Any:
    whole = column.combine_chunks()
    return whole.flatten().to_numpy().reshape(len(whole), whole.type.list_size)


def _no_nulls(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.array([part or [] for part in whole.to_pylist()], pa.list_(pa.string())) if whole.null_count else whole
