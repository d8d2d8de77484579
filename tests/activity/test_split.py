"""Rows find the bucket of their person, with consent beside them, and no id leaves the log."""

from __future__ import annotations

import random
import string
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from engine.activity.split import SPLIT, added, check_share, split_files
from engine.errors import DataError, QuarantineError
from tests.activity.logs import ALL, KEYS, PROFILE, TRAIN, Shop, as_bytes, micros, row, write


def parts(folder: Path) -> pl.DataFrame:
    """All buckets, each row with the number of its own."""
    found = [
        pl.read_ipc(path).with_columns(bucket=pl.lit(int(path.parent.name[-5:])))
        for path in sorted(folder.glob("bucket-*/*.arrow"))
    ]
    return pl.concat(found)


# --- buckets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets", [1, 3, 7, 65_536, 100_000])
def test_a_person_s_rows_lie_in_one_bucket_and_buckets_are_ranges_of_keys(shop: Shop, buckets: int) -> None:
    shop.buckets = buckets
    people = [f"person {number}" for number in range(50)]
    folder, _ = shop.split([row(user_id=name) for name in people], [row(user_id=name, day=1) for name in people])
    rows = parts(folder).sort("user_key")
    assert len(rows) == 100
    assert rows["bucket"].is_sorted()
    assert rows["bucket"].is_between(0, buckets - 1).all()
    assert rows.group_by("user_key").agg(pl.col("bucket").n_unique())["bucket"].to_list() == [1] * 50


def test_anonymous_rows_are_spread_by_item(shop: Shop) -> None:
    shop.buckets = 3
    folder, _ = shop.split([row(item, user_id=None) for item in "abcd"])
    assert parts(folder).sort("item").select("item", "bucket").rows() == [(0, 0), (1, 1), (2, 2), (3, 0)]
    assert not parts(folder)["trainable"].any()
    assert not parts(folder)["profilable"].any()


def test_a_person_is_named_by_the_rotating_key(shop: Shop) -> None:
    folder, _ = shop.split([row(user_id="ann"), row(user_id="bob", day=1), row(user_id="ann", day=2)])
    ann, bob = KEYS.rotating.derive_many(["ann", "bob"])
    assert parts(folder).sort("ts")["user_key"].to_list() == [ann, bob, ann]
    assert dict(parts(folder).schema) == dict(SPLIT) | {"bucket": pl.Int32()}


def test_the_report_adds_up(shop: Shop) -> None:
    files = [
        write(shop.folder / "log" / f"{name}.parquet", rows)
        for name, rows in {
            "a": [row(day=3), row(item="gone"), row(event="vew")],
            "b": [],
            "c": [row(day=5), row(item="gone"), row(source="Store")],
        }.items()
    ]
    report = split_files(
        [str(path) for path in files], shop.context(), shop.folder / "out", shop.folder / "quarantine", "part"
    )
    assert report.rows == 6
    assert report.counts == {"unknown_item": 2, "unknown_event": 1, "unknown_source": 1}
    assert report.near == {"vew": "view", "Store": "store"}
    assert report.latest == micros(5)
    bad = pl.read_parquet(shop.folder / "quarantine" / "part.parquet")
    assert bad.rows() == [
        (str(files[0]), 1, "unknown_item"),
        (str(files[0]), 2, "unknown_event"),
        (str(files[2]), 1, "unknown_item"),
        (str(files[2]), 2, "unknown_source"),
    ]


def test_a_log_without_a_usable_row_leaves_nothing_but_the_report(shop: Shop) -> None:
    folder, report = shop.split([])
    assert (report.rows, report.counts, report.latest) == (0, {}, None)
    assert not list(folder.glob("bucket-*"))
    assert not (folder / "quarantine").exists()
    folder, report = shop.split([row(item="gone")])
    assert (report.rows, report.latest) == (1, None)
    assert not list(folder.glob("bucket-*"))


# --- consent ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granted", "web", "store"),
    [
        (ALL, (True, True), (True, True)),
        (TRAIN[0], (True, False), (False, False)),
        (PROFILE[1], (False, False), (False, True)),
        (TRAIN[0] | PROFILE[0], (True, True), (False, False)),
        (0, (False, False), (False, False)),
    ],
)
def test_a_row_may_be_used_for_what_its_own_source_was_granted(
    shop: Shop, granted: int, web: tuple[bool, bool], store: tuple[bool, bool]
) -> None:
    shop.granted = {"ann": granted}
    folder, _ = shop.split([row(source="web"), row(source="store")])
    found = parts(folder).sort("source").select("trainable", "profilable").rows()
    assert found == [web, store]


