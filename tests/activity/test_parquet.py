"""What the columns of a file must be, and what they are read as; nothing that the contract does not name is read."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from engine.activity.parquet import FLAG, MAYBE_TEXT, MOMENT, NUMBER, TEXT, TEXTS, WHOLE, Kind, as_time, batches, read
from engine.errors import ContractError
from engine.schema import TIME

LOCAL = fs.LocalFileSystem()
LATEST = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


def saved(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def value_of(path: str, kind: Kind) -> list[Any]:
    return list(read(LOCAL, path, {"x": ("x", kind)}, ("x",))["x"].to_pylist())


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kind", "found"),
    [
        ({"User_ID": ["a"]}, TEXT, "no such column (near: 'User_ID')"),
        ({"zzz": ["a"]}, TEXT, "no such column"),
        ({"user_id": [1]}, TEXT, "int64"),
        ({"user_id": [b"a"]}, TEXT, "binary"),
        ({"user_id": [["a"]]}, TEXT, "list<element: string>"),
        ({"user_id": [{"id": "a"}]}, TEXT, "struct<id: string>"),
        ({"user_id": [{"id": "a"}]}, MAYBE_TEXT, "struct<id: string>"),
        ({"user_id": [dt.time(1)]}, NUMBER, "time64[us]"),
        ({"user_id": pa.nulls(1)}, TEXT, "null"),
        ({"user_id": ["1"]}, NUMBER, "string"),
        ({"user_id": [True]}, NUMBER, "bool"),
        ({"user_id": ["a"]}, TEXTS, "string"),
        ({"user_id": [[1]]}, TEXTS, "list<element: int64>"),
        ({"user_id": ["2026-01-01"]}, MOMENT, "string"),
        ({"user_id": [1]}, MOMENT, "int64"),
        ({"user_id": [dt.date(2026, 1, 1)]}, MOMENT, "date32[day]"),
        ({"user_id": [dt.timedelta(1)]}, MOMENT, "duration[us]"),
        ({"user_id": [1.0]}, WHOLE, "double"),
        ({"user_id": [1]}, FLAG, "int64"),
    ],
)
def test_a_broken_contract_names_file_column_expected_and_found(
    tmp_path: Path, columns: dict[str, Any], kind: Kind, found: str
) -> None:
    path = saved(tmp_path / "day.parquet", **columns)
    with pytest.raises(ContractError) as caught:
        read(LOCAL, path, {"user_id": ("user_id", kind)}, ("user_id",))
    error = caught.value
    assert (error.file, error.column, error.expected, error.found) == (path, "user_id", kind.expected, found)
    assert error.why == ("missing_column" if found.startswith("no such column") else "wrong_type")
    assert all(part in str(error) for part in (path, "'user_id'", kind.expected, found, "conf/data"))


def test_the_team_s_own_name_is_the_one_in_the_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", customer=["a"], sku=["b"])
    with pytest.raises(ContractError, match=r"column 'custommer'.*near: 'customer'.*'user_id'.*customer, sku"):
        read(LOCAL, path, {"user_id": ("custommer", TEXT)}, ("user_id",))


def test_a_column_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ContractError, match="2 columns of this name") as caught:
        value_of(str(tmp_path / "a.parquet"), TEXT)
    assert caught.value.why == "repeated_column"


def test_names_with_dots_are_names_and_no_paths(tmp_path: Path) -> None:
    struct = pa.array([{"b": "within", "c": 1}])
    path = saved(tmp_path / "a.parquet", before=[[{"z": 1, "y": ["q"]}]], a=struct, **{"a.b": ["dotted"]}, x=["x"])
    wanted = {"dotted": ("a.b", TEXT), "x": ("x", TEXT)}
    assert read(LOCAL, path, wanted, ("dotted", "x")).to_pydict() == {"dotted": ["dotted"], "x": ["x"]}
    with pytest.raises(ContractError, match="no such column"):
        read(LOCAL, path, {"x": ("a.c", NUMBER)}, ("x",))


def test_a_file_with_a_thousand_columns_is_refused_in_a_few_lines(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", **{f"column_{number}": [1] for number in range(1000)})
    with pytest.raises(ContractError) as caught:
        value_of(path, TEXT)
    assert len(str(caught.value)) < 1000


def test_what_is_not_required_may_be_absent_but_not_mistyped(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", item=["a"], value=["much"])
    assert read(LOCAL, path, {"item": ("item", TEXT), "flags": ("flags", TEXTS)}, ("item",)).column_names == ["item"]
    with pytest.raises(ContractError, match="'value'"):
        read(LOCAL, path, {"item": ("item", TEXT), "value": ("value", NUMBER)}, ("item",))


def test_two_names_may_mean_one_column(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", x=["a"])
    table = read(LOCAL, path, {"one": ("x", TEXT), "two": ("x", TEXT)}, ("one", "two"))
    assert table.to_pydict() == {"one": ["a"], "two": ["a"]}


def test_a_column_outside_the_contract_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ["a"], "diagnosis": ["that nobody asked for"]}), path, use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    broken = bytearray(path.read_bytes())
    broken[start : start + 8] = b"\xff" * 8  # its page header: whoever reads the column fails
    path.write_bytes(broken)
    with pytest.raises(OSError, match="thrift|Thrift|page"):
        pq.ParquetFile(path).read()
    assert value_of(str(path), TEXT) == ["a"]


def test_columns_of_any_kind_may_stand_before_those_that_are_read(tmp_path: Path) -> None:
    pair = pa.array([{"a": 1, "b": "c"}])
    others: dict[str, Any] = {
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "deep": [[{"z": [1], "y": {"w": "q", "v": b"r"}}]],
        "uuid": pa.array([b"0123456789abcdef"], pa.uuid()),
        "json": pa.array(["{}"], pa.json_()),
        "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
        "null": pa.nulls(1),
        "opaque": pa.ExtensionArray.from_storage(pa.opaque(pair.type, "type", "vendor"), pair),
    }
    assert value_of(saved(tmp_path / "a.parquet", **others, x=["x"], z=["z"]), TEXT) == ["x"]


def test_a_column_that_another_stands_in_for_is_read_only_where_it_must_be(tmp_path: Path) -> None:
    wanted = {"id": ("id", MAYBE_TEXT), "session": ("session", MAYBE_TEXT)}
    for ids, expected in ((["a", "b"], ["id"]), (["a", None], ["id", "session"]), (["a", ""], ["id", "session"])):
        path = saved(tmp_path / "a.parquet", id=ids, session=["s", "t"])
        (batch,) = batches(LOCAL, path, wanted, (), ("id", "session"))
        assert batch.schema.names == expected
    pq.write_table(pa.table({"id": ["a"], "session": ["s"]}), tmp_path / "a.parquet", write_statistics=False)
    (batch,) = batches(LOCAL, str(tmp_path / "a.parquet"), wanted, (), ("id", "session"))
    assert batch.schema.names == ["id", "session"]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_large_row_group_comes_in_batches_and_small_ones_come_together(tmp_path: Path) -> None:
    rows = 300_000
    table = pa.table(
        {"id": pa.array(range(rows)).cast(pa.string()), "x": [f"name {row % 12345}" for row in range(rows)]}
    )
    wanted = {"event_id": ("id", TEXT), "x": ("x", TEXT)}
    for size in (rows, 1000):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=size)
        found = list(batches(LOCAL, str(tmp_path / "a.parquet"), wanted, ("x",)))
        assert [batch.num_rows for batch in found] == ([262_144, 37_856] if size == rows else [262_000, 38_000])
        assert found[0].schema.types == [pa.string(), pa.dictionary(pa.int32(), pa.string())]
        read_again = pa.Table.from_batches(found).rename_columns(["id", "x"])
        assert read_again.cast(table.schema) == table


def test_rows_that_are_wide_come_in_small_batches(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", x=[f"{row}" * 10_000 for row in range(1000, 5000)])
    found = [batch.num_rows for batch in batches(LOCAL, path, {"x": ("x", TEXT)}, ("x",))]
    assert sum(found) == 4000 and max(found) * 40_000 <= 128 << 20


def test_a_row_group_that_is_not_fetched_at_once_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.parquet", x=[f"name {row}" for row in range(100_000)])
    whole = value_of(path, TEXT)
    monkeypatch.setattr("engine.activity.parquet._AT_ONCE", 1000)
    assert value_of(path, TEXT) == whole


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_every_encoding_of_text_is_read(tmp_path: Path, encoding: str) -> None:
    table = pa.table({"x": ["a", None, "ü"] * 100})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding={"x": encoding})
    assert value_of(str(tmp_path / "a.parquet"), TEXT) == table["x"].to_pylist()


@pytest.mark.parametrize("kind", [TEXT, NUMBER, TEXTS, MOMENT])
def test_a_file_without_rows_is_still_held_to_the_contract(tmp_path: Path, kind: Kind) -> None:
    right = {TEXT: pa.string(), NUMBER: pa.int8(), TEXTS: pa.list_(pa.string()), MOMENT: TIME}[kind]
    for groups in (0, 1):
        writer = pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"x": right, "wrong": pa.binary()}))
        for _ in range(groups):
            writer.write_table(writer.schema.empty_table())
        writer.close()
        path = str(tmp_path / "a.parquet")
        assert list(batches(LOCAL, path, {"x": ("x", kind)}, ("x",))) == []
        assert read(LOCAL, path, {"x": ("x", kind)}, ("x",)).schema.types == [kind.becomes or right]
        with pytest.raises(ContractError, match="binary"):
            list(batches(LOCAL, path, {"x": ("wrong", kind)}, ("x",)))


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 5, 123])
def test_any_number_of_rows_comes_through_in_order(tmp_path: Path, rows: int) -> None:
    table = pa.table({"x": pa.array([str(number) for number in range(rows)], pa.string())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    assert value_of(str(tmp_path / "a.parquet"), TEXT) == [str(number) for number in range(rows)]


TEXT_COLUMNS = [
    pa.array(["a", None, "ü"], pa.string()),
    pa.array(["a", None, "ü"], pa.large_string()),
    pa.array(["a", None, "ü"], pa.string_view()),
    pa.array(["a", None, "ü"]).dictionary_encode(),
    pa.array(["a", None, "ü"], pa.large_string()).dictionary_encode(),
]


@pytest.mark.parametrize("column", TEXT_COLUMNS, ids=lambda column: str(column.type))
def test_text_is_text_however_it_is_encoded(tmp_path: Path, column: pa.Array) -> None:
    table = read(LOCAL, saved(tmp_path / "a.parquet", x=column), {"x": ("x", TEXT)}, ("x",))
    assert table["x"].type == pa.string()
    assert table["x"].to_pylist() == ["a", None, "ü"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([["a"], None, []], pa.list_(pa.string())), [["a"], None, []]),
        (pa.array([["a"], None, []], pa.large_list(pa.large_string())), [["a"], None, []]),
        (pa.array([["a"], None, ["b"]], pa.list_(pa.string(), 1)), [["a"], None, ["b"]]),
        (pa.ListArray.from_arrays([0, 1, 2], pa.array(["a", "b"]).dictionary_encode()), [["a"], ["b"]]),
        (pa.array([[None], None, []], pa.list_(pa.null())), [[None], None, []]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_lists_of_text_are_that_however_they_are_encoded(
    tmp_path: Path, column: pa.Array, expected: list[list[str | None] | None]
) -> None:
    assert value_of(saved(tmp_path / "a.parquet", x=column), TEXTS) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None], pa.int8()), [1.0, None]),
        (pa.array([2**60 + 1, 2**63 - 1]), [2.0**60, 2.0**63]),
        (pa.array([2**64 - 1], pa.uint64()), [2.0**64]),
        (pa.array([0.5, None], pa.float16()), [0.5, None]),
        (pa.array([0.5, None], pa.float32()), [0.5, None]),
        (pa.array([Decimal("1.10"), None], pa.decimal32(9, 2)), [1.1, None]),
        (pa.array([Decimal("1.10"), None], pa.decimal128(10, 2)), [1.1, None]),
        (pa.array([Decimal("-1e70"), None], pa.decimal256(76, 0)), [-1e70, None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_any_number_is_a_float(tmp_path: Path, column: pa.Array, expected: list[float | None]) -> None:
    assert value_of(saved(tmp_path / "a.parquet", x=column), NUMBER) == expected


def not_utf8(size: int) -> pa.Array:
    """Text columns as a careless writer leaves them: the type says UTF-8, the bytes are Latin-1."""
    return pa.array([b"caf\xe9", None, b"tea", b"\xff\xfe"][:size], pa.binary()).view(pa.string())


def test_text_that_is_not_utf8_is_read_as_empty(tmp_path: Path) -> None:
    assert value_of(saved(tmp_path / "a.parquet", x=not_utf8(4)), MAYBE_TEXT) == ["", None, "tea", ""]
    lists = pa.ListArray.from_arrays(pa.array([0, 3, None, 3, 4], pa.int32()), not_utf8(4))
    assert value_of(saved(tmp_path / "b.parquet", x=lists), TEXTS) == [["", None, "tea"], [], None, [""]]


def test_dictionaries_with_bytes_that_are_not_utf8_are_mended_and_keep_their_codes(tmp_path: Path) -> None:
    names = pa.array([b"caf\xe9", b"tea", b"\xff\xfe"], pa.binary()).view(pa.string())
    path = saved(tmp_path / "a.parquet", x=pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2, 0]), names))
    (batch,) = batches(LOCAL, path, {"x": ("x", TEXT)}, ("x",))
    batch.validate(full=True)
    assert batch.column("x").to_pylist() == ["", "tea", None, "", ""]


# --- times ------------------------------------------------------------------------------------------------------------

MOMENT_OF = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_whole_numbers_are_times_in_the_unit_that_was_said(unit: str, scale: int, kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.array([int(MOMENT_OF.timestamp()) * scale, None], kind)])
    found = as_time(column, unit, "Europe/Berlin")  # a zone is for times that read like a clock
    assert found.type == TIME
    assert found.to_pylist() == [MOMENT_OF, None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_timestamp_says_its_unit_and_zone_itself(unit: str) -> None:
    there = MOMENT_OF.astimezone(dt.timezone(dt.timedelta(hours=9)))
    column = pa.chunked_array([pa.array([there, None], pa.timestamp(unit, "Asia/Tokyo"))])
    assert as_time(column, "", "Europe/Berlin").to_pylist() == [MOMENT_OF, None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize(
    ("clock", "zone", "expected"),
    [
        ("2026-01-02T03:04:05", "UTC", "2026-01-02T03:04:05"),
        ("2026-01-02T03:04:05", "Europe/Berlin", "2026-01-02T02:04:05"),
        ("2026-07-02T03:04:05", "Europe/Berlin", "2026-07-02T01:04:05"),
        ("2026-10-25T02:30:00", "Europe/Berlin", "2026-10-25T00:30:00"),  # came twice
        ("2026-03-29T02:30:00", "Europe/Berlin", "2026-03-29T01:00:00"),  # was skipped
    ],
)
def test_a_time_without_a_zone_is_read_in_the_one_that_was_said(
    unit: str, clock: str, zone: str, expected: str
) -> None:
    column = pa.chunked_array([pa.array([dt.datetime.fromisoformat(clock), None], pa.timestamp(unit))])
    (found, nothing) = as_time(column, "", zone).to_pylist()
    assert found == dt.datetime.fromisoformat(expected).replace(tzinfo=dt.UTC)
    assert nothing is None


@pytest.mark.parametrize("how", [{}, {"use_deprecated_int96_timestamps": True}, {"coerce_timestamps": "ms"}])
def test_times_are_the_same_however_a_file_keeps_them(tmp_path: Path, how: dict[str, Any]) -> None:
    table = pa.table({"x": pa.array([MOMENT_OF, None, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)], TIME)})
    pq.write_table(table, tmp_path / "a.parquet", **how)
    found = read(LOCAL, str(tmp_path / "a.parquet"), {"x": ("x", MOMENT)}, ("x",))["x"]
    assert as_time(found, "", "UTC").to_pylist() == table["x"].to_pylist()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_a_time_beyond_the_calendar_becomes_its_edge_and_no_other_time(unit: str, zone: str) -> None:
    raw = pa.array([2**63 - 1, -(2**63)], pa.int64())
    for column in (raw, raw.cast(pa.timestamp(unit)), raw.cast(pa.timestamp(unit, "UTC"))):
        late, early = as_time(pa.chunked_array([column]), unit, zone).cast(pa.int64()).to_pylist()
        assert abs(late - int(LATEST.timestamp()) * 10**6) <= 86_400 * 10**6
        assert early < -62_000_000_000 * 10**6


def test_the_largest_whole_number_is_no_fault() -> None:
    column = pa.chunked_array([pa.array([2**64 - 1, None], pa.uint64())])
    for unit in ("s", "ms", "us", "ns"):
        late, nothing = as_time(column, unit, "UTC").to_pylist()
        assert late.year == (2262 if unit == "ns" else 9999)
        assert nothing is None


def test_a_column_of_nothing_is_no_time() -> None:
    assert as_time(pa.chunked_array([pa.nulls(2)]), "", "Europe/Berlin").to_pylist() == [None, None]
    assert as_time(pa.chunked_array([], pa.timestamp("ns")), "", "UTC").to_pylist() == []
