"""Each row of the log is taken, left alone, or quarantined with a reason; none vanishes."""

from __future__ import annotations

import datetime as dt
import math
import unicodedata
import warnings
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.activity.columns import UNDO
from engine.activity.mapping import DataSettings, EventRule
from engine.errors import ContractError
from engine.identity import fault_in_id
from engine.schema import EVENTS, PURCHASE
from tests.activity.logs import DAY, LOG, START, Shop, micros, row

ACCENT = "e\u0301"  # e and a combining accent: not composed
RULES = {
    "bought": EventRule(means="purchase", at_least=2.0),
    "storno": EventRule(undoes="purchase"),
    "correction": EventRule(),
}


# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(item=None), "no_item_id"),
        (row(item=""), "no_item_id"),
        (row(item="elsewhere"), "unknown_item"),
        (row(user_id=""), "bad_user_id"),
        (row(user_id="x" * 257), "bad_user_id"),
        (row(user_id="a\0b"), "bad_user_id"),
        (row(user_id=ACCENT), "bad_user_id"),
        (row(event="levitate"), "unknown_event"),
        (row(event="View"), "unknown_event"),
        (row(event=None), "unknown_event"),
        (row(ts=None), "no_time"),
        (row(ts=dt.datetime(1979, 12, 31, tzinfo=dt.UTC)), "time_out_of_range"),
        (row(day=61.1), "time_out_of_range"),
        (row(value=math.nan), "value_not_finite"),
        (row(value=-math.inf), "value_not_finite"),
        (row(source="fax"), "unknown_source"),
        (row(source=None), "unknown_source"),
        (row(item="sold out", source=None), "-not_offered"),
    ],
)
def test_a_row_that_is_not_taken_says_why(shop: Shop, bad: dict[str, Any], reason: str) -> None:
    shop.dropped = ("sold out",)
    found = shop.read([row(), bad, row()])
    assert found.counts == {reason: 1}
    assert found.total == 3
    assert len(found.taken) == 2
    quarantined = [] if reason.startswith("-") else [(1, reason)]
    assert found.quarantined == quarantined


def test_a_quarantine_names_line_and_reason_and_nobody(shop: Shop) -> None:
    found = shop.read([row(), row(user_id="x" * 257), row(), row(item=None)])
    assert found.quarantined == [(1, "bad_user_id"), (3, "no_item_id")]


def test_lines_are_counted_over_the_batches_of_a_file(shop: Shop) -> None:
    count = 300_000
    rows = pa.Table.from_pylist([row()], LOG).take([0] * count)
    bad = pa.array(["a"] * (count - 1) + ["gone"])
    path = shop.folder / "long.parquet"
    pq.write_table(rows.set_column(rows.column_names.index("item_id"), "item_id", bad), path)
    found = shop.read_file(path)
    assert len(found.checked) > 1
    assert (found.total, found.quarantined) == (count, [(count - 1, "unknown_item")])


@pytest.mark.parametrize(
    "fault",
    [
        {"item": "elsewhere"},
        {"item": None},
        {"user_id": ""},
        {"ts": None},
        {"value": math.nan},
        {"source": "fax"},
        {"item": "sold out"},
    ],
)
def test_an_event_that_is_not_read_is_left_alone_whatever_else_is_wrong_with_it(
    shop: Shop, fault: dict[str, Any]
) -> None:
    shop.data.events, shop.dropped = RULES, ("sold out",)
    assert shop.reasons([row(event="correction", **fault)]) == {"-event_not_read": 1}


def test_an_item_that_is_not_offered_is_left_alone_whatever_else_is_wrong_with_it(shop: Shop) -> None:
    shop.dropped = ("sold out",)
    bad = row(item="sold out", user_id="", event="levitate")
    assert shop.reasons([bad, row(item="sold out")]) == {"-not_offered": 1}
    (settled,) = shop.settle([row(item="sold out"), row()])  # a sound row is for each night to judge
    assert (settled.activity.num_rows, settled.counts["-not_offered"]) == (1, 1)


def test_an_event_below_its_least_value_is_left_alone_and_one_at_it_is_not(shop: Shop) -> None:
    shop.data.events = RULES
    found = shop.read([row(event="bought", value=value) for value in (1.99, None, 2.0, 3.0)])
    assert found.counts == {"-below_at_least": 2}
    assert found.taken["value"].to_list() == [2.0, 3.0]


def test_times_at_the_edge_are_taken(shop: Shop) -> None:
    assert shop.reasons([row(ts=dt.datetime(1980, 1, 1, tzinfo=dt.UTC)), row(day=61.0)]) == {}


