"""A person encoded again by day on what they allow: held against nights rebuilt without what was withdrawn, over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bodega.client import Client, grant
from bodega.v1 import ranking_pb2

from engine.kernels.encode_user import Scale, within_groups
from engine.ranking.people import Shop as Shelves
from engine.schema import EVENTS
from engine.serving import encoding
from engine.serving.recommend import Ask, Recommender
from engine.serving.server import Server
from engine.two_tower.histories import Histories
from tests.event_logs import DAY, NOON, histories, random_log, random_tower, without
from tests.ranking_blocks import random_shop
from tests.rebuilt_nights import TOWER_LANES, filed, publish_night
from tests.serving.shop import ITEMS as SHELF
from tests.serving.shop import PARTNER_PURCHASES, PROFILES, SOURCES, VOCABULARY, WEB_PURCHASES, Shop, allow, ids
from tests.snapshot_builder import candidate

ITEMS, WIDTH = 60, 8
NAMES = [f"person-{number}" for number in range(5)]
SENSITIVE = (7, 21, 40)
SUBSETS = [names for size in range(1, 5) for names in combinations(SOURCES, size)]
ALL_LANES = TOWER_LANES | {
    "usual": {"keep": 100, "trust": 1.0, "rhythm": 4},
    "similar": {"keep": 60, "trust": 0.05, "latest": 60, "half_life": 90},
    "popular": {"keep": 200, "least_people": 2},
}
Mode = ranking_pb2.Provenance


def log(seed: int = 0, events: int = 260) -> Histories:
    """Five people, purchases and views of four sources."""
    return random_log(np.random.default_rng(seed), len(NAMES), ITEMS, events, 2 * len(SOURCES), 150.0)


def mask_of(sources: tuple[str, ...]) -> int:
    return reduce(lambda mask, source: mask | VOCABULARY.mask("profile", source), sources, 0)


def publish(shop: Shop, past: Histories, seed: int = 0, **changes: Any) -> None:
    rotating = shop.keys.rotating
    rng = np.random.default_rng(seed)
    night = changes.pop("shelves", None) or random_shop(rng, ITEMS, width=WIDTH)
    tower = random_tower(rng, WIDTH, (3.0, 30.0, 300.0))
    people = filed(past, [rotating.derive(name) for name in NAMES])
    publish_night(
        shop.snapshots,
        people,
        night,
        tower,
        VOCABULARY,
        PROFILES,
        key_id=rotating.key_id,
        sensitive=SENSITIVE,
        **changes,
    )


def alike() -> Shelves:
    """A shop in which an item's neighbours are those whose vectors point the same way, as co-visits mostly have it."""
    shop = random_shop(np.random.default_rng(8), ITEMS, width=WIDTH)
    unit = shop.vectors / np.linalg.norm(shop.vectors, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit.T) + 9 * np.eye(ITEMS), axis=1)[:, :6].astype(np.int32)
    likeness = np.maximum(np.take_along_axis(unit @ unit.T, near, 1), 0).astype(np.float32)
    return replace(shop, neighbour=near, likeness=likeness)


def grants(client: Client, person: str, sources: tuple[str, ...]) -> str:
    """These sources and no other, with the sensitive items of each. Returns the token."""
    client.withdraw(person)
    allow(client, person, *sources)
    return allow(client, person, *sources, purpose="sensitive")


