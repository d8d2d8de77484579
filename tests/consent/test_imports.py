from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.consent import KEYED_GRANTS, Change, Imported, Ledger
from engine.errors import ConsentError


def test_an_import_counts_people_changes_and_what_it_skipped(ledger: Ledger, key: Any, grants: Any) -> None:
    rows = [
        (key(1), "+profile/", 1.0),
        (key(1), "+train/web", 1.0),
        (key(2), "-profile/", None),
        (key(2), "-profile/", None),
    ]
    assert ledger.import_grants(grants(*rows)) == Imported(people=2, changes=3, skipped=1)
    assert ledger.sequence() == 2
    assert ledger.standing(key(1)).granted == ledger.vocabulary.groups | ledger.vocabulary.mask("train", "web")
    assert ledger.standing(key(2)).known and ledger.standing(key(2)).granted == 0
    line = ledger.changes(key(2), 0, 9)[0]
    assert line.imported and line.occurred_at is None and line.actor == "operator" and line.notice_version == "notice-0"


def test_an_empty_import_does_nothing(ledger: Ledger) -> None:
    assert ledger.import_grants(KEYED_GRANTS.empty_table()) == Imported(0, 0, 0)
    assert ledger.sequence() == 0


def test_a_repeated_import_never_overrides_a_later_withdrawal(
    ledger: Ledger, record: Any, key: Any, grants: Any
) -> None:
    table = grants((key(1), "+profile/", 1.0), (key(2), "+profile/web", None))
    ledger.import_grants(table)
    record(key(1), "-profile/web")
    record(key(2), "-profile/web", preference=2)
    assert ledger.import_grants(table) == Imported(0, 0, 2)
    assert ledger.standing(key(1)).granted == 0b111100
    assert (ledger.standing(key(2)).granted, ledger.standing(key(2)).preference) == (0, 2)


def test_the_same_old_grants_under_another_notice_do_not_override_a_withdrawal_either(
    ledger: Ledger, record: Any, key: Any, grants: Any
) -> None:
    record(key(1), "-profile/web")
    record(key(2), "-profile/")
    rows = [(key(1), "+profile/", 5.0), (key(1), "+profile/web", None), (key(2), "+profile/app", 5.0)]
    assert ledger.import_grants(grants(*rows)) == Imported(people=1, changes=1, skipped=2)
    assert ledger.standing(key(1)).granted == 0b111100
    assert not ledger.standing(key(2)).granted


def test_a_grant_given_after_a_withdrawal_comes_in(ledger: Ledger, record: Any, key: Any, grants: Any) -> None:
    record(key(1), "-profile/web")
    time.sleep(0.01)
    later = time.time()
    ledger.import_grants(grants((key(1), "+profile/web", later)))
    assert ledger.standing(key(1)).granted == 0b11


def test_within_one_import_time_decides_and_a_withdrawal_wins_a_tie(ledger: Ledger, key: Any, grants: Any) -> None:
    ledger.import_grants(
        grants(
            (key(1), "+profile/web", 2.0),
            (key(1), "-profile/web", 1.0),
            (key(2), "-profile/web", 2.0),
            (key(2), "+profile/web", 1.0),
            (key(3), "-profile/web", 2.0),
            (key(3), "+profile/", 2.0),
            (key(4), "-profile/web", None),
            (key(4), "+profile/web", 2.0),
        )
    )
    assert [ledger.standing(key(n)).granted for n in (1, 2, 3, 4)] == [0b11, 0, 0b111100, 0]


def test_two_files_in_either_order_keep_the_later_withdrawal(ledger: Ledger, key: Any, grants: Any) -> None:
    older, younger = ("+profile/web", 1.0), ("-profile/web", 2.0)
    ledger.import_grants(grants((key(1), *older), (key(2), *younger)))
    ledger.import_grants(grants((key(1), *younger), (key(2), *older)))
    assert ledger.standing(key(1)).granted == ledger.standing(key(2)).granted == 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [("+profil/web", "Did you mean 'profile'"), ("+profile/wbe", "Did you mean 'web'")],
)
def test_an_unknown_name_names_the_near_miss_and_nothing_comes_in(
    said: str, expected: str, ledger: Ledger, key: Any, grants: Any
) -> None:
    with pytest.raises(ConsentError, match=expected):
        ledger.import_grants(grants((key(1), "+profile/web", 1.0), (key(2), said, 1.0)))
    assert ledger.sequence() == 0


