"""Settings that cannot be meant are refused before a file is opened, with the near miss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from engine.activity.mapping import DataSettings, EventRule, near_miss
from engine.errors import SettingsError

CONF = Path(__file__).parents[2] / "conf" / "data"
MAPPED = {"item_id": "sku", "event": "what", "ts": "at", "source": "channel"}


def settings(**given: Any) -> DataSettings:
    return DataSettings(path="logs", **given)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_mapping_of_the_project_can_be_meant(path: Path) -> None:
    found = OmegaConf.create(path.read_text())
    own = found.data if "data" in found else found
    chosen = OmegaConf.merge(OmegaConf.structured(DataSettings), own, {"path": "logs"})
    data = OmegaConf.to_object(chosen)
    assert isinstance(data, DataSettings)
    data.check()


def test_the_contract_itself_needs_no_mapping() -> None:
    data = settings()
    data.check()
    assert data.column("user_id") == "user_id"
    assert data.item_column("title") == "title"


def test_what_a_mapping_leaves_out_is_not_there() -> None:
    data = settings(columns=MAPPED, item_columns={"item_id": "sku"})
    data.check()
    assert (data.column("item_id"), data.column("user_id"), data.item_column("title")) == ("sku", "", "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"columns": MAPPED | {"user_ID": "who"}}, "data.columns names 'user_ID'.*did you mean 'user_id'"),
        ({"columns": MAPPED | {"colour": "c"}}, "data.columns names 'colour', which cannot stand there[.]"),
        ({"item_columns": {"item_id": "x", "tittle": "t"}}, "data.item_columns names 'tittle'.*'title'"),
        ({"constants": {"sourse": "web"}}, "data.constants names 'sourse'.*'source'"),
        ({"constants": {"user_id": "everyone"}}, "data.constants names 'user_id'"),
        ({"constants": {"ts": "2026-01-01"}}, "data.constants names 'ts'"),
        ({"weights": {"veiw": 1.0}}, "data.weights names 'veiw'.*'view'"),
        ({"retention_days": {"purchases": 1.0}}, "data.retention_days names 'purchases'.*'purchase'"),
        ({"events": {"buy": EventRule(means="purchased")}}, "data.events.buy names 'purchased'.*'purchase'"),
        ({"events": {"no": EventRule(undoes="Purchase")}}, "data.events.no names 'Purchase'.*'purchase'"),
        ({"events": {"x": EventRule(means="view", undoes="view")}}, "data.events.x both means and undoes"),
        ({"columns": MAPPED, "constants": {"source": "web"}}, "both give 'source'"),
        ({"columns": {"item_id": "sku", "event": "what", "source": "s"}}, "data.columns gives no 'ts'"),
        ({"columns": {"ts": "at", "event": "what", "source": "s"}}, "data.columns gives no 'item_id'"),
        ({"item_columns": {"title": "name"}}, "data.item_columns gives no 'item_id'"),
        ({"time_unit": "minutes"}, "data.time_unit is 'minutes'"),
        ({"time_zone": "europe/Berln"}, "data.time_zone is 'europe/Berln'; did you mean 'Europe/Berlin'"),
        ({"time_zone": "/etc/passwd"}, "data.time_zone is '/etc/passwd'"),
        ({"time_zone": "right/UTC"}, "data.time_zone is 'right/UTC'"),
        ({"time_zone": "localtime"}, "data.time_zone is 'localtime'"),
        ({"as_of": "yesterday"}, "data.as_of is 'yesterday'"),
        ({"gift_weight": -0.5}, "data.gift_weight is -0.5"),
        ({"weights": {"view": math.nan}}, "data.weights.view is nan"),
        ({"retention_days": {"view": -1.0}}, "data.retention_days.view is -1.0"),
        ({"events_per_user": 0}, "data.events_per_user"),
        ({"bad_rows_allowed": 1.5}, "data.bad_rows_allowed"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        settings(**given).check()
    assert caught.value.remedy


def test_a_missing_path_is_named() -> None:
    with pytest.raises(SettingsError, match=r"data\.path"):
        DataSettings().check()


def test_an_order_or_a_constant_may_stand_for_a_column() -> None:
    columns = {"item_id": "sku"}
    settings(columns=columns, order="place", constants={"event": "purchase", "source": "web"}).check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("1970-01-01", 0),
        ("1970-01-01T00:00:00.000001", 1),
        ("1970-01-02T01:00:00+01:00", 86_400_000_000),
        ("2026-01-31T04:05:06.789123+00:00", 1_769_832_306_789_123),
    ],
)
def test_as_of_is_read_to_the_microsecond(text: str, expected: int | None) -> None:
    assert settings(as_of=text).as_of_microseconds() == expected


def test_a_near_miss_forgives_case_and_refuses_strangers() -> None:
    assert near_miss("USER_ID", ["item_id", "user_id"]) == "user_id"
    assert near_miss("Purchase", ["purchase", "view"]) == "purchase"
    assert near_miss("xyz", ["purchase", "view"]) == ""
    assert near_miss("view", []) == ""
