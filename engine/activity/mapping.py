"""How a team's own files become the contract: settings alone, no code."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import SettingsError
from engine.schema import EVENTS

LOG_COLUMNS = ("event_id", "user_id", "item_id", "event", "ts", "value", "source", "session_id", "flags")
ITEM_COLUMNS = (
    "item_id",
    "title",
    "text",
    "categories",
    "creator",
    "price",
    "sensitive",
    "regions",
    "available_from",
    "available_until",
    "added",
)
UNITS = ("s", "ms", "us", "ns")


@dataclass(slots=True)
class EventRule:
    """What one of the team's event names means.

    means: one of schema.EVENTS; empty: not read. at_least: the value below which the event is not read.
    undoes: an event that this one takes back, by the quantity in `value`.
    """

    means: str = ""
    at_least: float | None = None
    undoes: str = ""


@dataclass(slots=True)
class GrantRule:
    """Consent that a public research log comes with: purposes granted for everybody in it who has no ledger entry yet."""

    everyone: list[str] = field(default_factory=list)
    notice_version: str = ""


@dataclass(slots=True)
class DataSettings:
    """Where the input lies and how its columns map to the contract. Empty column name: not there."""

    name: str = ""
    path: str = ""  # folder or URI that pyarrow.fs opens
    log: list[str] = field(default_factory=lambda: ["log"])  # files or folders below path
    catalogue: str = "catalogue.parquet"
    grants: GrantRule = field(default_factory=GrantRule)
    columns: dict[str, str] = field(default_factory=dict)
    item_columns: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    keep_items: str = ""  # a boolean catalogue column; false: not offered, its events not read
    time_unit: str = ""  # of an integer ts column; a timestamp column says it itself
    time_zone: str = "UTC"  # of a timestamp without a zone
    order: str = ""  # a rank inside each user, where there are no times; becomes one day a step
    events: dict[str, EventRule] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)  # interest by event
    gift_weight: float = 0.0  # of a want flagged as a gift: what was bought for others says little of oneself
    as_of: str = ""  # ISO time; empty: the last event
    retention_days: dict[str, float] = field(default_factory=dict)  # by event; absent: kept
    events_per_user: int = 10_000  # the latest; a robot cannot outweigh people
    bad_rows_allowed: float = 0.01

    def column(self, name: str) -> str:
        """The team's name of a contract column of the log; empty when the log has none."""
        return self.columns.get(name, "" if self.columns else name)

    def item_column(self, name: str) -> str:
        """The team's name of a contract column of the catalogue; empty when it has none."""
        return self.item_columns.get(name, "" if self.item_columns else name)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            SettingsError: names the setting and the near miss.
        """
        _known(self.columns, LOG_COLUMNS, "data.columns")
        _known(self.constants, LOG_COLUMNS, "data.constants")
        _known(self.item_columns, ITEM_COLUMNS, "data.item_columns")
        _known(self.weights, EVENTS, "data.weights")
        _known(self.retention_days, EVENTS, "data.retention_days")
        for name, rule in self.events.items():
            if bool(rule.means) and bool(rule.undoes):
                raise SettingsError(f"data.events.{name} both means and undoes something.", "Give one of the two.")
            for value in (rule.means, rule.undoes):
                if value:
                    _known({value: ""}, EVENTS, f"data.events.{name}")
        if not self.path:
            raise SettingsError("data.path is not set.", "Add data.path=FOLDER_OR_URI.")
        if self.time_unit and self.time_unit not in UNITS:
            raise SettingsError(f"data.time_unit is '{self.time_unit}'.", f"Use one of {', '.join(UNITS)}.")
        if self.events_per_user < 1 or not 0 <= self.bad_rows_allowed <= 1:
            raise SettingsError(
                "data.events_per_user must be at least 1 and data.bad_rows_allowed lie in 0..1.", "Correct conf/data."
            )


def _known(given: Mapping[str, object], allowed: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            raise SettingsError(
                f"{where} names '{name}', which the contract does not have"
                + (f"; did you mean '{near[0]}'?" if near else "."),
                f"Use {', '.join(allowed)}.",
            )