def test_a_wrong_column_is_named_with_expected_and_found(ledger: Ledger, key: Any, grants: Any) -> None:
    table = grants((key(1), "+profile/web", 1.0))
    wide = table.set_column(0, "user_key", pa.array([b"x" * 32], pa.binary()))
    with pytest.raises(ConsentError, match=r"'user_key': expected fixed_size_binary\[16\], found binary"):
        ledger.import_grants(wide)
    with pytest.raises(ConsentError, match="'actor': expected string, found no such column"):
        ledger.import_grants(table.drop_columns(["actor"]))


@pytest.mark.parametrize("column", ["user_key", "purpose", "source", "granted"])
def test_a_null_where_a_value_is_needed_is_refused(column: str, ledger: Ledger, key: Any, grants: Any) -> None:
    table = grants((key(1), "+profile/web", 1.0))
    place = table.schema.get_field_index(column)
    with pytest.raises(ConsentError, match=f"'{column}' is null in 1 of 1"):
        ledger.import_grants(table.set_column(place, column, pa.nulls(1, table.schema.field(column).type)))


def test_a_grant_from_the_future_is_refused(ledger: Ledger, key: Any, grants: Any) -> None:
    with pytest.raises(ConsentError, match="future in 1 of 2"):
        ledger.import_grants(grants((key(1), "+profile/web", 1.0), (key(2), "+profile/web", time.time() + 3600)))


@pytest.mark.parametrize("column", ["notice_version", "actor"])
def test_a_text_with_a_nul_is_refused_and_nothing_comes_in(column: str, ledger: Ledger, key: Any, grants: Any) -> None:
    table = grants((key(1), "+profile/web", 1.0), (key(2), "+profile/web", 1.0))
    place = table.schema.get_field_index(column)
    with pytest.raises(ConsentError, match=f"'{column}' holds a NUL"):
        ledger.import_grants(table.set_column(place, column, pa.array(["fine", "a\0b"])))
    assert ledger.sequence() == 0


@pytest.mark.parametrize(
    "text", ["", "tab\there", "line\nfeed", "back\\slash \\N \\.", '"\u2028\U0001f600', "%s %(a)s", "'; --"]
)
def test_any_other_text_comes_back_as_it_was(text: str, ledger: Ledger, key: Any, grants: Any) -> None:
    ledger.import_grants(grants((key(1), "+profile/web", 1.0), notice_version=text))
    ledger.record(key(2), [Change("profile", "web", True)], None, text, text, text, None)
    assert ledger.changes(key(1), 0, 9)[0].notice_version == text
    (line,) = ledger.changes(key(2), 0, 9)
    assert (line.notice_version, line.actor, line.request_id) == (text, text, text)


def test_a_columns_order_and_extra_columns_do_not_matter(ledger: Ledger, key: Any, grants: Any) -> None:
    table = grants((key(1), "+profile/web", 1.0)).append_column("note", pa.array(["x"]))
    assert ledger.import_grants(table.select(table.schema.names[::-1])).changes == 1


def test_an_import_of_many_people_in_chunks_agrees_with_its_replay(ledger: Ledger) -> None:
    people, rng = 45_001, np.random.default_rng(3)  # more than two chunks
    keys = rng.integers(0, 256, (people, 16), dtype=np.uint8)
    rows = np.repeat(keys, 2, axis=0)
    table = pa.table(
        {
            "user_key": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), len(rows), [None, pa.py_buffer(rows.tobytes())]
            ),
            "purpose": np.tile(np.array(["profile", "train"], object), people),
            "source": np.array(["", "web", "app"], object)[rng.integers(0, 3, len(rows))],
            "granted": rng.random(len(rows)) < 0.7,
            "notice_version": pa.repeat("n", len(rows)),
            "actor": pa.repeat("person", len(rows)),
            "occurred_at": pa.repeat(
                pa.scalar(datetime(2020, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC")), len(rows)
            ),
        }
    )
    assert ledger.import_grants(table) == Imported(people, len(rows), 0)
    ledger.record(keys[7].tobytes(), [Change("profile", "", False)], None, "", "", "", None)
    assert ledger.import_grants(table) == Imported(0, 0, len(rows))
    now, sequence = ledger.standings()
    assert sequence == people + 1 and now.num_rows == people
    assert ledger.standings(sequence)[0].equals(now)
    for place in (0, 19_999, 20_000, people - 1):
        row = now.slice(place, 1).to_pylist()[0]
        assert ledger.standing(row["user_key"]).granted == row["granted"]
