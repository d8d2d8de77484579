"""Random histories over two replicas: no line without its grants, ever, by the server's order, whatever clocks and crashes do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import grpc
import pytest
from bodega.client import grant
from bodega.v1 import consent_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.consent import ledger as ledger_module
from engine.consent import mirror
from engine.errors import ConsentError
from engine.serving import ledgers
from engine.serving.consent import ConsentServicer
from engine.serving.recommend import NON_PROFILED, Ask, Recommender
from engine.serving.replica import Replica
from tests.serving.shop import SOURCES, VOCABULARY, Shop, item, people

BOUND = 1.0
_HOUR = 3_600_000_000
USERS = ("ana", "ben", "pat")
NOBODY = cast(grpc.ServicerContext, None)
# What each line may rely on: by person, item and score as stored.
RELIES = {
    (user, item(each["item"]), round(score, 4)): basis
    for user, rows in people().items()
    for each in rows.get("candidates", [])
    for score, basis in zip(each["score"], each["basis"], strict=True)
}

CHANGE = st.tuples(st.sampled_from(["profile", "sensitive", "train"]), st.sampled_from(["", *SOURCES]), st.booleans())
STEP = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 1), st.sampled_from(USERS), st.lists(CHANGE, min_size=1, max_size=3)),
    st.tuples(st.just("again"), st.integers(0, 1), st.integers(0, 9)),  # an earlier request, delivered twice
    st.tuples(st.just("erase"), st.integers(0, 1), st.sampled_from(USERS)),
    st.tuples(st.just("look"), st.integers(0, 1)),
    st.tuples(st.just("pass"), st.sampled_from([0.3, 0.6, 1.5])),
    st.tuples(st.just("crash"), st.integers(0, 1)),
    st.tuples(st.just("skew"), st.sampled_from([-_HOUR, 0, _HOUR])),
)


@dataclass
class World:
    """Two replicas, a clock for both, a ledger's wall clock that is wrong, and by person what was in force since when."""

    shop: Shop
    ledger: str
    clock: float = 100.0
    skew: int = 0
    replicas: list[Replica] = field(default_factory=list)
    in_force: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {user: [(0.0, 0)] for user in USERS})
    requests: list[consent_pb2.SetConsentRequest] = field(default_factory=list)
    grants: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: {user: set() for user in USERS})

    def start(self) -> Replica:
        """A process of the server, as far as consent and lists go."""
        made = replace(self.shop.settings("cache="), ledger=self.ledger)
        replica = Replica(replace(made, cache=str(Path(self.ledger.removeprefix("sqlite:///")).parent)))
        replica.look()
        assert not replica.problems()
        return replica

    def told(self, user: str, changes: Sequence[tuple[str, str, bool]]) -> None:
        """The oracle: grants for all sources, then grants, then withdrawals of the same; each pair by its last word."""
        held = self.grants[user]
        withdrawn = {(purpose, source) for purpose, source, granted in changes if not granted}
        weak = [c for c in changes if c[2] and (not c[1] or (c[0], c[1]) in withdrawn)]
        for purpose, source, granted in [*weak, *(c for c in changes if c not in weak)]:
            for each in [source] if source else SOURCES:
                (held.add if granted else held.discard)((purpose, each))
        self.now_in_force(user)

    def now_in_force(self, user: str) -> None:
        """Note what is granted from now on."""
        mask = sum(VOCABULARY.mask(purpose, source) for purpose, source in self.grants[user])
        self.in_force[user].append((self.clock, mask))

    def may_know(self, user: str) -> list[int]:
        """Every mask that was in force within the bound."""
        spans = itertools.zip_longest(self.in_force[user], self.in_force[user][1:])
        return [mask for (_, mask), then in spans if then is None or then[0] >= self.clock - BOUND]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("histories"))
    shop.publish()
    return shop


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=14))
def test_no_line_without_its_grants_whatever_happens(
    stocked: Shop, numbers: Iterator[int], steps: list[tuple[object, ...]]
) -> None:
    folder = stocked.out / f"ledger-{next(numbers)}"
    folder.mkdir()
    world = World(stocked, f"sqlite:///{folder}/consent.db")
    with pytest.MonkeyPatch.context() as patch:
        right = ledger_module.now_micros
        patch.setattr(ledger_module, "now_micros", lambda: right() + world.skew)
        for module in (mirror, ledgers):
            patch.setattr(module, "clock", lambda: world.clock)
        world.replicas = [world.start(), world.start()]
        took: list[float] = [world.clock, world.clock]  # when each last read the ledger
        try:
            for step in steps:
                _take(world, took, step)
                _check(world, took)
        finally:
            for replica in world.replicas:
                replica.close()


def _take(world: World, took: list[float], step: tuple[object, ...]) -> None:
    kind, *given_ = step
    world.clock += 0.01  # no two steps at once
    if kind == "pass":
        world.clock += cast(float, given_[0])
        return
    if kind == "skew":
        world.skew = cast(int, given_[0])
        return
    at = cast(int, given_[0])
    replica = world.replicas[at]
    servicer = ConsentServicer(replica)
    if kind == "set":
        user, changes = cast(tuple[str, list[tuple[str, str, bool]]], given_[1:])
        request = consent_pb2.SetConsentRequest(
            user_id=user, changes=[grant(p, s, granted=g) for p, s, g in changes], request_id=f"r{len(world.requests)}"
        )
        servicer.SetConsent(request, NOBODY)
        world.requests.append(request)
        world.told(user, changes)
    elif kind == "again" and world.requests:
        request = world.requests[cast(int, given_[1]) % len(world.requests)]
        try:
            servicer.SetConsent(request, NOBODY)  # changes nothing: it was answered before
        except ConsentError as error:
            assert "before this person was erased" in str(error)
            return
    elif kind == "erase":
        user = cast(str, given_[1])
        servicer.EraseUser(consent_pb2.EraseUserRequest(user_id=user), NOBODY)
        world.grants[user].clear()
        world.now_in_force(user)
    elif kind == "crash":
        world.replicas[at] = world.start()  # the old one is left as it is, as by kill -9
    elif kind == "look":
        replica.ledger.look()
    took[at] = world.clock


def _check(world: World, took: Sequence[float]) -> None:
    for at, replica in enumerate(world.replicas):
        recommender = Recommender(replica)
        for user in USERS:
            answer = recommender.recommend(Ask(user_id=user, limit=30))
            if world.clock - took[at] > BOUND:
                assert (answer.mode, answer.reason) == (NON_PROFILED, "consent_stale")
            relied = 0
            for line in answer.lines:
                if line.lane != "popular":
                    relied |= RELIES[user, line.item_id, round(line.score, 4)]
            known = [world.in_force[user][-1][1]] if took[at] == world.clock else world.may_know(user)
            assert any(not relied & ~mask for mask in known), (user, relied, known)
            if took[at] == world.clock:
                assert (
                    answer.mode != NON_PROFILED or not _would_be_shown(user, known[0]) or _erased(world, replica, user)
                )


def _would_be_shown(user: str, granted: int) -> bool:
    return any(basis and not basis & ~granted for (of, _, _), basis in RELIES.items() if of == user)


def _erased(world: World, replica: Replica, user: str) -> bool:
    return bool(replica.standing(world.shop.keys.stable.derive(user)).erasure)