def test_what_is_nearly_known_is_told_and_what_is_not_is_kept_quiet(shop: Shop) -> None:
    found = shop.read([row(event="Purchase"), row(event="Purchase"), row(source="Web"), row(event="customer 4711")])
    assert found.near == {"Purchase": "purchase", "Web": "web"}
    assert shop.read([row()]).near == {}


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_names_become_codes_and_nothing_else_changes(shop: Shop) -> None:
    full = row("c", "purchase", 1.5, value=3.0, source="store", session_id="s", event_id="e", flags=["gift", "fast"])
    taken = shop.read([full, row()]).taken
    assert taken.select("user_id", "item", "event", "ts", "source", "gift").rows() == [
        ("ann", 2, PURCHASE, micros(1.5), 1, True),
        ("ann", 0, 0, micros(0), 0, False),
    ]
    assert taken["value"][0] == 3.0
    assert math.isnan(taken["value"][1])


def test_impressions_are_counted_and_go_no_further_unless_they_weigh_something(shop: Shop) -> None:
    rows = [row(event="impression"), row()]
    found = shop.read(rows)
    assert (found.counts, len(found.taken)) == ({"-counted_only": 1}, 1)
    assert sum(found.checked[0].tally.values()) == 2
    shop.data.weights = {"impression": 0.01}
    assert len(shop.read(rows).taken) == 2


@pytest.mark.parametrize(("time", "step"), [("", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)])
def test_times_are_told_no_finer_than_is_asked_for(shop: Shop, time: str, step: int) -> None:
    shop.data.coarsen.time = time
    whole = micros(3) + 12_345_678_901
    taken = shop.read([row(ts=START + dt.timedelta(days=3, microseconds=12_345_678_901))]).taken
    assert taken["ts"].to_list() == [whole if not time else whole - whole % (step * 10**6)]


def test_every_event_of_the_contract_is_read_when_none_is_mapped(shop: Shop) -> None:
    shop.data.weights = {"impression": 0.01}
    codes = [UNDO + PURCHASE if name == "return" else code for code, name in enumerate(EVENTS)]  # it takes one back
    assert shop.read([row(event=name) for name in EVENTS]).taken["event"].to_list() == codes


def test_mapped_events_mean_what_was_said(shop: Shop) -> None:
    shop.data.events = RULES
    found = shop.read([row(event="bought", value=2.0), row(event="storno"), row(event="correction"), row()])
    assert found.taken["event"].to_list() == [PURCHASE, UNDO + PURCHASE]
    assert found.counts == {"-event_not_read": 1, "unknown_event": 1}


@pytest.mark.parametrize(
    ("flags", "event", "gift"),
    [
        (["gift"], "purchase", True),
        (["fast", None], "purchase", False),
        ([], "purchase", False),
        (None, "purchase", False),
        (None, "gift", True),
    ],
)
def test_a_gift_is_flagged_or_an_event_of_its_own(
    shop: Shop, flags: list[str | None] | None, event: str, gift: bool
) -> None:
    assert shop.read([row(event=event, flags=flags)]).taken["gift"].to_list() == [gift]


def test_an_empty_event_id_is_none(shop: Shop) -> None:
    nameless, none, named = shop.read([row(event_id=""), row(event_id=None), row(event_id="e")]).taken["mark"]
    assert nameless == none != named


