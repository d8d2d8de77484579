"""An assembled snapshot is asked for lists before it is published; what is wrong with them is counted, and nobody is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.consent import Vocabulary
from engine.evaluation.canaries import Probes
from engine.evaluation.gates import GateSettings, broken
from engine.policy import Chain, Verdict, load_policies
from engine.snapshot import Snapshot
from jobs.canaries import Standpoint, Watcher, list_figures
from jobs.served import served
from tests.snapshot_builder import OPEN, build_snapshot, candidate

VOCABULARY = Vocabulary(sources=("web",))
WEB = VOCABULARY.groups
NOW = 1_000
POLICY = {
    "home": {"limit": 4, "rules": [{"name": "availability"}, {"name": "exclusions"}, {"name": "consent"}]},
    "basket": {"limit": 2, "rules": [{"name": "availability"}, {"name": "consent"}]},
}
ANA, BEN, CLEO = (bytes([each]) * 16 for each in (1, 2, 3))
USERS = {
    ANA: {
        "candidates": [candidate(9, ("usual", 1, 0.9)), candidate(8, ("similar", 1, 0.8), ("two_tower", 2, 0.4))],
        "seen": [{"item": 1, "basis": 1}],
    },
    BEN: {"candidates": [candidate(7, ("two_tower", 2, 0.5))]},
}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Snapshot]:
    def build(**changes: Any) -> Snapshot:
        arguments = {"users": USERS, "vocabulary": VOCABULARY.to_json(), "categories": ("Tea", "Cups")} | changes
        build_snapshot(tmp_path / "snapshot", **arguments)
        return Snapshot.open(tmp_path / "snapshot")

    return build


def watcher(snapshot: Snapshot, policy: Any = POLICY, **settings: Any) -> Watcher:
    chains = policy if isinstance(next(iter(policy.values())), Chain) else load_policies(policy)
    return Watcher(snapshot, chains, GateSettings(**settings), NOW)


def test_a_sound_snapshot_passes_on_every_surface(opened):
    verdicts = watcher(opened()).probes([ANA, BEN])
    assert [each.gate for each in verdicts] == [
        f"probe {who} on {surface}" for surface in POLICY for who in ("stranger", "people")
    ]
    assert broken(verdicts) == []


def test_a_stranger_has_a_list_of_the_least_length_on_each_surface(opened):
    snapshot = opened(fallback={-1: [4, 2]})  # as many as a basket shows at most
    lines = broken(watcher(snapshot, probes=Probes(stranger_items=3)).probes([]))
    assert lines == ["probe stranger on home: has 2 items, at least 3 expected (gates.probes.stranger_items)"]
    assert broken(watcher(snapshot, probes=Probes(stranger_items=None)).probes([])) == []


def test_a_snapshot_without_a_list_for_anybody_is_found(opened):
    lines = broken(watcher(opened(fallback={})).probes([ANA, CLEO]))
    assert "probe stranger on home: has 0 items" in lines[0]
    assert "1 of 2: is not in the snapshot" in lines[1] and "1 of 2: has an empty list" in lines[1]


def test_what_cannot_be_had_now_is_found_where_no_rule_takes_it_out(opened):
    over = {"available_until": [NOW if item == 9 else OPEN[1] for item in range(10)]}
    bare = {"home": {"rules": [{"name": "consent"}]}}
    snapshot = opened(item_columns=over)
    assert broken(watcher(snapshot).probes([ANA])) == []  # availability takes it out
    lines = broken(watcher(snapshot, bare).probes([ANA]))
    assert [line.partition(": ")[2] for line in lines] == [
        "shows what cannot be had now and there",
        "1 of 1: shows what cannot be had now and there",
    ]
    assert broken(watcher(snapshot, bare, probes=Probes(available=False)).probes([ANA])) == []


def test_a_shop_that_sells_by_region_is_asked_from_one(opened):
    snapshot = opened(item_columns={"regions": [["DE"]] * 10})
    assert "has 0 items" in broken(watcher(snapshot).probes([]))[0]
    assert broken(watcher(snapshot, probes=Probes(region="de-by")).probes([ANA])) == []


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """A team's rule that must not be: what it shows differs from one call to the next."""

    name = "shuffled"
    calls: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, slate: Any, moment: Any) -> Verdict:
        self.calls.append(0)
        return Verdict(np.roll(np.arange(len(slate)), len(self.calls)))


