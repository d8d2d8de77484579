"""What a simulated shop wrote, as frames."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from engine.activity.simulator import ShopReport


def log_of(folder: Path) -> pl.DataFrame:
    """The whole log, with each item's root and leaf beside it."""
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("log/*/*.parquet"))])
    items = pl.read_parquet(folder / "catalogue.parquet")
    shelf = items.select("item_id", root=pl.col("categories").list[0], leaf=pl.col("categories").list[1])
    return rows.join(shelf, on="item_id", how="left")


def catalogue(report: ShopReport) -> pl.DataFrame:
    """What the shop sells."""
    return pl.read_parquet(report.folder / "catalogue.parquet")


def truth(report: ShopReport, name: str) -> pl.DataFrame:
    """A table of the truth, all days of it."""
    place = report.folder / "truth" / name
    files = sorted(place.glob("*/*.parquet")) if place.is_dir() else [place.with_suffix(".parquet")]
    return pl.concat([pl.read_parquet(path) for path in files])


def checksums(folder: Path) -> dict[str, str]:
    """Of every file, by its name inside the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
