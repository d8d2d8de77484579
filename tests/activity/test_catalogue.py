"""The catalogue is checked whole: a night with half a shop is worse than none."""

from __future__ import annotations

import datetime as dt
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.activity.catalogue import read_catalogue
from engine.activity.mapping import DataSettings
from engine.errors import ContractError, DataError
from engine.schema import CATALOGUE
from tests.activity.logs import as_bytes


def read(folder: Path, columns: dict[str, Any], **settings: Any) -> tuple[pa.Table, pa.Array]:
    pq.write_table(pa.table(columns), folder / "catalogue.parquet")
    return read_catalogue(DataSettings(path=str(folder), **settings))


def test_items_are_sorted_by_id_and_what_a_team_lacks_is_null(tmp_path: Path) -> None:
    items, dropped = read(tmp_path, {"item_id": ["b", "Ä", "a"], "title": ["B", None, "A"]})
    assert items.schema == CATALOGUE
    assert items["item_id"].to_pylist() == ["a", "b", "Ä"]
    assert items["title"].to_pylist() == ["A", "B", None]
    assert all(items[name].null_count == 3 for name in CATALOGUE.names[2:])
    assert len(dropped) == 0
    assert dropped.type == pa.string()


def test_all_of_the_contract_comes_through(tmp_path: Path) -> None:
    row = {
        "item_id": "a",
        "title": "Tea",
        "text": "Green",
        "categories": ["drinks", "tea"],
        "creator": "Mill",
        "price": 2.5,
        "sensitive": ["health"],
        "regions": ["DE", "FR-75"],
        "available_from": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "available_until": dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC),
        "added": dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
    }
    pq.write_table(pa.Table.from_pylist([row], CATALOGUE), tmp_path / "catalogue.parquet")
    assert read_catalogue(DataSettings(path=f"file://{tmp_path}"))[0].to_pylist() == [row]


def test_the_order_of_the_file_does_not_count(tmp_path: Path) -> None:
    rows = [{"item_id": str(number), "title": f"item {number}"} for number in range(123)]
    found = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "catalogue.parquet", row_group_size=10 + seed)
        found.add(as_bytes(read_catalogue(DataSettings(path=str(tmp_path)))[0]))
    assert len(found) == 1


def test_encodings_and_columns_of_nothing_are_no_fault(tmp_path: Path) -> None:
    items, _ = read(
        tmp_path,
        {
            "item_id": pa.array(["b", "a"]).dictionary_encode(),
            "title": pa.array(["B", "A"], pa.large_string()),
            "text": pa.nulls(2),
            "categories": pa.array([["x"], None], pa.large_list(pa.large_string())),
            "price": pa.array([2, None], pa.int64()),
            "sensitive": pa.array([[], None], pa.list_(pa.null())),
            "regions": pa.nulls(2),
            "available_from": pa.nulls(2),
        },
    )
    assert items.schema == CATALOGUE
    assert items["item_id"].to_pylist() == ["a", "b"]
    assert items["categories"].to_pylist() == [None, ["x"]]
    assert items["price"].to_pylist() == [None, 2.0]


def test_a_team_s_own_names_and_zone_are_mapped(tmp_path: Path) -> None:
    clock = pa.array([dt.datetime(2026, 7, 1)], pa.timestamp("ms"))
    items, _ = read(
        tmp_path,
        {"sku": ["a"], "name": ["Tea"], "since": clock, "title": ["not this one"]},
        item_columns={"item_id": "sku", "text": "name", "added": "since"},
        time_zone="Europe/Berlin",
    )
    assert items["title"].to_pylist() == [None]
    assert items["text"].to_pylist() == ["Tea"]
    assert items["added"].to_pylist() == [dt.datetime(2026, 6, 30, 22, tzinfo=dt.UTC)]


def test_only_what_is_to_be_kept_is_on_offer(tmp_path: Path) -> None:
    columns = {"item_id": ["d", "c", "b", "a"], "title": ["", "", "", ""], "product": [True, False, None, True]}
    items, dropped = read(tmp_path, columns, keep_items="product")
    assert items["item_id"].to_pylist() == ["a", "d"]
    assert sorted(dropped.to_pylist()) == ["b", "c"]


@pytest.mark.parametrize("columns", [{"item_id": ["a"]}, {"title": ["A"]}, {"Item_Id": ["a"], "title": ["A"]}])
def test_an_item_needs_an_id_and_a_title(tmp_path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match=r"catalogue\.parquet: column '(item_id|title)': expected string"):
        read(tmp_path, columns)


def test_a_column_that_was_mapped_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="column 'cost'.*no such column"):
        read(tmp_path, {"item_id": ["a"]}, item_columns={"item_id": "item_id", "price": "cost"})
    with pytest.raises(ContractError, match="column 'is_product'.*expected boolean, found string"):
        read(tmp_path, {"item_id": ["a"], "title": ["A"], "is_product": ["yes"]}, keep_items="is_product")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"item_id": ["a", None]}, "no item_id"),
        ({"item_id": ["a", ""]}, "no item_id"),
        ({"item_id": pa.array([b"\xff", b"a"]).view(pa.string())}, "no item_id"),
        ({"item_id": ["twin", "twin"]}, "item 'twin' stands there more than once"),
        ({"item_id": ["a", "b"], "price": [1.0, -math.inf]}, "the price of item 'b' is infinite"),
    ],
)
def test_a_faulty_item_stops_the_night_by_name(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, columns | {"title": ["A", "B"]})
    assert "catalogue.parquet" in str(caught.value)


def test_an_empty_shop_is_refused(tmp_path: Path) -> None:
    nothing = {"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}
    with pytest.raises(DataError, match="no item is on offer"):
        read(tmp_path, nothing)
    with pytest.raises(DataError, match="no item is on offer"):
        read(tmp_path, {"item_id": ["a"], "title": ["A"], "sold": [False]}, keep_items="sold")


def test_a_price_that_is_not_a_number_is_no_price_and_a_nameless_category_is_none(tmp_path: Path) -> None:
    items, _ = read(
        tmp_path,
        {
            "item_id": ["a", "b", "c"],
            "title": ["A", "B", "C"],
            "price": [math.nan, 0.0, -1.0],
            "categories": [[None, "x", ""], None, [""]],
        },
    )
    assert items["price"].to_pylist() == [None, 0.0, -1.0]
    assert items["categories"].to_pylist() == [["x"], None, []]


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.parquet is missing"):
        read_catalogue(DataSettings(path=str(tmp_path), catalogue="items.parquet"))
