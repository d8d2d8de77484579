"""A dismissed category goes from the log to the night by its name, whatever the catalogue holds in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.activity.catalogue import read_catalogue
from engine.activity.categories import PREFIX, Categories
from engine.activity.columns import AT_DEPTH, DEEPEST, DISMISSES, UNDO, event_name
from engine.activity.mapping import DataSettings, EventRule
from engine.activity.settle import settle_bucket
from engine.errors import DataError, SettingsError
from engine.schema import CATALOGUE, EVENTS
from tests.activity.logs import ALL, PROFILE, SENSITIVE, TRAIN, Row, Shop, popularity, row, settled_alike, write

PATHS = {"a": ["food", "tea"], "b": ["food", "tea", "green"], "c": ["books"]}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, paths=PATHS)


def dismissed(name: str | None, day: float = 1.0, item: str | None = None, **rest: Any) -> Row:
    return row(item, "dismiss_category", day, flags=None if name is None else ["fast", f"category:{name}"], **rest)


def told(shop: Shop, rows: list[Row]) -> list[str]:
    """The categories that each event of the shard dismisses, whatever the order of the rows."""
    found = []
    for each in settled_alike(shop, rows).activity.to_pylist():
        path = PATHS.get(shop.items[each["item"]], [])
        if each["event"] == DISMISSES:
            found.append(path[-1] if path else "nothing")
        elif each["event"] > AT_DEPTH:
            found.append(path[each["event"] - AT_DEPTH - 1])
        assert each["weight"] == 0 or each["event"] < len(EVENTS)
    return found


def test_a_named_category_needs_no_item_and_an_item_names_its_leaf(shop: Shop) -> None:
    rows = [dismissed("food", 1), dismissed("tea", 2), dismissed("green", 3), dismissed("books", 4)]
    assert told(shop, rows) == ["food", "tea", "green", "books"]
    assert told(shop, [dismissed(None, 1, "a"), dismissed(None, 2, "b"), dismissed("", 3, "b")]) == [
        "tea",
        "green",
        "green",
    ]
    assert told(shop, [dismissed("books", 1, "a"), dismissed("food", 2, "no such item")]) == ["books", "food"]


def test_what_names_nothing_is_told_with_its_reason(shop: Shop) -> None:
    rows = [dismissed(None), dismissed(""), dismissed("shoes"), dismissed("foo", item="a"), row(None, "view")]
    assert shop.reasons(rows) == {"no_item_id": 3, "unknown_item": 2}
    assert shop.reasons([row(None, "view", flags=["category:food"])]) == {"no_item_id": 1}


def test_no_row_of_a_log_passes_for_a_category(shop: Shop) -> None:
    forged = [row(PREFIX + "food", event) for event in ("view", "purchase", "dismiss_category")]
    assert shop.reasons(forged) == {"no_item_id": 3}
    catalogue = [{"item_id": PREFIX + "food", "title": "x"}]
    path = write(shop.folder / "shop" / "catalogue.parquet", catalogue, CATALOGUE).parent
    with pytest.raises(DataError, match="begins as categories do"):
        read_catalogue(DataSettings(path=str(path)))


def test_a_dismissal_with_an_event_id_counts_once(shop: Shop) -> None:
    said = dismissed("food", event_id="d")
    assert told(shop, [said, said, dismissed("food", 2, event_id="e")]) == ["food", "food"]
    plain = dismissed("food")
    assert told(shop, [plain, plain, dismissed("tea")]) in (["food", "tea"], ["tea", "food"])


def test_a_dismissal_can_be_taken_back_by_the_category_s_name(shop: Shop) -> None:
    shop.data.events = {
        "dismiss_category": EventRule(means="dismiss_category"),
        "allow": EventRule(undoes="dismiss_category"),
    }
    back = row(None, "allow", 3, flags=["category:food"])
    assert shop.read([back]).taken["event"].to_list() == [UNDO + DISMISSES]
    assert told(shop, [dismissed("food", 1), dismissed("books", 2), back]) == ["books"]


def test_a_dismissal_is_no_want_of_the_item_that_stands_for_it(shop: Shop) -> None:
    settled = settled_alike(shop, [dismissed("food"), dismissed("food", user_id=None), row("c", "purchase", 2)])
    assert set(popularity(settled)) == {"c"}
    with pytest.raises(SettingsError, match=r"data\.weights\.dismiss_category"):
        DataSettings(path="x", weights={"dismiss_category": 1.0}).check()


def test_retention_and_grants_hold_for_it_as_for_every_event(shop: Shop) -> None:
    shop.data.retention_days = {"dismiss_category": 10.0}
    assert told(shop, [dismissed("food", 40), dismissed("tea", 50)]) == ["tea"]
    shop.granted = {"ann": TRAIN[1] | PROFILE[1]}
    assert told(shop, [dismissed("food", 50), dismissed("tea", 51, source="store")]) == ["tea"]


def test_a_category_is_sensitive_when_all_of_its_items_are(shop: Shop) -> None:
    shop.sensitive = ("b",)
    rows = [dismissed("tea", 1), dismissed("green", 2)]
    assert told(shop, rows) == ["tea"]  # an ordinary item is tea too, and all that is green is sensitive
    shop.granted = {"ann": ALL | SENSITIVE}
    assert told(shop, rows) == ["tea", "green"]


def test_a_part_outlives_the_item_that_stood_for_its_category(shop: Shop) -> None:
    parts = shop.split([dismissed("food"), dismissed("green", 2)])
    shop.items, shop.paths = ("b2", "c"), {"b2": ["all", "food"], "c": ["books"]}
    settled = settle_bucket(0, 1, shop.tonight(parts, 59, (59,), 30))
    (left,) = settled.activity.to_pylist()
    assert (left["item"], left["event"]) == (0, AT_DEPTH + 2)
    assert settled.counts["unknown_item"] == 1  # what is green is no category any more


def test_a_damaged_part_is_refused_before_compiled_code_reads_beyond_the_items(shop: Shop) -> None:
    parts = shop.split([row("d", "purchase")])
    shop.items = ("a", "b", "c")
    tonight = shop.tonight(parts, 59, (59,), 30)
    tonight.places[0][0][:] = len(shop.items)
    with pytest.raises(DataError, match="names a category as its item"):
        settle_bucket(0, 1, tonight)


def test_the_shallowest_ordinary_item_stands_for_a_category_and_the_depth_has_a_bound() -> None:
    deep = [f"step {number:02d}" for number in range(DEEPEST + 3)]
    paths = pa.array([deep, None, [], ["x", "step 01"], ["step 01"]], pa.list_(pa.string()))
    found = Categories.of(paths, np.array([False, False, False, False, True]))
    by_name = dict(zip(found.ids.to_pylist(), zip(found.item.tolist(), found.depth.tolist(), strict=True), strict=True))
    assert by_name[PREFIX + "step 01"] == (0, 2) and by_name[PREFIX + "x"] == (3, 1)
    assert by_name[PREFIX + deep[DEEPEST - 1]] == (0, DEEPEST) and PREFIX + deep[DEEPEST] not in by_name
    assert found.ids.to_pylist() == sorted(found.ids.to_pylist())
    assert len(Categories.of(pa.array([None], pa.list_(pa.string())), np.zeros(1, bool)).item) == 0


def test_its_codes_are_called_by_the_event_s_name() -> None:
    assert event_name(DISMISSES) == event_name(AT_DEPTH + 1) == event_name(AT_DEPTH + DEEPEST) == "dismiss_category"
    assert event_name(UNDO + DISMISSES) == "undo dismiss_category"
