"""One small shop for all tests of the policy: a real snapshot on disk, mapped by the real reader."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from omegaconf import OmegaConf

from engine.policy import Chain, load_policies
from engine.snapshot import Snapshot
from tests.policy.moments import NOW
from tests.snapshot_builder import OPEN, build_snapshot

ITEMS = 60
WIDTH = 5
ROOTS = ("food", "wine", "toys", "books")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """60 items; item i has the root i % 5, where 4 is none, and a leaf below it.

    Items 50..54 are sold in some regions only; 55 starts later, 56 now; 57 has ended, 58 ends now, 59 later.
    """
    folder = tmp_path_factory.mktemp("shop") / "snapshot"
    root = [code % 5 if code % 5 < 4 else -1 for code in range(ITEMS)]
    vectors = np.random.default_rng(7).standard_normal((ITEMS, WIDTH)).astype(np.float32)
    vectors[10:20] = vectors[10]  # copies
    vectors[20:25] = 0  # new items
    columns: dict[str, Any] = {
        "root_category": root,
        "categories": [
            [ROOTS[row], f"{ROOTS[row]}/{code % 3}", *(["wine"] if code == 20 else [])] if row >= 0 else []
            for code, row in enumerate(root)
        ],
        "regions": [[]] * 50 + [["DE"], ["DE-BY"], ["FR", "DE-BY-X"], ["de"], ["US-CA", "US-NY"]] + [[]] * 5,
        "available_from": [OPEN[0]] * 55 + [NOW + 1, NOW] + [OPEN[0]] * 3,
        "available_until": [OPEN[1]] * 57 + [NOW - 1, NOW, NOW + 1],
        "vector": vectors.tolist(),
    }
    build_snapshot(folder, items=ITEMS, item_columns=columns, categories=ROOTS, width=WIDTH)
    with Snapshot.open(folder) as snapshot:
        yield snapshot


@pytest.fixture(scope="session")
def surfaces() -> dict[str, Chain]:
    """The policies that come with Bodega, as chains by surface."""
    spec = OmegaConf.load(Path(str(files("conf"))) / "policy" / "default.yaml")
    return dict(load_policies(cast(dict[str, Any], OmegaConf.to_container(spec))))
