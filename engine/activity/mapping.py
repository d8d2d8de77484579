"""How a team's own files become the contract: settings alone, no code."""

from __future__ import annotations

import datetime as dt
import difflib
import math
import zoneinfo
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SettingsError
from engine.schema import CATALOGUE, EVENTS

LOG_COLUMNS = ("event_id", "user_id", "item_id", "event", "ts", "value", "source", "session_id", "flags")
ITEM_COLUMNS = tuple(CATALOGUE.names)
NEEDED = ("item_id", "event", "ts", "source")
CONSTANTS = ("event", "source")  # what may be the same for a whole log
COARSE_TIMES = ("", "minute", "hour", "day")
UNITS = ("s", "ms", "us", "ns")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


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
    """Consent that a public research log comes with: purposes granted for all in it who have no ledger entry yet."""

    everyone: list[str] = field(default_factory=list)
    notice_version: str = ""


@dataclass(slots=True)
class CoarsenRule:
    """How much less is kept than the log tells. time: "", minute, hour or day: times are cut down to it. price_bands: a
    power of ten of prices becomes so many bands, each told by its middle; 0: as they are.
    """

    time: str = ""
    price_bands: int = 0


@dataclass(slots=True)
class DataSettings:
    """Where the input lies and how its columns map to the contract. Empty column name: not there."""

    name: str = ""
    path: str = ""  # folder or URI that pyarrow.fs opens
    log: list[str] = field(default_factory=lambda: ["log"])  # files or folders below path
    live: str = ""  # folder or URI to which servers ship the events that they took; empty: none are read
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
    coarsen: CoarsenRule = field(default_factory=CoarsenRule)
    bad_rows_allowed: float = 0.01
    bad_files_allowed: float = 0.05

    def column(self, name: str) -> str:
        """The team's name of a contract column of the log; empty when the log has none."""
        return self.columns.get(name, "" if self.columns else name)

    def item_column(self, name: str) -> str:
        """The team's name of a contract column of the catalogue; empty when it has none."""
        return self.item_columns.get(name, "" if self.item_columns else name)

    def plain(self) -> DataSettings:
        """The same rules for files that keep the contract as it stands, as those under `live` do."""
        return replace(
            self, path=self.live, log=[], columns={}, constants={}, events={}, time_unit="", time_zone="UTC", order=""
        )

    def as_of_microseconds(self) -> int | None:
        """`as_of` since 1970, UTC where it names no zone; None where it is empty.

        Raises:
            SettingsError: it is no ISO time.
        """
        if not self.as_of:
            return None
        try:
            when = dt.datetime.fromisoformat(self.as_of)
        except ValueError as error:
            raise SettingsError(f"data.as_of is '{self.as_of}'.", "Write it as 2026-01-31T04:00:00+00:00.") from error
        when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
        return (when - _EPOCH) // dt.timedelta(microseconds=1)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            SettingsError: names the setting and the near miss.
        """
        if not self.path:
            raise SettingsError("data.path is not set.", "Add data.path=FOLDER_OR_URI.")
        _known(self.columns, LOG_COLUMNS, "data.columns")
        _known(self.constants, CONSTANTS, "data.constants")
        _known(self.item_columns, ITEM_COLUMNS, "data.item_columns")
        _known(self.weights, EVENTS, "data.weights")
        _known(self.retention_days, EVENTS, "data.retention_days")
        for name, rule in self.events.items():
            if bool(rule.means) and bool(rule.undoes):
                raise SettingsError(f"data.events.{name} both means and undoes something.", "Give one of the two.")
            _known((rule.means, rule.undoes), (*EVENTS, ""), f"data.events.{name}")
        self._check_mapped()
        self._check_time()
        numbers = {"gift_weight": self.gift_weight}
        numbers |= {f"weights.{name}": value for name, value in self.weights.items()}
        numbers |= {f"retention_days.{name}": value for name, value in self.retention_days.items()}
        for name, value in numbers.items():
            if not (math.isfinite(value) and value >= 0):
                raise SettingsError(f"data.{name} is {value}.", "Give a number of 0 or more.")
        if self.events_per_user < 1 or not all(
            0 <= share <= 1 for share in (self.bad_rows_allowed, self.bad_files_allowed)
        ):
            raise SettingsError(
                "data.events_per_user must be at least 1, and data.bad_rows_allowed and bad_files_allowed lie in 0..1.",
                "Correct conf/data.",
            )
        if self.weights.get("dismiss_category"):
            raise SettingsError("data.weights.dismiss_category is set.", "Leave it out: dismissing is no interest.")
        _known([self.coarsen.time], COARSE_TIMES, "data.coarsen.time")
        if not 0 <= self.coarsen.price_bands <= 100:
            raise SettingsError(f"data.coarsen.price_bands is {self.coarsen.price_bands}.", "Give 0 to 100.")

    def _check_mapped(self) -> None:
        for name in self.constants:
            if self.columns.get(name):
                raise SettingsError(
                    f"data.columns and data.constants both give '{name}'.", "Keep the one that is meant."
                )
        given = {name for name in LOG_COLUMNS if self.column(name)} | set(self.constants)
        given |= {"ts"} if self.order else set()
        missing = [f"data.columns gives no '{name}'." for name in NEEDED if name not in given]
        if not self.item_column("item_id"):
            missing.append("data.item_columns gives no 'item_id'.")
        if missing:
            raise SettingsError(
                missing[0],
                "Name the team's column of it; event and source may be data.constants, and data.order stand for ts.",
            )

    def _check_time(self) -> None:
        self.as_of_microseconds()
        if self.time_unit and self.time_unit not in UNITS:
            raise SettingsError(f"data.time_unit is '{self.time_unit}'.", f"Use one of {', '.join(UNITS)}.")
        if self.time_zone == "UTC":
            return  # known even where the machine has no time zone data
        try:
            if self.time_zone == "localtime":
                raise ValueError("each machine has another")
            zoneinfo.ZoneInfo(self.time_zone)
            pc.assume_timezone(pa.scalar(0, pa.timestamp("us")), self.time_zone)  # which knows fewer names
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError) as error:
            near = near_miss(self.time_zone, zoneinfo.available_timezones() - {self.time_zone})
            raise SettingsError(
                f"data.time_zone is '{self.time_zone}'" + (f"; did you mean '{near}'?" if near else "."),
                "Use a name of the IANA time zone database, such as Europe/Berlin.",
            ) from error


def near_miss(name: str, known: Iterable[str]) -> str:
    """What `name` was probably meant to be, whatever its case; empty when nothing is near."""
    by_lower = {each.lower(): each for each in sorted(known, reverse=True)}
    found = difflib.get_close_matches(name.lower(), by_lower, 1)
    return by_lower[found[0]] if found else ""


def _known(given: Iterable[str], allowed: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in allowed:
            near = near_miss(name, allowed)
            raise SettingsError(
                f"{where} names '{name}', which cannot stand there" + (f"; did you mean '{near}'?" if near else "."),
                f"Use {', '.join(filter(None, allowed))}.",
            )
