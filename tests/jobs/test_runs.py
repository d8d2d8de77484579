"""What `bodega runs` says of nights: whole, killed, at work; what one is made of; in what two differ; and no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import record
from jobs.settings import Settings
from jobs.stage import stage
from tests.jobs.test_lock import holding
from tests.nights import SmallShop, command


def make(run: Path, epochs: int = 4, upto: str = "publish", ledger: str = "sqlite:///consent.db") -> None:
    """A run as the stages leave it, by their own means."""
    settings = Settings(out="o", run=run.name)
    settings.train.epochs, settings.store.ledger = epochs, ledger
    run.mkdir(parents=True)
    record.keep(run, settings, {"log/a": "aa", "code": "c1"})
    for name, facts in {
        "ingest": {"events": 1200},
        "train": {},
        "evaluate": {"metrics": {"served.all.recall@20": epochs / 8}},
        "publish": {"snapshot": f"20260131-{epochs:012x}"},
    }.items():
        with stage(run, name, {"code": "c1"}, {"epochs": epochs if name == "train" else 0}) as work:
            if name == upto:
                work.shards_left(["a", "b"])
            for shard in work.shards_left(["a"]):
                (work.folder / "a.bin").write_bytes(bytes(epochs if name == "train" else 7))
                work.shard_done(shard, ["a.bin"])
            if name == upto != "publish":
                return
            if name == upto:
                work.shard_done("b", [])
            work.finish(facts)


def bodega(*arguments: str, code: int = 0) -> str:
    ran = command("jobs.cli", "runs", *arguments)
    assert ran.code == code, ran.err
    return ran.out if code == 0 else ran.err


def listed(out: Path) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(bodega("list", "--out", str(out), "--json"))}


def test_the_list_tells_whole_killed_and_working_runs_apart(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make(runs / "night-aa11")
    make(runs / "night-bb22", upto="train")
    with holding(runs / "night-bb22") as process:
        found = listed(tmp_path)
        assert found["night-bb22"]["states"] == {"ingest": "whole", "train": "at work"}
        assert found["night-bb22"]["holder"].startswith(f"process {process.pid} on ")
        process.kill()
        process.wait()
        assert listed(tmp_path)["night-bb22"]["states"]["train"] == "killed"
    assert set(found["night-aa11"]["states"].values()) == {"whole"} and found["night-aa11"]["holder"] == ""
    assert found["night-aa11"]["snapshot"] == "20260131-000000000004" and not found["night-aa11"]["serves"]
    told = bodega("list", "--out", str(tmp_path))
    assert "whole up to publish" in told and "whole up to ingest, train killed 1/2" in told


def test_one_run_is_shown_by_a_beginning_of_its_name(tmp_path: Path) -> None:
    make(tmp_path / "runs" / "night-aa11", upto="train")
    make(tmp_path / "runs" / "other")
    told = bodega("show", "night", "--out", str(tmp_path))
    assert "night-aa11" in told and "nothing was published" in told and "1/2" in told and "1,200" in told
    seen = json.loads(bodega("show", "ot", "--out", str(tmp_path), "--json"))
    assert [each["name"] for each in seen["stages"]] == ["ingest", "train", "evaluate", "publish"]
    assert seen["stages"][1]["files"].keys() == {"a.bin"} and seen["settings"]["train.epochs"] == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [("nigth-aa11", "Did you mean 'night-aa11'"), ("night", "any of night-aa11, night-ab22"), ("../runs", "no run")],
)
def test_a_name_that_is_none_or_several_is_refused(tmp_path: Path, name: str, words: str) -> None:
    make(tmp_path / "runs" / "night-aa11", upto="train")
    make(tmp_path / "runs" / "night-ab22", upto="train")
    assert words in bodega("show", name, "--out", str(tmp_path), code=2)


def test_two_runs_differ_in_what_was_changed_and_in_what_followed_from_it(tmp_path: Path) -> None:
    make(tmp_path / "runs" / "a")
    make(tmp_path / "runs" / "b", epochs=6)
    found = json.loads(bodega("diff", "a", "b", "--out", str(tmp_path), "--json"))
    assert found["settings"] == {"run": ["a", "b"], "train.epochs": [4, 6]}
    assert found["files"].keys() == {"train/a.bin"} and found["config"].keys() == {"train"}
    assert found["metrics"] == {"served.all.recall@20": [0.5, 0.75]} and "inputs" not in found
    told = bodega("diff", "a", "b", "--out", str(tmp_path))
    assert "train.epochs" in told and "0.75" in told
    assert "the same inputs, settings, files and metrics" in bodega("diff", "a", "a", "--out", str(tmp_path))


def test_no_secret_of_the_settings_is_kept(tmp_path: Path) -> None:
    secrets = ["hunter2", "AKIASECRET", "tok-123", "p%40ss", "sl/ash", "a@t", "c2lnbmVk"]
    make(tmp_path / "run", upto="train", ledger="postgresql://bodega:hunter2@db.example:5432/ledger?sslmode=require")
    text = (tmp_path / "run" / "_settings.json").read_text()
    assert "hunter2" not in text and "postgresql://bodega:***@db.example:5432/ledger?sslmode=require" in text
    given = {
        "path": "s3://KEY:AKIASECRET@bucket/log?region=eu&session_token=tok-123",
        "dsn": "host=db password=hunter2 user=x",
        "deep": [{"api_token": "tok-123", "passwords": ["hunter2"]}],
        "redis": "redis://:p%40ss@cache:6379/0",
        "keys": "out/keys",
        "odd": ["postgresql://u:sl/ash@db/x", "postgresql://u:a@t@db/x"],
        "azure": "https://account.example/box?se=2026&sig=c2lnbmVk",
    }
    told = json.dumps(record.public(given))
    assert not [secret for secret in secrets if secret in told], told
    assert "region=eu" in told and "out/keys" in told and "cache:6379" in told


def test_a_rule_s_one_changed_number_is_told_by_the_key_that_sets_it() -> None:
    rules = {
        "policy": {"home": {"rules": [{"rule": "seen"}, {"rule": "mmr", "strength": 0.1}], "surfaces": ["a", "b"]}}
    }
    flat = record.flat(rules)
    assert flat["policy.home.rules.1.strength"] == 0.1 and flat["policy.home.surfaces"] == ["a", "b"]


def test_a_folder_without_runs_is_no_empty_list(tmp_path: Path) -> None:
    assert "--out" in bodega("list", "--out", str(tmp_path / "nowhere"), code=2)


def test_a_step_of_a_run_that_is_not_there_names_the_one_meant_and_leaves_nothing(small_shop: SmallShop) -> None:
    (small_shop.out / "runs" / "mine").mkdir(parents=True, exist_ok=True)
    for module in ("jobs.rank", "jobs.publish"):
        refused = small_shop.nightly("run=mne", module=module)
        assert refused.code == 2 and "Did you mean 'mine'" in refused.err, refused.err
    assert not (small_shop.out / "runs" / "mne").exists()


def test_help_needs_no_heavy_library() -> None:
    program = "import sys, jobs.cli; print(sorted({'torch', 'ray', 'hydra', 'polars', 'numpy', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.stdout == "[]\n", done.stderr
