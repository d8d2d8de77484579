"""Where the home pages of a simulated shop come from: a server over gRPC, or what sells best to everybody."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from bodega.client import Client, event, grant, recommend_request
from bodega.v1 import ranking_pb2

from engine.activity.simulator import ShopSettings, Visitor
from engine.errors import DataError
from jobs.progress import say

_BATCH, _EVENTS = 100, 1000  # what BatchRecommend and RecordEvents take
_SECONDS = 30.0
_BEST_SELLING_DAYS = 30


class ServerLists:
    """The server's lists for the visitors of a day.

    asked, profiled: lists so far, and those that stand on something of the person. share_today: of the last day.
    """

    def __init__(self, client: Client, limit: int) -> None:
        self._client, self._limit = client, limit
        self.asked = self.profiled = 0
        self.share_today = 0.0

    def __call__(self, visitors: Sequence[Visitor], day: int) -> list[list[str]]:
        """One list for each visitor; empty where the server had a problem, which is said."""
        given: list[list[str]] = []
        profiled, problems = 0, []
        for first in range(0, len(visitors), _BATCH):
            requests = [
                recommend_request(each.user_id, surface="home", limit=self._limit, region=each.region, minor=each.minor)
                for each in visitors[first : first + _BATCH]
            ]
            for result in self._client.batch_recommend(requests, timeout=_SECONDS):
                if result.HasField("problem"):
                    problems.append(result.problem.message)
                mode = result.response.provenance.mode
                profiled += mode in (ranking_pb2.Provenance.MODE_PROFILED, ranking_pb2.Provenance.MODE_LIMITED)
                given.append([item.item_id for item in result.response.items])
        if problems:
            say(f"{len(problems)} of {len(visitors)} lists were refused, such as: {problems[0]}")
        self.asked += len(visitors)
        self.profiled += profiled
        self.share_today = profiled / max(1, len(visitors))
        return given


class BestSellers:
    """What was bought most within the last 30 days and is sold in the visitor's region: the same for everybody there."""

    def __init__(self, folder: Path, settings: ShopSettings) -> None:
        self._folder, self._settings = folder, settings
        self.asked = self.profiled = 0
        self.share_today = 0.0

    def __call__(self, visitors: Sequence[Visitor], day: int) -> list[list[str]]:
        """One list for each visitor."""
        morning = self._settings.start + dt.timedelta(days=day)
        self.asked += len(visitors)
        days = range(max(0, day - _BEST_SELLING_DAYS), day)
        if not days:  # nothing has sold yet
            return [[] for _ in visitors]
        dates = (self._settings.start + dt.timedelta(days=each) for each in days)
        files = [self._folder / "log" / f"date={date}" / "part-00000.parquet" for date in dates]
        sold = pl.scan_parquet(files).filter(event="purchase").group_by("item_id").len()
        items = pl.scan_parquet(self._folder / "catalogue.parquet").filter(
            pl.col("available_until").is_null() | (pl.col("available_until").dt.date() > morning)
        )
        best = sold.join(items.select("item_id", "regions"), on="item_id")
        ranked = best.sort(["len", "item_id"], descending=[True, False]).collect()
        everywhere = pl.col("regions").list.len() == 0
        by_region = {
            region: ranked.filter(everywhere | pl.col("regions").list.contains(region))["item_id"]
            .head(self._settings.page)
            .to_list()
            for region in {each.region for each in visitors}
        }
        return [by_region[each.region] for each in visitors]


def tell_consent(client: Client, changes: pa.Table) -> None:
    """Record what people decided.

    Args:
        changes: schema.GRANTS, in time.

    Raises:
        BodegaRpcError: the server refused, or cannot write its ledger.
    """
    said = ("user_id", "occurred_at", "notice_version", "actor")
    for (user, at, notice, actor), rows in groupby(
        sorted(changes.to_pylist(), key=lambda row: (row["occurred_at"], row["user_id"])),
        key=lambda row: tuple(row[name] for name in said),
    ):
        client.set_consent(
            user,
            [grant(row["purpose"], row["source"], granted=row["granted"]) for row in rows],
            notice_version=notice,
            actor=actor,
            occurred_at=at,
        )


def tell_events(client: Client, log: pa.Table) -> None:
    """Tell the server what known people did, as backends do while it happens.

    Args:
        log: of one day, as the simulator writes it.

    Raises:
        DataError: the server refused an event. BodegaRpcError: it cannot make them durable.
    """
    known = log.filter(pc.is_valid(log["user_id"])).to_pylist()
    for first in range(0, len(known), _EVENTS):
        told = client.record_events(
            [
                event(
                    row["user_id"], row["event"], row["item_id"], source=row["source"], event_id=row["event_id"],
                    time=row["ts"], value=row["value"], flags=row["flags"] or (),
                )
                for row in known[first : first + _EVENTS]
            ],
            timeout=_SECONDS,
        )  # fmt: skip
        if told.rejected:
            problem = told.rejected[0].problem
            raise DataError(f"{len(told.rejected)} events were refused, such as: {problem.message}", problem.remedy)