@pytest.mark.parametrize("rows", [0, 1, 5, 123])
def test_any_number_of_rows_is_read_without_a_warning(shop: Shop, rows: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = shop.read([row(day=number / 100) for number in range(rows)])
    assert (found.total, len(found.taken), found.counts) == (rows, rows, {})


# --- columns ----------------------------------------------------------------------------------------------------------


def without(*names: str) -> pa.Schema:
    return pa.schema([column for column in LOG if column.name not in names])


def test_optional_columns_may_be_absent(shop: Shop) -> None:
    found = shop.read([row()], without("event_id", "value", "session_id", "flags"))
    assert found.taken.select(pl.col("value").is_nan(), "gift").rows() == [(True, False)]
    assert found.taken["mark"].to_list() == shop.read([row()]).taken["mark"].to_list()


@pytest.mark.parametrize("name", ["user_id", "item_id", "event", "ts", "source"])
def test_other_columns_may_not(shop: Shop, name: str) -> None:
    with pytest.raises(ContractError, match=f"column '{name}'.*no such column"):
        shop.read([row()], without(name))


def test_columns_of_nothing_and_other_encodings_are_no_fault(shop: Shop) -> None:
    path = shop.folder / "odd.parquet"
    count = 3
    columns = {
        "event_id": pa.nulls(count),
        "user_id": pa.nulls(count),
        "item_id": pa.array(["a", "b", "a"]).dictionary_encode(),
        "event": pa.array(["view"] * count, pa.large_string()),
        "ts": pa.array([micros(1)] * count, pa.timestamp("us")),
        "value": pa.nulls(count),
        "source": pa.array(["web"] * count).dictionary_encode(),
        "session_id": pa.nulls(count),
        "flags": pa.nulls(count),
    }
    pq.write_table(pa.table(columns), path)
    found = shop.read_file(path)
    assert found.counts == {}
    assert found.taken["item"].to_list() == [0, 1, 0]
    assert found.taken["user_id"].null_count() == count


def test_text_that_is_not_utf8_is_quarantined_and_stops_nothing(shop: Shop) -> None:
    path = shop.folder / "latin.parquet"
    table = pa.Table.from_pylist([row(), row(), row(), row()], LOG)
    for name, raw in {
        "user_id": [b"ann", b"Andr\xe9", b"ann", None],
        "item_id": [b"a", b"a", b"\xff", b"a"],
        "session_id": [b"\xff", b"s", b"s", b"s"],
        "event_id": [b"\xff", b"\xfe", None, b"x"],
    }.items():
        column = pa.array(raw, pa.binary()).view(pa.string())
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    found = shop.read_file(path)
    assert found.counts == {"bad_user_id": 1, "no_item_id": 1}
    assert found.taken["mark"][1] == shop.read([row(event_id="x")]).taken["mark"][0]


def test_a_constant_stands_for_a_column_and_shadows_one_that_is_there(shop: Shop) -> None:
    shop.data.constants = {"source": "store", "event": "purchase"}
    assert shop.read([row()]).taken.select("source", "event").rows() == [(1, PURCHASE)]
    assert shop.read([row()], without("source", "event")).taken.select("source", "event").rows() == [(1, PURCHASE)]


def mapped(shop: Shop, table: dict[str, Any], **given: Any) -> pl.DataFrame:
    columns = {"item_id": "sku", "user_id": "who", "ts": "at"}
    shop.data = DataSettings(columns=columns, constants={"event": "view", "source": "web"}, **given)
    path = shop.folder / "mapped.parquet"
    pq.write_table(pa.table(table), path)
    return shop.read_file(path).taken


@pytest.mark.parametrize(("unit", "scale"), [("s", 10**6), ("ms", 10**3), ("us", 1)])
def test_a_team_s_own_columns_and_unit_are_read(shop: Shop, unit: str, scale: int) -> None:
    taken = mapped(shop, {"sku": ["b"], "who": ["ann"], "at": [micros(3) // scale]}, time_unit=unit)
    assert taken.select("item", "user_id", "ts").rows() == [(1, "ann", micros(3))]


def test_a_zone_moves_times_that_have_none(shop: Shop) -> None:
    clock = pa.array([dt.datetime(2026, 1, 1, 1)], pa.timestamp("ns"))
    taken = mapped(shop, {"sku": ["b"], "who": ["ann"], "at": clock}, time_zone="Europe/Berlin")
    assert taken["ts"].to_list() == [micros(0)]


def test_a_mistaken_unit_is_found_out(shop: Shop) -> None:
    table = {"sku": ["b", "b"], "who": ["ann", "ann"], "at": [micros(3), micros(3) + 7_777_777]}
    for unit in ("s", "ms", "ns"):
        assert mapped(shop, table, time_unit=unit).is_empty()


def test_a_unit_is_never_guessed(shop: Shop) -> None:
    with pytest.raises(ContractError, match="column 'at': expected timestamp, or a whole number with data.time_unit"):
        mapped(shop, {"sku": ["b"], "who": ["ann"], "at": [1]})
    with pytest.raises(ContractError, match="column 'at': expected a whole number, as data.time_unit=s says"):
        mapped(shop, {"sku": ["b"], "who": ["ann"], "at": pa.array([START])}, time_unit="s")


def test_an_order_becomes_a_day_a_step_however_long(shop: Shop) -> None:
    places = [0, 1, 50_000, None, -1, 2**62, 2_899_999]
    shop.data.order = "place"
    path = shop.folder / "ordered.parquet"
    table = pa.Table.from_pylist([row() for _ in places], without("ts")).append_column("place", pa.array(places))
    pq.write_table(table, path)
    found = shop.read_file(path)
    assert found.counts == {"no_time": 1, "time_out_of_range": 2}
    epoch = 315_532_800_000_000
    assert [(when - epoch) / DAY for when in found.taken["ts"]] == [0, 1, 50_000, 2_899_999]


# --- ids --------------------------------------------------------------------------------------------------------------

IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TRICKY = st.sampled_from(
    ["", "\0", "a\0", ACCENT, "é", "x" * 256, "x" * 257, "ü" * 128, "ü" * 129, "\u1100\u1161", "Å"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=st.lists(st.none() | IDS | TRICKY, max_size=30))
def test_the_log_refuses_exactly_the_ids_that_a_request_is_refused_for(shop: Shop, people: list[str | None]) -> None:
    found = shop.read([row(user_id=name) for name in people])
    assert found.taken["user_id"].to_list() == [name for name in people if name is None or not fault_in_id(name)]


def test_every_character_alone_is_refused_or_taken_alike(shop: Shop) -> None:
    people = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    taken = set(shop.read([row(user_id=name) for name in people]).taken["user_id"])
    assert taken == {name for name in people if unicodedata.is_normalized("NFC", name)}
