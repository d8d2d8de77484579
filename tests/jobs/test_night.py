"""The night as a whole: what it prints, what it leaves, what it skips, and what stops it."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.activity.settle import WEIGHTS
from engine.kernels.encode_user import Scale
from engine.ranking.settings import RankSettings
from engine.schema import EVENTS
from engine.snapshot import Registry
from jobs.evaluate import DIAL, RANKERS


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def test_the_last_line_tells_how_the_served_lists_did_beside_the_simple_rankers(first_night):
    figures = first_night.last_line
    for ranker in RANKERS:
        for kind in ("all", "new"):
            assert 0 <= figures[ranker][kind]["recall@20"] <= 1
            assert 0 <= figures[ranker][kind]["ndcg@10"] <= 1
    assert figures["served"]["all"]["recall@20"] > figures["popularity"]["all"]["recall@20"]
    full, purchases, nothing = (figures[ranker]["all"]["recall@20"] for ranker in DIAL)
    assert min(full, purchases) > nothing > 0, "what a person allows helps, and who allows nothing is served too"
    assert re.fullmatch(r"\d{8}-[0-9a-f]{12}", figures["snapshot"])
    assert figures["seconds"] > 0


def test_a_rerun_skips_what_is_whole_and_publishes_the_same_snapshot(small_shop, first_night):
    again = small_shop.nightly()
    assert again.code == 0, again.err
    assert again.last_line["snapshot"] == first_night.last_line["snapshot"] == small_shop.served()
    assert "is there already" in again.err and "epoch" not in again.err
    assert again.last_line["served"] == first_night.last_line["served"]


def test_another_run_of_the_same_input_gives_the_same_bytes(small_shop, first_night):
    other = small_shop.nightly("run=again", module="jobs.nightly")
    assert other.code == 0, other.err
    runs = small_shop.out / "runs"
    first = next(path for path in runs.iterdir() if path.name.startswith("night-"))
    for stage in ("ingest", "embed", "rank"):
        assert digests(first / stage, "*.arrow") == digests(runs / "again" / stage, "*.arrow"), stage
    assert other.last_line["served"] == first_night.last_line["served"]
    Registry(small_shop.out / "snapshots").rollback()
    assert small_shop.served() == first_night.last_line["snapshot"]


def test_the_snapshot_tells_the_server_how_its_night_weighs_events_and_names_every_category(small_shop, first_night):
    with Registry(small_shop.out / "snapshots").open(small_shop.served()) as snapshot:
        scale, paths = Scale.of(snapshot.tower), snapshot.items.paths
        roots = {snapshot.items.category_path(item)[0] for item in range(snapshot.items.count)}
        names = snapshot.categories
    assert dict(zip(EVENTS, scale.event_weights, strict=True)) == pytest.approx(
        {name: WEIGHTS.get(name, 0.0) for name in EVENTS}
    )
    assert {EVENTS[code]: days for code, days in scale.hides.items()} == RankSettings().seen
    assert scale.gift_weight == 0.0 and scale.similar.trust > 0 and scale.similar.keep > 0
    assert names[: len(roots)] == tuple(sorted(roots)) and set(names) == set(paths.names) and len(names) > len(roots)


def test_a_gate_keeps_yesterday_unless_a_reason_is_given(small_shop, first_night):
    before = small_shop.served()
    run = next(path.name for path in (small_shop.out / "runs").iterdir() if path.name.startswith("night-"))
    blocked = small_shop.nightly(f"run={run}", "gates.least_items=100000", module="jobs.publish")
    assert blocked.code == 6
    assert "items: 160, at least 100000 expected" in blocked.err and "force=REASON" in blocked.err
    assert small_shop.served() == before
    forced = small_shop.nightly(f"run={run}", "gates.least_items=100000", "force=stocktaking", module="jobs.publish")
    assert forced.code == 0, forced.err
    facts = json.loads((small_shop.out / "runs" / run / "publish" / "_stage.json").read_text())["facts"]
    assert facts["forced"] == "stocktaking" and facts["broken"]


def test_a_diverging_fit_stops_the_night_and_nothing_is_published(small_shop, first_night):
    before = small_shop.served()
    broken = small_shop.nightly("run=diverged", "train.rate=1e30")
    assert broken.code == 5, broken.err
    assert "diverged" in broken.err and "remedy:" in broken.err and "Traceback" not in broken.err
    assert small_shop.served() == before
    assert not list((small_shop.out / "runs" / "diverged" / "train").rglob("model.safetensors"))


def test_no_raw_user_id_is_in_any_artefact_or_log(small_shop, first_night):
    ids = set(pq.read_table(small_shop.out / "shop" / "grants.parquet")["user_id"].to_pylist())
    assert len(ids) > 100
    pattern = re.compile(b"|".join(re.escape(name.encode()) for name in sorted(ids)))
    assert not pattern.search(first_night.err.encode() + first_night.out.encode())
    for folder in ("runs", "snapshots", "activity"):
        for path in (small_shop.out / folder).rglob("*"):
            if path.is_file():
                assert not pattern.search(path.read_bytes()), path
    assert not pattern.search((small_shop.out / "consent.db").read_bytes())


def test_a_wrong_setting_is_named_with_its_remedy_before_any_work(small_shop):
    wrong = {
        "train.epoch=3": "Did you mean 'train.epochs'",
        "towers=decayed_poolin": "towers=decayed_pooling",
        "rank.lanes.similar.trustt=1": "trustt",
        "data.path=/nowhere": "/nowhere",
        "force=yes": "is no reason",
        "dry_run=true": "jobs.publish know dry_run",
        "run=../escape": "letters, digits",
    }
    with ThreadPoolExecutor(4) as pool:
        for words, ran in zip(wrong.values(), pool.map(small_shop.nightly, wrong), strict=True):
            assert ran.code in (2, 3) and words in ran.err and "Traceback" not in ran.err
