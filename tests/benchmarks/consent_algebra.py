"""What it takes to encode a person again on what they allow, and how near the list is to that of a night rebuilt so.

python -m tests.benchmarks.consent_algebra --json
python -m tests.benchmarks.consent_algebra --snapshot FOLDER      recall alone, on a snapshot that a real night published

A shop of clusters, 64 numbers a vector, a hidden layer of 128 and three decays as by default; 100 people with 60 events over four
sources. One core, one thread of BLAS, as a server runs it. Microseconds are medians unless they say p99.

encode_us     a vector from the stored sums of some sources       numpy_us     the same by the reference
top_us        the whole catalogue: products, the 120 best, exact   again_us     all that a narrowed list needs besides the chain
granted_us, narrowed_us, stored_us
              a list with everything granted; with one source withdrawn; and the same from stored profiles alone
equal         (person, subset of sources) whose items and scores are those of a night rebuilt on the subset, of how many
recall        share of the best 20 and 100 of the rebuilt list that are found where the catalogue is not scored as a whole
"""

from __future__ import annotations

import os

for _library in ("OPENBLAS", "MKL", "OMP"):  # before they are loaded
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from itertools import combinations  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import structlog  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from engine.consent import Vocabulary  # noqa: E402
from engine.consent.profiles import Profile  # noqa: E402
from engine.errors import SnapshotError  # noqa: E402
from engine.kernels.encode_user import UserTower, encode, pool, within_groups  # noqa: E402
from engine.kernels.top_k.one import best, longest, rough_scores, slack  # noqa: E402
from engine.ranking.lanes.discovery import DiscoveryLane  # noqa: E402
from engine.ranking.lanes.two_tower import TwoTowerLane  # noqa: E402
from engine.ranking.people import Shop as Shelves  # noqa: E402
from engine.ranking.people import gather  # noqa: E402
from engine.ranking.settings import RankSettings  # noqa: E402
from engine.schema import NEVER  # noqa: E402
from engine.serving import encoding  # noqa: E402
from engine.serving.encoding import LiveTower  # noqa: E402
from engine.serving.recommend import Ask, Recommender  # noqa: E402
from engine.snapshot import Snapshot  # noqa: E402
from engine.two_tower.encoding import group_sums  # noqa: E402
from engine.two_tower.histories import Histories  # noqa: E402
from tests.event_logs import NOON, random_log  # noqa: E402
from tests.rebuilt_nights import filed, publish_night  # noqa: E402
from tests.serving.shop import PROFILES, SOURCES, VOCABULARY, Shop, allow  # noqa: E402

CATALOGUES = (4_000, 20_000, 100_000)
PEOPLE, EVENTS, WIDTH, HIDDEN, CLUSTER = 100, 60, 64, 128, 50
LANES = {
    "two_tower": {"keep": 120, "trust": 0.25},
    "usual": {"keep": 100, "trust": 1.0, "rhythm": 4},
    "similar": {"keep": 60, "trust": 0.05, "latest": 60, "half_life": 90},
    "discovery": {"keep": 30, "trust": 0.3},
    "popular": {"keep": 200, "least_people": 2},
}
SUBSETS = [names for size in range(1, len(SOURCES)) for names in combinations(SOURCES, size)]
EVERYWHERE = 2**62


def tower(rng: np.random.Generator) -> UserTower:
    """A mean of what somebody wanted, bent a little by the hidden layer."""
    draw = lambda scale, *shape: (rng.standard_normal(shape) * scale).astype(np.float32)  # noqa: E731
    return UserTower(
        (np.log(2) / np.array([17.0, 120.0, 1400.0])).astype(np.float32),
        np.full(3, 1 / 3, np.float32),
        draw(0.03, HIDDEN, 3 * WIDTH), draw(0.1, HIDDEN), draw(0.1, WIDTH, HIDDEN), draw(0.1, WIDTH),
        np.full(WIDTH, 0.8, np.float32), np.zeros(WIDTH, np.float32),
    )  # fmt: skip


def shelves(rng: np.random.Generator, items: int) -> Shelves:
    """Clusters of items, each item with its 20 nearest of the cluster."""
    clusters = items // CLUSTER
    centre = rng.standard_normal((clusters, 1, WIDTH))
    vectors = centre + rng.standard_normal((clusters, CLUSTER, WIDTH)) * 0.7
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    cosine = vectors @ vectors.transpose(0, 2, 1) - 9 * np.eye(CLUSTER)
    near = np.argsort(-cosine, axis=2)[:, :, :20]
    likeness = np.maximum(np.take_along_axis(cosine, near, 2), 0).reshape(items, 20)
    code = (near + np.arange(clusters)[:, None, None] * CLUSTER).reshape(items, 20)
    shares = rng.dirichlet(np.full(items, 0.3))
    return Shelves(
        vectors.reshape(items, WIDTH).astype(np.float32),
        code.astype(np.int32),
        likeness.astype(np.float32),
        rng.random(items) * 0.1,
        shares,
        shares < np.median(shares),
        1.2,
    )


