"""What reasons name of today was a cause: what a session finds is found again without the event that it is put down to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from engine.policy import allowed
from engine.schema import LANES, NO_ITEM, TODAY
from engine.serving.encoding import LiveTower
from engine.serving.reasons import Reasons
from engine.serving.todays import Todays
from engine.snapshot import Registry
from tests.event_logs import DAY, NOON, random_log, random_tower
from tests.ranking_blocks import random_shop
from tests.rebuilt_nights import TOWER_LANES, publish_night
from tests.serving.shop import PROFILES, VOCABULARY

ITEMS, WIDTH, FIRST = 60, 8, 40
EVERYTHING = 2**63 - 1
SESSION, SIMILAR = LANES.index("session"), LANES.index("similar")
LANES_ASKED = TOWER_LANES | {"similar": {"keep": 60, "trust": 0.5, "latest": 60, "half_life": 90}}
NONE = np.empty(0, np.int32)


def todays(items: np.ndarray, trust: float, gifts: np.ndarray = NONE) -> Todays:
    count = len(items)
    weight = np.linspace(0.3, 1.0, count).astype(np.float32)
    ts = NOON + np.arange(count) * 60_000_000 + DAY
    bits = VOCABULARY.mask("profile", "web") | TODAY
    return Todays(items, weight, ts, weight, bits, NONE, NONE, NONE, NONE, gifts, count, 0, trust)


def less(told: Todays, item: int) -> Todays:
    kept = told.item != item
    changes = {name: getattr(told, name)[kept] for name in ("item", "weight", "ts", "strength")}
    return dataclasses.replace(told, **changes)


def night(root: Path) -> Registry:
    rng = np.random.default_rng(0)
    shop, tower = random_shop(rng, ITEMS, 20, WIDTH), random_tower(rng, WIDTH, (3.0, 30.0, 300.0))
    past = random_log(rng, 5, ITEMS, 200, 8)
    publish_night(root, past, shop, tower, VOCABULARY, PROFILES, rank_lanes=LANES_ASKED)
    return Registry(root)


def test_an_event_is_named_where_what_it_leads_to_would_stand_lower_without_it(tmp_path: Path) -> None:
    named = generic = 0
    with night(tmp_path).open_current() as snapshot:
        tower, rng = LiveTower.of(snapshot, VOCABULARY), np.random.default_rng(1)
        assert tower is not None
        for trust in (0.2, 3.0):
            for count in (1, 2, 5, 9, 30):
                told = todays(rng.integers(0, ITEMS, count).astype(np.int32), trust)
                ways = tower.with_today(None, 0, EVERYTHING, told)
                found = tower._session(told, NONE)
                assert found is not None
                proof = dict(zip(found[0].item.tolist(), found[0].evidence.tolist(), strict=True))
                standing = np.where(allowed(ways.basis, 0, EVERYTHING), ways.score, 0).max(1)
                tower_parts = tower._lists(
                    tower._rows_of_today(told), NONE, told.item, told.bits, max(NOON, int(told.ts.max()))
                )
                session = np.flatnonzero(ways.lane[:, -1] == SESSION)
                session = session[np.argsort(-ways.score[session, -1], kind="stable")]
                assert (ways.evidence[session[FIRST:], -1] == NO_ITEM).all()
                for row in session[:FIRST]:
                    item, score = int(ways.item[row]), float(ways.score[row, -1])
                    without = tower._session(less(told, proof[item]), told.item)
                    parts = [*tower_parts, *([without[0]] if without is not None else [])]
                    left = max(float(part.score[part.item == item].max(initial=0)) for part in parts)
                    rests = (ways.lane[:, -1] == SESSION) & np.array(
                        [proof.get(i) == proof[item] for i in ways.item.tolist()]
                    )
                    passing = standing[~rests & (ways.item != proof[item])]
                    caused = left <= 0 or ((passing > left + 1e-7) & (passing < score)).any()
                    assert ways.evidence[row, -1] == (proof[item] if caused else NO_ITEM)
                    named, generic = named + caused, generic + (not caused)
    assert named > 50 and generic > 5, (named, generic)


def test_what_turned_out_to_be_a_gift_is_no_reason(tmp_path: Path) -> None:
    with night(tmp_path).open_current() as snapshot:
        tower, record = LiveTower.of(snapshot, VOCABULARY), snapshot.user((2).to_bytes(16, "big"))
        assert tower is not None and record is not None
        stored = record.candidates
        given = stored.evidence[stored.lane == SIMILAR]
        gift = given[given != NO_ITEM][:1]
        before = tower.with_today(record, EVERYTHING, EVERYTHING, todays(NONE, 0.2))
        after = tower.with_today(record, EVERYTHING, EVERYTHING, todays(NONE, 0.2, gift))
        assert (before.evidence == gift).any() and not (after.evidence == gift).any()
        kept = np.isin(stored.evidence, [*gift, NO_ITEM], invert=True)
        assert np.isin(stored.evidence[kept], after.evidence).all(), "nothing else is taken back"


def test_a_reason_claims_a_cause_only_where_it_names_one(tmp_path: Path) -> None:
    reasons, web = Reasons(VOCABULARY), VOCABULARY.mask("profile", "web")
    with night(tmp_path).open_current() as snapshot:
        named, general = (reasons.of(snapshot.items, SIMILAR, web, code) for code in (3, NO_ITEM))
    assert named.causal and named.evidence and not general.causal and not general.evidence