def large(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Have a shop of this size taken for a large one, in which few items are reached."""
    for name, value in {"LIVE_NUMBERS": 0, "_POPULAR": 3, "_STEPS": steps, "_BEST": 5}.items():
        monkeypatch.setattr(encoding, name, value)


def personal(reply: Any, *lanes: str) -> list[tuple[str, str, float]]:
    wanted = lanes or tuple(TOWER_LANES)
    return [(each.item_id, each.lane, each.score) for each in reply.items if each.lane in wanted]


def same(one: Any, other: Any) -> None:
    mine, theirs = personal(one), personal(other)
    assert [line[:2] for line in mine] == [line[:2] for line in theirs]
    np.testing.assert_allclose([line[2] for line in mine], [line[2] for line in theirs], rtol=1e-5)


@contextmanager
def two(tmp_path: Path, **changes: Any) -> Iterator[tuple[Client, Client, Shop, Server]]:
    """Clients of a server on the whole night, and of one whose nights are rebuilt."""
    whole, rebuilt = Shop(tmp_path / "whole"), Shop(tmp_path / "rebuilt")
    publish(whole, log(), **changes)
    publish(rebuilt, log(), **changes)
    with whole.served() as (_, client), rebuilt.served() as (server, other):
        yield client, other, rebuilt, server


@pytest.mark.parametrize("level", ["full", "purchases"])
def test_any_subset_of_sources_gives_the_list_of_a_night_rebuilt_on_it(tmp_path: Path, level: str) -> None:
    past, encoded = log(), 0
    with two(tmp_path) as (client, other, rebuilt, server):
        for sources in SUBSETS:
            mask = mask_of(sources) & (VOCABULARY.groups if level == "full" else VOCABULARY.purchase_groups)
            publish(rebuilt, without(past, ~within_groups(mask, past.group)))
            server.replica.look()
            for person in NAMES:
                token, there = grants(client, person, sources), grants(other, person, sources)
                mine = client.recommend(person, limit=40, diversity=0, level=level, consent_token=token)
                theirs = other.recommend(person, limit=40, diversity=0, level="full", consent_token=there)
                assert theirs.provenance.mode == Mode.MODE_PROFILED
                assert len(personal(mine)) >= 20
                again = mine.provenance.profile == encoding.GRANTED
                encoded += again
                if again:
                    same(mine, theirs)
                    assert mine.provenance.mode == Mode.MODE_LIMITED
                    narrowed = len(sources) < len(SOURCES)
                    assert mine.provenance.reason == ("grants_missing" if narrowed else "level_purchases")
    # What remains is everything, the web, app and store, or all purchases: the night has stored these.
    assert encoded == len(NAMES) * (len(SUBSETS) - (2 if level == "full" else 1))


@pytest.mark.parametrize("live", [True, False])
def test_what_was_withdrawn_makes_no_difference_at_all(
    tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shops whose people differ in nothing but what they did on the partner's site and in the app."""
    if not live:
        large(monkeypatch, steps=1)
    kept = mask_of(("web", "store"))
    past, otherwise = log(0), log(1)
    inside, outside = within_groups(kept, past.group), ~within_groups(kept, otherwise.group)
    mixed = histories(
        (
            {"user": user, "item": item, "days": days, "weight": weight, "group": group, "event": event}
            for log_, rows in ((past, inside), (otherwise, outside))
            for user, item, days, weight, group, event in events_of(log_, rows)
        ),
        len(NAMES),
    )
    one, other = Shop(tmp_path / "one"), Shop(tmp_path / "other")
    publish(one, past)
    publish(other, mixed)
    with one.served() as (_, client), other.served() as (_, there):
        for person in NAMES:
            everything = [
                each.recommend(person, limit=40, consent_token=allow(each, person)) for each in (client, there)
            ]
            assert personal(everything[0]) != personal(everything[1])
            tokens = [grants(each, person, ("web", "store")) for each in (client, there)]
            mine, theirs = (
                each.recommend(person, limit=40, diversity=0, consent_token=token)
                for each, token in zip((client, there), tokens, strict=True)
            )
            assert mine.provenance.profile == theirs.provenance.profile == encoding.GRANTED
            assert len(personal(mine)) > 10
            assert [each.SerializeToString() for each in mine.items] == [
                each.SerializeToString() for each in theirs.items
            ]


@pytest.mark.parametrize("gone", [("web",), ("app", "partner"), SOURCES])
def test_without_the_grant_of_sensitive_things_they_have_no_part_in_the_list(
    tmp_path: Path, gone: tuple[str, ...]
) -> None:
    past = log()
    delicate = np.isin(past.item, SENSITIVE)
    with two(tmp_path) as (client, other, rebuilt, server):
        publish(rebuilt, without(past, delicate & within_groups(mask_of(gone), past.group)))
        server.replica.look()
        for person in NAMES:
            grants(client, person, SOURCES)
            there = grants(other, person, SOURCES)
            whole = client.recommend(person, limit=40, diversity=0)
            assert whole.provenance.mode == Mode.MODE_PROFILED and whole.provenance.profile == "full"
            withdrawn = [grant("sensitive", source, granted=False) for source in gone]
            token = client.set_consent(person, withdrawn).consent_token
            there = other.set_consent(person, withdrawn).consent_token
            mine = client.recommend(person, limit=40, diversity=0, consent_token=token)
            theirs = other.recommend(person, limit=40, diversity=0, consent_token=there)
            same(mine, theirs)
            theirs_to_lose = delicate & within_groups(mask_of(gone), past.group) & (past.owner == NAMES.index(person))
            if theirs_to_lose.any():
                assert (mine.provenance.mode, mine.provenance.profile) == (Mode.MODE_LIMITED, encoding.GRANTED)
                assert personal(mine) != personal(whole)
            else:
                assert mine.provenance.mode == Mode.MODE_PROFILED


def test_a_reason_that_is_sensitive_asks_for_its_grant(tmp_path: Path) -> None:
    """With every lane: an item next to a sensitive one that somebody bought tells of it."""
    shop, past = Shop(tmp_path / "out"), log(events=400)
    publish(shop, past, rank_lanes=ALL_LANES)
    names = {f"item-{code:04d}" for code in SENSITIVE}

    def told(reply: Any) -> set[str]:
        return names & {name for each in reply.items for reason in each.reasons for name in reason.evidence_item_ids}

    with shop.served() as (_, client):
        for person in NAMES:
            grants(client, person, SOURCES)
        assert any(told(client.recommend(person, limit=60, diversity=0)) for person in NAMES)
        for person in NAMES:
            token = client.withdraw(person, "sensitive").consent_token
            reply = client.recommend(person, limit=60, diversity=0, consent_token=token)
            assert not told(reply), "popular things may be sensitive, and tell of nobody"
            assert not names & {each.item_id for each in reply.items if each.lane != "popular"}
            assert {"two_tower", "similar"} <= {each.lane for each in reply.items}


def events_of(past: Histories, rows: Any) -> Iterator[tuple[Any, ...]]:
    columns = (past.owner, past.item, (NOON - past.ts) / DAY, past.weight, past.group, past.event)
    for *row, event in zip(*(column[rows].tolist() for column in columns), strict=True):
        yield *row, EVENTS[event]


def test_no_line_reason_or_evidence_names_what_was_withdrawn(tmp_path: Path) -> None:
    """With every lane, on a shop in which each source has shelves of its own."""
    rng = np.random.default_rng(3)
    shelves = 15  # items a source
    past = histories(
        {
            "user": user,
            "item": shelves * source + int(rng.integers(shelves)),
            "days": float(rng.random() * 100),
            "group": 2 * source + kind,
            "event": ("purchase", "view")[kind],
        }
        for user in range(len(NAMES))
        for source in range(len(SOURCES))
        for kind in (0, 1)
        for _ in range(8)
    )
    shop = Shop(tmp_path / "out")
    publish(shop, past, rank_lanes=ALL_LANES)
    with shop.served() as (_, client):
        for person in NAMES:
            token = grants(client, person, ("web", "store"))
            reply = client.recommend(person, limit=40, diversity=0, consent_token=token)
            assert reply.provenance.profile == encoding.GRANTED
            assert {"two_tower", "similar"} <= {each.lane for each in reply.items}
            named = {name for each in reply.items for reason in each.reasons for name in reason.evidence_item_ids}
            told = {int(name.removeprefix("item-")) // shelves for name in named}
            assert named and told <= {SOURCES.index("web"), SOURCES.index("store")}


def test_what_is_stored_for_the_grants_is_served_as_it_was_stored(tmp_path: Path) -> None:
    """Held against what the same snapshot gives where nothing can be encoded again."""
    shop, profiles = Shop(tmp_path / "out"), {SOURCES: "full", SOURCES[:3]: "first_party"}
    publish(shop, log())
    with shop.served() as (server, client):
        usual, bare = Recommender(server.replica), Recommender(server.replica)
        bare._towers[server.replica.served.snapshot] = None
        for person in NAMES:
            for sources, profile in profiles.items():
                ask = Ask(user_id=person, limit=40, consent_token=grants(client, person, sources))
                one, other = (each.recommend(ask, 1_800_000_000_000_000) for each in (usual, bare))
                assert one.profile == other.profile == profile
                assert one.lines == other.lines and one.withheld == other.withheld
            ask = Ask(user_id=person, limit=40, consent_token=grants(client, person, ("app",)))
            assert usual.recommend(ask).lines != bare.recommend(ask).lines


@pytest.mark.parametrize("lacks", [{"scaled": False}, {"linear": False}])
def test_a_tower_that_cannot_be_asked_by_day_falls_back_to_the_largest_stored_profile(
    tmp_path: Path, lacks: dict[str, bool]
) -> None:
    shop = Shop(tmp_path / "out")
    publish(shop, log(), **lacks)
    with shop.served() as (_, client):
        token = grants(client, NAMES[0], SOURCES[1:])
        assert client.recommend(NAMES[0], consent_token=token).provenance.profile != encoding.GRANTED
        # Of the web, app and store alone a profile is stored, the partner's views or not.
        token = grants(client, NAMES[0], SOURCES[:3])
        made = client.recommend(NAMES[0], consent_token=token).provenance
        assert (made.mode, made.profile) == (Mode.MODE_LIMITED, "first_party")


def test_one_source_alone_still_gives_a_list_of_ones_own(tmp_path: Path) -> None:
    """Every stored profile needs more than the app: before, nothing personal was left."""
    past = log()
    shop = Shop(tmp_path / "out")
    publish(shop, past)
    with shop.served() as (_, client):
        reply = client.recommend(NAMES[0], limit=20, consent_token=grants(client, NAMES[0], ("app",)))
        assert reply.provenance.mode == Mode.MODE_LIMITED and reply.provenance.profile == encoding.GRANTED
        assert ids(reply)[:10] != ids(client.recommend(limit=20))[:10]
        bought = past.item[(past.owner == 0) & (past.group == VOCABULARY.group(1, purchase=True))]
        assert not {f"item-{code:04d}" for code in bought.tolist()} & set(ids(reply))


def test_a_large_catalogue_is_scored_where_what_is_left_leads_and_nowhere_else(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(monkeypatch, steps=1)
    sums = [{"group": group, "last": 0, "weights": [1, 1], "sums": [0.1 * (group + 1)] * 8} for group in (0, 2, 6)]
    tower = random_tower(np.random.default_rng(0), 4)
    asked = Scale(0, 1.0, 0, {"two_tower": (40, 1.0), "discovery": (40, 0.5)})
    ana = {
        "candidates": [
            candidate(20, ("similar", PARTNER_PURCHASES, 0.9, 30)),
            candidate(
                5, ("two_tower", WEB_PURCHASES | PARTNER_PURCHASES, 0.9, 33), ("similar", WEB_PURCHASES, 0.1, 10)
            ),
        ],
        "seen": [{"item": 15, "basis": WEB_PURCHASES}, {"item": 24, "basis": PARTNER_PURCHASES}],
        "sums": sums,
    }
    shop.publish(
        users={shop.keys.rotating.derive("ana"): ana},
        tower=tower.arrays() | asked.arrays(),
        item_columns={"popularity": [1.0 / (1 + code) for code in range(SHELF)]},
    )
    with shop.served() as (_, client):
        token = grants(client, "ana", ("web",))
        reply = client.recommend("ana", limit=40, diversity=0, consent_token=token)
        assert reply.provenance.profile == encoding.GRANTED
        # What is popular; what the web justifies, what it does so with and what was bought there, each with two neighbours.
        led = {0, 1, 2, *(5, 6, 7), *(10, 11, 12), *(16, 17)}
        again = {int(name.removeprefix("item-")) for name, *_ in personal(reply, "two_tower", "discovery", "similar")}
        assert again == led


def test_a_large_catalogue_is_scored_where_the_grants_lead_and_most_of_the_list_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(monkeypatch, steps=2)
    past = log()
    found = wanted = 0
    with two(tmp_path, shelves=alike()) as (client, other, rebuilt, server):
        kept = ("app", "store")
        publish(rebuilt, without(past, ~within_groups(mask_of(kept), past.group)), shelves=alike())
        server.replica.look()
        for person in NAMES:
            mine = client.recommend(person, limit=20, diversity=0, consent_token=grants(client, person, kept))
            theirs = other.recommend(person, limit=20, diversity=0, consent_token=grants(other, person, kept))
            assert mine.provenance.profile == encoding.GRANTED
            scores = {(name, lane): score for name, lane, score in personal(theirs)}
            again = {(name, lane): score for name, lane, score in personal(mine)}
            both = sorted(scores.keys() & again.keys())
            np.testing.assert_allclose([again[n] for n in both], [scores[n] for n in both], rtol=1e-5)
            found, wanted = found + len(both), wanted + len(scores)
    assert found / wanted > 0.6


def test_damage_in_ones_sums_ends_in_a_strangers_list(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "out")
    publish(shop, log())
    (file,) = Path(shop.snapshots).glob("*/*sums*.arrow")
    with shop.served() as (server, client):
        token = grants(client, NAMES[0], ("app",))
        assert client.recommend(NAMES[0], consent_token=token).provenance.profile == encoding.GRANTED
        mapped = server.replica.served.snapshot
        row = mapped.user(shop.keys.rotating.derive(NAMES[0])).sums.sums
        target = row.tobytes()
        data = bytearray(file.read_bytes())
        at = data.find(target)
        assert at > 0
        data[at] ^= 0x40
        with file.open("r+b") as damaged:  # in place, so that what is mapped changes
            damaged.write(bytes(data))
        reply = client.recommend(NAMES[0], consent_token=token)
        assert reply.provenance.reason == "record_damaged" and not personal(reply)