def log(rng: np.random.Generator, items: int) -> Histories:
    """People who keep to four clusters, for the most part."""
    past = random_log(rng, PEOPLE, items, PEOPLE * EVENTS, 2 * len(SOURCES), 200.0)
    tastes = rng.integers(0, items // CLUSTER, (PEOPLE, 4))
    liked = tastes[past.owner, rng.integers(0, 4, len(past.item))] * CLUSTER + past.item % CLUSTER
    past.item[:] = np.where(rng.random(len(past.item)) < 0.8, liked, past.item)
    return past


def mask_of(sources: Sequence[str]) -> int:
    """The groups of some sources."""
    return sum(VOCABULARY.mask("profile", source) for source in sources)


def microseconds(call: Callable[[Any], object], asked: Sequence[Any]) -> np.ndarray:
    """Of each call, after a first round that is not counted."""
    for each in asked[:20]:
        call(each)
    found = np.empty(len(asked))
    for place, each in enumerate(asked):
        began = time.perf_counter_ns()
        call(each)
        found[place] = (time.perf_counter_ns() - began) / 1e3
    return found


def towers(snapshot: Snapshot, vocabulary: Vocabulary) -> tuple[LiveTower, LiveTower]:
    """The same tower, asked over the whole catalogue and over what the grants lead to."""
    usual, made = encoding.LIVE_NUMBERS, []
    for numbers in (EVERYWHERE, 0):
        encoding.LIVE_NUMBERS = numbers
        made.append(LiveTower.of(snapshot, vocabulary))
    encoding.LIVE_NUMBERS = usual
    if made[0] is None or made[1] is None:
        raise SnapshotError(
            "The snapshot holds no tower that can be asked by day.", "Publish one with this version and a linear tower."
        )
    return made[0], made[1]


def new_ways(ways: encoding.Ways) -> dict[int, float]:
    """Item and score of what was encoded again."""
    rows = np.flatnonzero(ways.basis[:, -1] != NEVER)
    return dict(zip(ways.item[rows].tolist(), ways.score[rows, -1].tolist(), strict=True))


def recalls(pairs: Iterator[tuple[dict[int, float], dict[int, float]]]) -> dict[str, float]:
    """Share of the first lists' best that the second ones hold."""
    shares: dict[str, list[float]] = {"recall@20": [], "recall@100": []}
    for whole, part in pairs:
        order = sorted(whole, key=lambda item: -whole[item])
        for count in (20, 100):
            top = order[:count]
            shares[f"recall@{count}"].append(len(part.keys() & set(top)) / len(top))
    if not shares["recall@20"]:
        raise SnapshotError(
            "Nobody in the snapshot can be encoded again.", "Name one whose people have events of several sources."
        )
    return {name: round(float(np.mean(each)), 4) for name, each in shares.items()} | {"lists": len(shares["recall@20"])}


def compared(
    snapshot: Snapshot, keys: Sequence[bytes], vocabulary: Vocabulary, profiles: Sequence[Profile], asked: int = 400
) -> Iterator[tuple[dict[int, float], dict[int, float]]]:
    """What the two ways find for people and subsets of sources at random."""
    live, led = towers(snapshot, vocabulary)
    rng = np.random.default_rng(3)
    for _ in range(asked):
        record = snapshot.user(keys[int(rng.integers(len(keys)))])
        assert record is not None
        kept = [source for source in vocabulary.sources if rng.random() < 0.5]
        granted = sum(vocabulary.mask("profile", source) for source in kept)
        whole, part = (each.again(record.candidates, record, granted, profiles) for each in (live, led))
        if whole is not None and part is not None:
            yield new_ways(whole), new_ways(part)


def equal(live: LiveTower, snapshot: Snapshot, past: Histories, shop: Shelves, made: UserTower) -> tuple[int, int]:
    """How many (person, subset) pairs are what a rebuilt night gives, and of how many."""
    lanes = (TwoTowerLane(**LANES["two_tower"]), DiscoveryLane(**LANES["discovery"]))
    profiles = tuple(Profile(each["name"], each["groups"]) for each in PROFILES)
    same = count = 0
    for sources in SUBSETS:
        rebuilt = past.within(mask_of(sources))
        people = gather(
            rebuilt, group_sums(rebuilt, shop.vectors, made), made, tuple((p.name, p.groups) for p in profiles),
            shop.size, NOON, RankSettings(),
        )  # fmt: skip
        expected: list[dict[int, float]] = [{} for _ in range(PEOPLE)]
        for lane in lanes:
            found = lane.find(people, shop)
            for owner, item, score in zip(found.owner.tolist(), found.item.tolist(), found.score.tolist(), strict=True):
                expected[owner][item] = max(score, expected[owner].get(item, 0.0))
        for person, key in enumerate(past.keys.to_pylist()):
            record = snapshot.user(key)
            assert record is not None
            ways = live.again(record.candidates, record, mask_of(sources), profiles)
            if ways is None:  # stored
                continue
            mine, count = new_ways(ways), count + 1
            same += mine.keys() == expected[person].keys() and np.allclose(
                [mine[item] for item in mine], [expected[person][item] for item in mine], rtol=1e-5, atol=0
            )
    return same, count


def shop_of(items: int, folder: Path) -> dict[str, Any]:
    """All figures of one catalogue."""
    rng = np.random.default_rng(items)
    made, goods, past = tower(rng), shelves(rng, items), log(rng, items)
    shop = Shop(folder)
    rotating = shop.keys.rotating
    names = [f"person-{number}" for number in range(PEOPLE)]
    past = filed(past, [rotating.derive(name) for name in names])
    publish_night(shop.snapshots, past, goods, made, VOCABULARY, PROFILES, key_id=rotating.key_id, rank_lanes=LANES)
    profiles = tuple(Profile(each["name"], each["groups"]) for each in PROFILES)
    with shop.served("log.level=error") as (server, client):
        served = server.replica.served
        assert served is not None
        snapshot = served.snapshot
        live, led = towers(snapshot, VOCABULARY)
        records = [snapshot.user(key) for key in past.keys.to_pylist()]
        asked = [
            (record.sums, record, mask_of(SUBSETS[n % len(SUBSETS)])) for n, record in enumerate(records * 20) if record
        ]
        told: dict[str, Any] = {"items": items, "live": items * WIDTH <= encoding.LIVE_NUMBERS}
        encoded = microseconds(lambda each: live.vector(each[0], each[2]), asked)
        told |= {"encode_us": np.median(encoded), "encode_p99_us": np.percentile(encoded, 99)}
        told["numpy_us"] = np.median(microseconds(lambda each: by_reference(each[0], each[2], made), asked[:400]))
        vector, table = live.vector(asked[0][0], EVERYWHERE - 1), snapshot.items.vector
        room = slack(vector, longest(table))
        tops = microseconds(lambda _: best(vector, table, rough_scores(vector, table, room), 120, room), range(300))
        told["top_us"] = np.median(tops)
        for name, each in (("again_us", live), ("again_led_us", led)):
            taken = microseconds(
                lambda ask, each=each: each.again(ask[1].candidates, ask[1], ask[2], profiles), asked[:400]
            )  # type: ignore[misc]
            told[name] = np.median(taken)
        recommender = Recommender(server.replica)
        asks = [Ask(user_id=names[n % PEOPLE], limit=20) for n in range(600)]
        for name in names:
            allow(client, name)
        told["granted_us"] = np.median(microseconds(recommender.recommend, asks))
        for name in names:
            client.withdraw(name, "profile", "app")
        told["narrowed_us"] = np.median(microseconds(recommender.recommend, asks))
        profile = recommender.recommend(asks[0]).profile
        assert profile == encoding.GRANTED, profile
        recommender._towers[snapshot] = None
        told["stored_us"] = np.median(microseconds(recommender.recommend, asks))
        told = {name: round(float(value), 1) if name.endswith("_us") else value for name, value in told.items()}
        if items == CATALOGUES[0]:
            told["equal"] = "{} of {}".format(*equal(live, snapshot, past, goods, made))
        return told | recalls(compared(snapshot, past.keys.to_pylist(), VOCABULARY, profiles))


def by_reference(sums: Any, granted: int, made: UserTower) -> np.ndarray:
    """A vector by the NumPy text."""
    inside = within_groups(granted, sums.group)
    rows = sums.sums[inside].reshape(-1, 3, WIDTH)
    return encode(*pool(rows, sums.weights[inside], sums.last[inside], np.zeros(len(rows), int), 1, made.rates), made)[
        0
    ]


def of_snapshot(folder: Path) -> dict[str, Any]:
    """Recall on a night that was really run."""
    with Snapshot.open(folder) as snapshot:
        keys: list[bytes] = []
        for file in sorted(folder.glob("users-*.arrow")):
            with pa.memory_map(str(file)) as mapped:
                keys += pa.ipc.open_file(mapped).read_all()["user_key"].to_pylist()
        vocabulary = Vocabulary.from_json(snapshot.vocabulary)
        profiles = tuple(Profile(each["name"], each["groups"]) for each in snapshot.profiles)
        return {"items": snapshot.items.count} | recalls(compared(snapshot, keys, vocabulary, profiles))


def main(arguments: list[str]) -> int:
    """The command line."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning")
    )  # a line a call says nothing here
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--snapshot", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.snapshot:
        results = [of_snapshot(given.snapshot)]
    else:
        with tempfile.TemporaryDirectory() as made:
            results = [shop_of(items, Path(made) / str(items)) for items in CATALOGUES]
    if given.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return 0
    table = Table("figure", *[f"{each['items']:,} items" for each in results])
    for name in results[0]:
        table.add_row(name, *[str(each.get(name, "")) for each in results])
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
