"""What holds for every rule and any input: nothing is invented, doubled or lost, the same input gives the same list, and what a
rule promises of a list holds in it.
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import entry_points
from math import ceil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import PolicyError
from engine.policy import Moment, Rule, Slate
from engine.policy.rules.blocks import Blocks
from engine.policy.rules.calibration import Calibration
from engine.policy.rules.creator_cap import CreatorCap
from engine.policy.rules.discovery import Discovery
from engine.policy.rules.dismissed import Dismissed
from engine.policy.rules.diversity import Diversity
from engine.policy.rules.exploration import Exploration
from engine.policy.rules.fatigue import Fatigue
from engine.policy.rules.kinds import Kinds
from engine.policy.rules.pins import Pins
from engine.policy.rules.price_cap import PriceCap, bands
from engine.policy.rules.rotation import Rotation
from engine.policy.rules.spacing import Spacing
from engine.policy.rules.usual_quota import UsualQuota
from engine.schema import LANES
from engine.snapshot import Mix, Snapshot
from tests.policy.conftest import ITEMS
from tests.policy.moments import honest, judged, moment_of, slate_of

NOW_DAY = "1970-01-01"  # on which the moments of these tests lie
USUAL, POPULAR, TOWER = (LANES.index(name) for name in ("usual", "popular", "two_tower"))
EVENT, PLACE = (
    {"kind": kind, "categories": [name], "least": 0.2} for kind, name in (("event", "wine"), ("place", "food"))
)
TERM = {"until": NOW_DAY, "reason": "x"}
RULES: list[Rule] = [
    Blocks(blocks=({"item": "item-0003", **TERM}, {"category": "wine", **TERM})),
    Calibration(strength=0.5, bound=0.0),
    Calibration(strength=1.0, bound=0.5, pool=7, burst=0.3),
    CreatorCap(share=0.2),
    Discovery(share=0.5, from_place=2),
    Dismissed(),
    Diversity(strength=0.4, method="dpp"),
    Exploration(slots=3, rate=0.7, pool=9),
    Fatigue(after=2, most=4),
    Kinds(kinds=(EVENT | {"most": 0.5}, PLACE), from_place=2),
    Pins(pins=({"item": "item-0005", "place": 1, **TERM}, {"item": "item-0009", "place": 4, **TERM})),
    PriceCap(share=0.3, bands_per_decade=3),
    Rotation(window=4, keep_first=1),
    Spacing(window=3, most=1, most_creator=2),
    UsualQuota(share=0.2, first=1, among=3),
]  # fmt: skip
codes = st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=ITEMS)


@st.composite
def slates(draw: st.DrawFn) -> Slate:
    items = draw(codes)
    lanes = draw(st.lists(st.sampled_from([USUAL, POPULAR, TOWER]), min_size=len(items), max_size=len(items)))
    plain = slate_of(items)
    return Slate(plain.item, np.array(lanes, np.uint8), plain.basis, plain.score, plain.evidence)


@st.composite
def moments(draw: st.DrawFn, shop: Snapshot) -> Moment:
    shown = sorted(draw(codes))
    rows = draw(st.lists(st.integers(-1, 3), max_size=4))
    shares = draw(st.lists(st.floats(0, 1, width=32), min_size=len(rows), max_size=len(rows)))
    mix = Mix(np.array(rows, np.int32), np.array(shares, np.float32), np.zeros(len(rows), np.uint64))
    return moment_of(
        shop,
        limit=draw(st.integers(1, 25)),
        seed=draw(st.integers(0, 2**64 - 1)),
        shown=np.array(shown, np.int32),
        times=np.array(draw(st.lists(st.integers(1, 6), min_size=len(shown), max_size=len(shown))), np.int32),
        dismissed=np.array(
            sorted(draw(st.sets(st.integers(0, len(shop.items.paths.names) - 1), max_size=2))), np.int32
        ),
        hidden=np.array(sorted(draw(codes)), np.int32),
        mix=draw(st.sampled_from([mix, None])),
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_invented_doubled_or_lost_and_the_same_input_gives_the_same(
    shop: Snapshot, rule: Rule, data: st.DataObject
) -> None:
    slate, moment = data.draw(slates()), data.draw(moments(shop))
    verdict = rule(slate, moment)
    honest(verdict, len(slate))
    again = rule(slate, moment)
    assert again.kept.tolist() == verdict.kept.tolist() and dict(again.removed) == dict(verdict.removed)
    if verdict.propensity is not None:
        assert len(verdict.propensity) == len(verdict.kept)
        assert ((verdict.propensity > 0) & (verdict.propensity <= 1)).all()
        assert moment.seed != 0


def test_every_rule_that_is_registered_is_tried_here_or_has_a_file_of_its_own() -> None:
    tried = {rule.name for rule in RULES} | {"availability", "exclusions", "category_cap", "consent"}
    assert {point.name for point in entry_points(group="bodega.rules")} == tried


# --- caps, floors, quotas -----------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_caps_hold_wherever_the_list_can_be_filled_without_breaking_them(shop: Snapshot, data: st.DataObject) -> None:
    slate, moment = data.draw(slates()), data.draw(moments(shop))
    for rule, value in (
        (CreatorCap(share=0.2), shop.items.creator),
        (PriceCap(share=0.3, bands_per_decade=1), bands(shop.items.price, 1)),
    ):
        kept, _ = judged(rule, slate, moment)
        most = max(1, int(rule.share * moment.limit + 1e-9))
        counts = Counter(int(value[code]) for code in kept if value[code] >= 0)
        over = sum(max(0, count - most) for count in counts.values())
        assert over == 0 or len(kept) <= moment.limit, "what is over only fills a list that would be shorter"


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_usual_keeps_to_its_quota(shop: Snapshot, data: st.DataObject) -> None:
    slate, moment = data.draw(slates()), data.draw(moments(shop))
    rule = UsualQuota(share=0.3, first=1, among=3)
    verdict = rule(slate, moment)
    lanes = slate.lane[verdict.kept].tolist()
    others = int((slate.lane != USUAL).sum())
    most = max(1, int(0.3 * moment.limit + 1e-9))
    assert sum(lane == USUAL for lane in lanes[: moment.limit]) <= max(most, moment.limit - others)
    if others >= 3:
        assert sum(lane == USUAL for lane in lanes[:3]) <= 1
    for kind in (True, False):  # each kind keeps its own order
        own = [position for position in verdict.kept.tolist() if (slate.lane[position] == USUAL) is np.bool_(kind)]
        assert own == sorted(own)


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_floor_of_discovery_holds_as_far_as_there_are_candidates(shop: Snapshot, data: st.DataObject) -> None:
    slate, moment = data.draw(slates()), data.draw(moments(shop))
    verdict = Discovery(share=0.4, from_place=3)(slate, moment)
    fresh = shop.items.tail[slate.item] | (shop.items.available_from[slate.item] > moment.now_us - 14 * 86_400_000_000)
    fresh &= slate.lane != POPULAR
    limit = min(moment.limit, len(slate))
    before, after = fresh[:limit].sum(), fresh[verdict.kept[:limit]].sum()
    assert after >= min(ceil(0.4 * limit - 1e-9), fresh.sum()) or after >= before == limit
    assert after >= before
    if before >= ceil(0.4 * limit - 1e-9):
        assert verdict.kept.tolist() == list(range(len(slate)))


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kinds_have_their_places_and_no_more(shop: Snapshot, data: st.DataObject) -> None:
    slate, moment = data.draw(slates()), data.draw(moments(shop))
    rule = Kinds(kinds=({"kind": "event", "categories": ["wine"], "least": 0.25, "most": 0.5},), from_place=2)
    is_event = np.array(["wine" in shop.items.category_path(code) for code in slate.item.tolist()], bool)
    kept, _ = judged(rule, slate, moment)
    among = [bool(is_event[slate.item.tolist().index(code)]) for code in kept]
    limit = min(moment.limit, len(kept))
    most = int(0.5 * moment.limit + 1e-9)
    others = len(is_event) - int(is_event.sum())
    assert sum(among[:limit]) <= max(most, moment.limit - others), "over it only where the list would be shorter"
    assert sum(among[:limit]) >= min(ceil(0.25 * limit - 1e-9), sum(among))
    for kind in (True, False):  # each in its own order, within the list and below it
        own = [slate.item.tolist().index(code) for code, event in zip(kept, among, strict=True) if event == kind]
        assert own[: sum(each == kind for each in among[:limit])] == sorted(
            own[: sum(each == kind for each in among[:limit])]
        )


def test_what_comes_up_does_not_pass_a_better_one_of_its_kind(shop: Snapshot) -> None:
    wine = [code for code in range(ITEMS) if code % 5 == 1]
    plain = [code for code in range(ITEMS) if code % 5 not in (0, 1) and "wine" not in shop.items.category_path(code)]
    rule = Kinds(kinds=({"kind": "event", "categories": ["wine"], "least": 0.4},), from_place=2)
    slate = slate_of(
        [*plain[:8], wine[0], *plain[8:10], *wine[1:5]]
    )  # a list of ten has one of them, in its ninth place
    kept = judged(rule, slate, moment_of(shop, limit=10))[0][:10]
    assert [code for code in kept if code in wine] == wine[:4]
    assert kept.index(wine[0]) < 8, "the better one takes the place that was made"


def test_two_kinds_do_not_push_each_other_out(shop: Snapshot) -> None:
    wine, food = [code for code in range(ITEMS) if code % 5 == 1], [code for code in range(ITEMS) if code % 5 == 0]
    plain = [code for code in range(ITEMS) if code % 5 not in (0, 1) and "wine" not in shop.items.category_path(code)]
    rule = Kinds(
        kinds=(
            {"kind": "event", "categories": ["wine"], "least": 0.2},
            {"kind": "place", "categories": ["food"], "least": 0.2},
        )
    )
    kept = judged(rule, slate_of([*plain[:20], *wine[:6], *food[:6]]), moment_of(shop, limit=10))[0][:10]
    assert sum(code in wine for code in kept) == 2 and sum(code in food for code in kept) == 2
    assert kept[0] == plain[0], "the first places are not theirs"


def test_calibration_brings_the_quiet_interest_in_and_a_burst_counts_no_further(shop: Snapshot) -> None:
    food, wine = [code for code in range(ITEMS) if code % 5 == 0], [code for code in range(ITEMS) if code % 5 == 1]
    slate = slate_of([*food, *wine])
    mix = Mix(np.array([0, 1], np.int32), np.array([0.7, 0.3], np.float32), np.zeros(2, np.uint64))
    moment = moment_of(shop, limit=10, mix=mix)
    plain = judged(Calibration(strength=0), slate, moment)[0]
    assert sum(code in wine for code in plain[:10]) == 0
    assert (
        sum(code in wine for code in judged(Calibration(strength=1.0, bound=0.0, burst=1), slate, moment)[0][:10]) == 3
    )
    burst = moment_of(shop, limit=10, mix=Mix(mix.category, np.array([0.95, 0.05], np.float32), mix.basis))
    few = judged(Calibration(strength=0.95, bound=0.0, burst=1.0), slate, burst)[0][:10]
    more = judged(Calibration(strength=0.95, bound=0.0, burst=0.1), slate, burst)[0][:10]
    assert sum(code in wine for code in few) < sum(code in wine for code in more)


def test_calibration_goes_by_what_is_granted_alone(shop: Snapshot) -> None:
    slate = slate_of([*range(0, 60, 5), *range(1, 60, 5)])
    mix = Mix(np.array([1], np.int32), np.array([1.0], np.float32), np.array([4], np.uint64))
    rule = Calibration(strength=0.9, bound=0.0)
    assert judged(rule, slate, moment_of(shop, mix=mix, granted=3))[0] == slate.item.tolist()
    assert judged(rule, slate, moment_of(shop, mix=mix, granted=4))[0] != slate.item.tolist()


def test_spacing_sets_neighbours_apart_where_it_can(shop: Snapshot) -> None:
    items = [code for code in range(40) if code % 5 < 4]
    slate = slate_of(sorted(items, key=lambda code: code % 5))
    kept, _ = judged(Spacing(window=3, most=1, most_creator=60), slate, moment_of(shop, limit=20))
    roots = shop.items.root_category[kept[:20]].tolist()
    assert all(len(set(roots[at : at + 3])) == 3 for at in range(18))


# --- chance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [Exploration(slots=2, rate=0.4, pool=10), Rotation(window=3, keep_first=2, keep_last=1)]
)
def test_chances_are_what_happens_over_all_seeds(shop: Snapshot, rule: Rule) -> None:
    slate, seeds = slate_of(range(30)), 6000
    places: Counter[tuple[int, int]] = Counter()
    told: dict[tuple[int, int], float] = {}
    for seed in range(1, seeds + 1):
        verdict = rule(slate, moment_of(shop, limit=10, seed=seed * 2654435761))
        assert verdict.propensity is not None
        for place in range(10):
            pair = (place, int(verdict.kept[place]))
            places[pair] += 1
            assert told.setdefault(pair, float(verdict.propensity[place])) == float(verdict.propensity[place])
    for pair, count in places.items():
        spread = (told[pair] * (1 - told[pair]) / seeds) ** 0.5
        assert abs(count / seeds - told[pair]) < 5 * spread + 1e-9, pair
    for place in range(10):
        assert sum(chance for (at, _), chance in told.items() if at == place) == pytest.approx(1, abs=1e-5)


def test_one_seed_is_one_list_and_no_seed_draws_nothing(shop: Snapshot) -> None:
    slate = slate_of(range(40))
    for rule in (Exploration(slots=3, rate=0.9), Rotation(window=4)):
        lists = {tuple(judged(rule, slate, moment_of(shop, limit=12, seed=seed))[0]) for seed in range(1, 40)}
        assert len(lists) > 10
        verdict = rule(slate, moment_of(shop, limit=12, seed=0))
        assert verdict.propensity is None and verdict.kept.tolist() == list(range(40))


# --- what the shop decides ----------------------------------------------------------------------------------------------


def test_a_pin_holds_until_its_last_day_and_brings_nothing_back(shop: Snapshot) -> None:
    rule = Pins(pins=[{"item": "item-0007", "place": 2, "until": "2026-05-31", "reason": "summer"}])  # type: ignore[arg-type]
    last = 1_780_271_999_000_000  # 2026-05-31T23:59:59Z
    slate = slate_of([1, 2, 3, 7])
    assert judged(rule, slate, moment_of(shop, now_us=last))[0] == [1, 7, 2, 3]
    assert judged(rule, slate, moment_of(shop, now_us=last + 1_000_000))[0] == [1, 2, 3, 7]
    assert judged(rule, slate_of([1, 2]), moment_of(shop, now_us=last))[0] == [1, 2]
    assert rule.codes(shop.items, last).tolist() == [7] and rule.codes(shop.items, last + 1_000_000).tolist() == []


def test_a_block_takes_items_and_whole_categories_until_its_last_day(shop: Snapshot) -> None:
    rule = Blocks(blocks=[{"category": "wine", "until": "2026-05-31", "reason": "law"}])  # type: ignore[arg-type]
    slate = slate_of([0, 1, 6, 20])  # 20 has wine among its categories, though not as its root
    assert judged(rule, slate, moment_of(shop, now_us=0)) == ([0], {"blocked": 3})
    assert judged(rule, slate, moment_of(shop, now_us=1_780_272_000_000_000))[0] == [0, 1, 6, 20]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Pins(pins=({"item": "a", "place": 1, "reason": "x"},)), "until"),
        (lambda: Pins(pins=({"item": "a", "place": 0, "until": NOW_DAY, "reason": "x"},)), "place"),
        (lambda: Pins(pins=({"item": "a", "place": 1, "until": "soon", "reason": "x"},)), "soon"),
        (lambda: Pins(pins="item"), "list"),
        (lambda: Pins(pins=tuple({"item": n, "place": 1, "until": NOW_DAY, "reason": "x"} for n in "ab")), "one place"),
        (lambda: Blocks(blocks=({"until": NOW_DAY, "reason": "x"},)), "one of item and category"),
        (lambda: Blocks(blocks=({"item": "a", "until": NOW_DAY, "reason": "x", "untill": 1},)), "untill"),
        (lambda: Calibration(strength=2), "strength"),
        (lambda: Calibration(burst=0), "burst"),
        (lambda: Diversity(method="ddp"), "ddp"),
        (lambda: Exploration(rate=1.5), "rate"),
        (lambda: Rotation(window=1), "window"),
        (lambda: Fatigue(after=5, most=2), "most"),
        (lambda: UsualQuota(share=-1), "share"),
        (lambda: Discovery(from_place=0), "from_place"),
        (lambda: Spacing(most=0), "most"),
        (lambda: CreatorCap(share=0), "share"),
        (lambda: Kinds(kinds=({"kind": "event", "categories": ["a"], "least": 0.5, "most": 0.2},)), "least"),
        (lambda: Kinds(kinds=({"kind": "event", "categories": "a"},)), "list of names|categories"),
        (lambda: Kinds(kinds=({"kind": "event"},)), "categories"),
        (lambda: Kinds(kinds=tuple({"kind": n, "categories": [n], "least": 0.6} for n in "ab")), "more than the list"),
        (lambda: PriceCap(bands_per_decade=0), "bands"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(made, said) -> None:
    with pytest.raises(PolicyError, match=said) as told:
        made()
    assert told.value.remedy


def test_fatigue_moves_down_first_and_takes_away_in_the_end(shop: Snapshot) -> None:
    rule = Fatigue(after=2, factor=2.0, most=5)
    slate = slate_of([1, 2, 3, 4, 5, 6])
    shown = np.array([1, 2, 3], np.int32)
    moment = moment_of(shop, shown=shown, times=np.array([1, 3, 5], np.int32))
    assert judged(rule, slate, moment) == ([1, 4, 5, 6, 2], {"shown_often": 1})