def test_nothing_is_assumed_of_somebody_whom_the_ledger_does_not_know(shop: Shop) -> None:
    shop.granted = {}
    folder, _ = shop.split([row()])
    assert parts(folder).select("trainable", "profilable", pl.col("user_key").is_not_null()).rows() == [
        (False, False, True)
    ]


def test_a_purpose_that_needs_several_grants_needs_them_all(shop: Shop) -> None:
    wide = 2**63 | 2**40
    for granted, allowed in ((2**63, False), (2**40, False), (wide, True)):
        shop.granted = {"ann": granted}
        context = shop.context()
        object.__setattr__(context, "profilable", (wide, wide))
        path = write(shop.fresh("log") / "a.parquet", [row()])
        out = shop.fresh("out")
        split_files([str(path)], context, out, out, "part")
        assert parts(out)["profilable"].to_list() == [allowed]


# --- privacy ----------------------------------------------------------------------------------------------------------


def test_no_raw_id_is_in_anything_that_is_written(shop: Shop) -> None:
    draw = random.Random(11)
    people = ["".join(draw.choices(string.ascii_letters + string.digits, k=16)) for _ in range(60)]
    shop.buckets, shop.granted = 3, dict.fromkeys(people[:30], ALL)
    rows = [row(draw.choice("abcd"), user_id=name, day=draw.random() * 50) for name in people for _ in range(5)]
    rows += [
        row(user_id=name) | bad for name in people for bad in ({"item_id": "gone"}, {"event": name}, {"source": name})
    ]
    rows += [row(user_id=name * 17) for name in people]
    folder, report = shop.split(rows[::2], rows[1::2])
    for number, settled in enumerate(shop.settle(rows)):
        for name, table in {"activity": settled.activity, "popularity": settled.popularity[0]}.items():
            (folder / f"{name}-{number}.arrow").write_bytes(as_bytes(table))
    assert report.near == {}
    written = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "log"]
    assert {path.suffix for path in written} == {".arrow", ".parquet"}
    for path in written:
        table = pl.read_ipc(path) if path.suffix == ".arrow" else pl.read_parquet(path)
        shown = str(table.to_dict(as_series=False)).encode()  # what compression hides from a search of the bytes
        assert len(table)
        assert not [name for name in people if name.encode() in shown or name.encode() in path.read_bytes()], path


# --- too much is bad --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "allowed", "refused"), [(0, 0.0, False), (1, 0.0, True), (5, 0.05, False), (6, 0.05, True)]
)
def test_the_night_stops_above_the_share_that_is_allowed_and_not_at_it(bad: int, allowed: float, refused: bool) -> None:
    counts = {"no_time": bad, "-not_offered": 94}
    if not refused:
        check_share(counts, 100, allowed, {})
        return
    with pytest.raises(QuarantineError, match=f"{bad} of 100 rows are bad .no_time {bad}.*share of {allowed}"):
        check_share(counts, 100, allowed, {})


def test_the_reasons_are_named_with_the_worst_first_and_what_was_probably_meant() -> None:
    counts = {"no_time": 1, "unknown_event": 7, "-duplicate": 3}
    with pytest.raises(QuarantineError, match=r"unknown_event 7, no_time 1\)") as caught:
        check_share(counts, 20, 0.1, {"Buy": "buy", "Veiw": "view"})
    assert "Did you mean 'buy' by 'Buy'? Did you mean 'view' by 'Veiw'?" in caught.value.message
    assert "quarantine" in caught.value.remedy


def test_a_log_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        check_share({}, 0, 1.0, {})


def test_counts_are_added_by_reason() -> None:
    assert added([]) == {}
    assert added([{"a": 1}, {"b": 2, "a": 3}, {}]) == {"a": 4, "b": 2}


def test_events_of_sensitive_items_ask_for_a_grant_of_their_own(shop: Shop) -> None:
    """Item b is sensitive; ann lets every source use that too, bob does not."""
    sensitive = tuple(1 << (40 + source) for source in range(len(TRAIN)))
    shop.granted = {"ann": ALL | sum(sensitive), "bob": ALL}
    context = replace(shop.context(), sensitive_items=(1,), sensitive=sensitive)
    rows = [row(item, user_id=name) for name in ("ann", "bob") for item in "ab"]
    folder = shop.fresh("sensitive")
    split_files([str(write(folder / "log" / "0.parquet", rows))], context, folder, folder / "quarantine", "part-0")
    ann, bob = KEYS.rotating.derive_many(["ann", "bob"])
    found = {(each["user_key"], each["item"]): each for each in parts(folder).to_dicts()}
    for purpose in ("trainable", "profilable"):
        assert [found[ann, 0][purpose], found[ann, 1][purpose]] == [True, True]
        assert [found[bob, 0][purpose], found[bob, 1][purpose]] == [True, False]
