"""Files are found, checked and read, or refused by name; nothing that the contract does not name is read."""

from __future__ import annotations

import datetime as dt
import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from engine.activity.files import (
    FLAG,
    MAYBE_TEXT,
    MOMENT,
    NUMBER,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    as_time,
    digest,
    locate,
    parquet_files,
    read,
)
from engine.activity.mapping import DataSettings
from engine.errors import ContractError, DataError
from engine.schema import TIME

LOCAL = fs.LocalFileSystem()
LATEST = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


def saved(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def value_of(path: str, kind: Kind) -> list[Any]:
    return list(read(LOCAL, path, {"x": ("x", kind)}, ("x",))["x"].to_pylist())


# --- where files are --------------------------------------------------------------------------------------------------


def test_a_local_path_and_its_uri_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(".")[1] == locate(str(tmp_path))[1] == locate(f"file://{tmp_path}/")[1] == str(tmp_path)


@pytest.mark.parametrize("path", ["nothing://there/logs", "file://another.host/logs"])
def test_a_place_that_cannot_be_opened_is_named(path: str) -> None:
    with pytest.raises(DataError, match=path):
        locate(path)


def test_the_log_is_found_in_folders_and_files_and_drafts_are_left_alone(tmp_path: Path) -> None:
    wanted = ["log/date=2026-01-01/a.parquet", "log/date=2026-01-02/a.parquet", "log/flat.parquet", "old.parquet"]
    drafts = ["log/_temporary/0/a.parquet", "log/.hidden/a.parquet", "log/.a.parquet", "log/_SUCCESS", "log/a.txt"]
    for name in wanted + drafts:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for path in (str(tmp_path), f"file://{tmp_path}"):
        found = parquet_files(DataSettings(path=path, log=["old.parquet", "log", "log/flat.parquet"]))
        assert found == sorted(f"{tmp_path}/{name}" for name in wanted)


def test_a_folder_that_itself_begins_with_a_dot_may_hold_the_log(tmp_path: Path) -> None:
    saved_at = tmp_path / ".bodega" / "log"
    saved_at.mkdir(parents=True)
    (saved_at / "a.parquet").touch()
    assert parquet_files(DataSettings(path=str(tmp_path / ".bodega"))) == [str(saved_at / "a.parquet")]


def test_a_part_of_the_log_that_is_missing_is_named_with_its_near_miss(tmp_path: Path) -> None:
    (tmp_path / "one.parquet").touch()
    (tmp_path / "interactions.parquet").touch()
    with pytest.raises(DataError, match=r"'interaction\.parquet'.*did you mean 'interactions\.parquet'"):
        parquet_files(DataSettings(path=str(tmp_path), log=["one.parquet", "interaction.parquet"]))
    with pytest.raises(DataError, match="'log'"):
        parquet_files(DataSettings(path=str(tmp_path / "nowhere")))


def test_a_log_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(DataError, match="No Parquet file"):
        parquet_files(DataSettings(path=str(tmp_path)))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 3])
def test_a_digest_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.gz"  # the name must not make it decompress
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert digest(LOCAL, str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kind", "found"),
    [
        ({"User_ID": ["a"]}, TEXT, "no such column (near: 'User_ID')"),
        ({"zzz": ["a"]}, TEXT, "no such column"),
        ({"user_id": [1]}, TEXT, "int64"),
        ({"user_id": [b"a"]}, TEXT, "binary"),
        ({"user_id": pa.nulls(1)}, TEXT, "null"),
        ({"user_id": ["1"]}, NUMBER, "string"),
        ({"user_id": [True]}, NUMBER, "bool"),
        ({"user_id": ["a"]}, TEXTS, "string"),
        ({"user_id": [[1]]}, TEXTS, "list<element: int64>"),
        ({"user_id": ["2026-01-01"]}, MOMENT, "string"),
        ({"user_id": [1]}, MOMENT, "int64"),
        ({"user_id": [dt.date(2026, 1, 1)]}, MOMENT, "date32[day]"),
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
    assert all(part in str(error) for part in (path, "'user_id'", kind.expected, found, "conf/data"))


def test_the_team_s_own_name_is_the_one_in_the_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", customer=["a"], sku=["b"])
    with pytest.raises(ContractError, match=r"column 'custommer'.*near: 'customer'.*'user_id'.*customer, sku"):
        read(LOCAL, path, {"user_id": ("custommer", TEXT)}, ("user_id",))


def test_a_column_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ContractError, match="2 columns of this name"):
        value_of(str(tmp_path / "a.parquet"), TEXT)


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


# --- broken files -----------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_parquet_or_cut_short_is_named(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path / "whole.parquet", x=["a"] * 1000)).read_bytes()
    for content in (b"", b"PAR1", b"a,b\n1,2\n", whole[:-1], whole[: len(whole) // 2]):
        path = tmp_path / "broken.parquet"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.parquet is not a readable Parquet file"):
            value_of(str(path), TEXT)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.parquet is missing"):
        value_of(str(tmp_path / "gone.parquet"), TEXT)
    with pytest.raises(DataError, match=str(tmp_path)):
        value_of(str(tmp_path), TEXT)


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
        (pa.array([0.5, None], pa.float32()), [0.5, None]),
        (pa.array([Decimal("1.10"), None], pa.decimal128(10, 2)), [1.1, None]),
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
