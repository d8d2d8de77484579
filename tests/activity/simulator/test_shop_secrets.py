"""The truth is apart: nothing that a shop would record tells it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from engine.activity import simulator
from engine.activity.simulator import ShopReport
from tests.activity.simulator.frames import catalogue, truth


def test_ids_give_nothing_away(report: ShopReport, log: pl.DataFrame) -> None:
    assert all(re.fullmatch(r"user-\d{5}", name) for name in log["user_id"].drop_nulls().unique())
    assert all(re.fullmatch(r"item-\d{5}", name) for name in log["item_id"].unique())
    for column in ("event_id", "session_id"):
        assert log[column].str.contains(r"^[0-9a-f]{16}$").all()
    number = pl.col("user_id").str.slice(5).cast(pl.Int64)
    means = truth(report, "users").group_by("segment").agg(number.mean().alias("mean"), pl.len())
    # Ids of a segment lie about the middle of all ids, within four standard errors.
    allowed = 4 * report.people / np.sqrt(12 * means["len"].to_numpy())
    assert (abs(means["mean"].to_numpy() - report.people / 2) < allowed).all()


def test_the_log_and_the_catalogue_never_speak_of_the_truth(report: ShopReport, log: pl.DataFrame) -> None:
    secrets = {
        "segment",
        "group",
        "mood",
        "satisfied",
        "clickbait",
        "quality",
        "newcomer",
        "regular",
        "burst",
        "no_consent",
        "repeat",
        "interest",
        "truth",
        "browse",
    }
    items = catalogue(report)
    for frame in (log, items):
        words = {word for column in frame.columns for word in re.split(r"\W+|_", column)}
        for column in ("event", "source", "flags", "title", "text", "sensitive"):
            if column in frame.columns:
                texts = frame[column].explode() if frame[column].dtype == pl.List else frame[column]
                words |= {word for text in texts.drop_nulls().unique() for word in re.split(r"\W+", text.lower())}
        assert not words & secrets
    for path in [report.folder / "catalogue.parquet", *report.folder.glob("log/*/*")]:
        assert set(pq.read_metadata(path).metadata or {}) <= {b"ARROW:schema"}


def test_only_a_part_of_the_gifts_is_flagged_and_nothing_else_is(report: ShopReport, log: pl.DataFrame) -> None:
    told = log.join(truth(report, "events").select("event_id", "reason"), on="event_id", how="left")
    flagged = told.filter(pl.col("flags").list.contains("gift"))
    assert len(flagged) == report.gifts_flagged == told["flags"].list.len().sum()
    assert set(flagged["reason"]) == {"gift"}
    markable = told.filter((pl.col("reason") == "gift") & pl.col("event").is_in(["cart", "purchase"]))
    assert len(flagged) / len(markable) == pytest.approx(0.4, abs=0.05)


def test_the_truth_names_who_was_behind_each_event(report: ShopReport, log: pl.DataFrame) -> None:
    told = log.join(truth(report, "events"), on="event_id", suffix="_true")
    assert len(told) == len(truth(report, "events")) == report.gifts + report.repeats
    known = told.filter(pl.col("user_id").is_not_null())
    assert len(known) < len(told)
    assert (known["user_id"] == known["user_id_true"]).all()


def test_the_simulator_knows_no_other_room() -> None:
    for path in Path(simulator.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engine"):
                assert re.match(r"engine\.(errors|schema|activity\.simulator(\..*)?)$", node.module or ""), path


def test_groups_stand_in_one_table_of_the_truth_and_in_no_id(report: ShopReport) -> None:
    holding = {path.name for path in report.folder.rglob("*.parquet") if "group" in pq.read_schema(path).names}
    assert holding == {"users.parquet"}
    assert [path.parent.name for path in report.folder.rglob("users.parquet")] == ["truth"]
    number = pl.col("user_id").str.slice(5).cast(pl.Int64)
    for column in ("group", "age"):
        means = truth(report, "users").group_by(column).agg(number.mean().alias("mean"), pl.len())
        allowed = 4 * report.people / np.sqrt(12 * means["len"].to_numpy())
        assert (abs(means["mean"].to_numpy() - report.people / 2) < allowed).all()
