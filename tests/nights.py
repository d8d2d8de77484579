"""A small shop and real nights on it, for the tests of the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Small enough for a test, with all the stages of a night that matters.
SMALL = (
    "train.epochs=2",
    "towers.width=16",
    "towers.hashed=2048",
    "buckets=2",
    "cluster.cpus=2",
    "rank.candidates=120",
)
SHOP = ("shop.users=400", "shop.items=160", "shop.days=28", "shop.seed=3")


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> Any:
        """The JSON at the end of stdout."""
        return json.loads(self.out.splitlines()[-1])


def command(*arguments: str, timeout: float = 240) -> Ran:
    """Run `python -m ...` from another folder, as a scheduler would."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class SmallShop:
    """A deployment's folder with a simulated shop in it."""

    out: Path

    def nightly(self, *arguments: str, module: str = "jobs.nightly") -> Ran:
        """A night, or one of its steps."""
        return command(module, f"out={self.out}", f"data.path={self.out / 'shop'}", *SMALL, *arguments)

    def served(self) -> str:
        """The snapshot that the pointer names."""
        return str(json.loads((self.out / "snapshots" / "current.json").read_text())["current"])

    def cast(self) -> dict[str, str]:
        """One busy person of each segment, from the simulator's truth."""
        import polars as pl

        truth = pl.read_parquet(self.out / "shop" / "truth" / "users.parquet").sort("events", descending=True)
        return {
            segment: truth.filter(pl.col("segment") == segment)["user_id"][0] for segment in truth["segment"].unique()
        }


def open_small_shop(out: Path) -> SmallShop:
    """Simulate, and import what people granted."""
    made = command("jobs.simulate", f"out={out}", *SHOP)
    assert made.code == 0, made.err
    imported = command("jobs.import_consent", f"out={out}", f"file={out / 'shop' / 'grants.parquet'}")
    assert imported.code == 0, imported.err
    return SmallShop(out)