def test_a_rule_that_shows_people_without_grants_something_of_their_own_is_found(opened):
    (home,) = load_policies({"home": POLICY["home"]}).values()
    chain = dataclasses.replace(home, rules=(Shuffled(), *home.rules))
    lines = broken(watcher(opened(), {"home": chain}).probes([ANA, BEN]))
    assert lines and "is not shown a stranger's list without grants" in lines[0]


def test_a_canary_is_asked_with_what_it_granted(opened):
    snapshot, chains = opened(), load_policies(POLICY)
    canaries = {
        "full": dict(user="qa-ana", profiled=True, lanes=["usual", "similar"], least_items=4),
        "purchases": dict(user="qa-ana", profiled=True, lanes=["usual"], never_items=["item-0007"]),
        "withdrawn": dict(user="qa-ana", profiled=False, lanes=["popular"], some_category=["Tea"]),
        "unknown": dict(user="qa-nobody", profiled=False),
    }
    full, purchases = VOCABULARY.groups, VOCABULARY.purchase_groups
    at = {
        "full": Standpoint(chains["home"], (ANA,), full),
        "purchases": Standpoint(chains["home"], (ANA,), purchases),
        "withdrawn": Standpoint(chains["home"], (ANA,), 0),
        "unknown": Standpoint(chains["home"], (CLEO,), full),
    }
    assert broken(watcher(snapshot, canaries=canaries).canaries(at)) == []
    # The same properties of the others' lists.
    around = dict(zip(at, [at["withdrawn"], at["unknown"], at["full"], at["full"]], strict=True))
    lines = broken(watcher(snapshot, canaries=canaries).canaries(around))
    assert [line.partition(":")[0] for line in lines] == [f"canary {name} on home" for name in canaries]
    assert not any("qa-" in line for line in lines)


def test_a_canary_is_asked_on_its_surface_and_in_its_region(opened):
    snapshot, chains = opened(item_columns={"regions": [["FR"]] * 10}), load_policies(POLICY)
    canaries = {
        "here": dict(user="u", region="FR", least_items=2),
        "there": dict(user="u", region="AT", least_items=1),
    }
    at = {name: Standpoint(chains["basket"], (CLEO,), 0) for name in canaries}
    assert broken(watcher(snapshot, canaries=canaries).canaries(at)) == [
        "canary there on basket: has 0 items, at least 1 expected"
    ]


def test_lists_tell_the_shares_of_the_lanes_and_what_is_withheld(opened):
    snapshot, home = opened(), load_policies(POLICY)["home"]
    figures = list_figures(snapshot, home, [ANA, BEN], NOW)
    lists = [served(snapshot, home, snapshot.user(key), WEB, NOW).slate.item.tolist() for key in (ANA, BEN)]
    assert lists == [[9, 8, 0, 2], [7, 0, 1, 2]]  # what ANA has is gone
    assert figures["lane_share.usual"] == figures["lane_share.similar"] == figures["lane_share.two_tower"] == 1 / 8
    assert figures["lane_share.popular"] == 5 / 8 and figures["lane_share.session"] == 0
    assert figures["withheld_share"] == 1 / 20 and figures["sampled"] == 2
    assert sum(value for name, value in figures.items() if name.startswith("lane_") and not name.endswith(".se")) == 1
    assert figures["lane_share.popular.se"] == pytest.approx(1 / 8)  # 2 of 4 and 3 of 4 places
    assert list_figures(snapshot, home, [], NOW) == {"sampled": 0}


def test_a_list_is_a_strangers_unless_something_personal_may_be_used(opened):
    snapshot, home = opened(), load_policies(POLICY)["home"]
    stranger = served(snapshot, home, None, WEB, NOW)
    for granted in (0, VOCABULARY.mask("train"), VOCABULARY.mask("sensitive")):
        given = served(snapshot, home, snapshot.user(ANA), granted, NOW)
        assert not given.profiled and given.slate.item.tolist() == stranger.slate.item.tolist() == [0, 1, 2, 3]
    assert served(snapshot, home, snapshot.user(ANA), WEB, NOW, taken=frozenset({9}), limit=1).slate.item.tolist() == [
        8
    ]
