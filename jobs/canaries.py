"""Ask an assembled snapshot for lists before it is published: a stranger's, some people's, and those of named accounts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.consent import Vocabulary
from engine.evaluation import metrics
from engine.evaluation.canaries import Canary, Shown, ShownItem, faults
from engine.evaluation.gates import ERROR, SAMPLED, GateSettings, Outcome, Verdict
from engine.policy import Chain, load_policies
from engine.policy.chain import LIMIT
from engine.policy.rules.availability import covers
from engine.schema import LANES
from engine.snapshot import Snapshot
from jobs.evaluate import surface_chain
from jobs.night import FULL, Night, opened_ledger, table
from jobs.served import Served, served
from jobs.stage import finished


def sampled_keys(this: Night) -> list[bytes]:
    """Rotating keys of some people of the run, the same ones night after night: the keys are pseudorandom, so the first of
    each bucket are a fair sample.
    """
    buckets = finished(this.folder, "ingest").facts["buckets"]
    each = -(-this.settings.gates.probes.people // max(len(buckets), 1))
    keys: list[bytes] = []
    for bucket in buckets if each else ():
        keys += table(this.folder / "rank" / f"users-{FULL}-{bucket}.arrow")["user_key"].slice(0, each).to_pylist()
    return keys


def list_figures(snapshot: Snapshot, chain: Chain, keys: Sequence[bytes], now: int) -> dict[str, float]:
    """Shares of the lanes in the lists of some people with every profile grant, and of what the rules withhold from them.

    Args:
        now: microseconds since the epoch; the night's own time, so that a rerun finds the same.

    Returns:
        lane_share.*, withheld_share, each with its standard error, and sampled: how many people they stand on.
    """
    granted = Vocabulary.from_json(snapshot.vocabulary).groups
    lanes = np.zeros((len(LANES), len(keys)), np.int64)
    withheld, offered = np.zeros((2, len(keys)), np.int64)
    for place, key in enumerate(keys):
        given = served(snapshot, chain, snapshot.user(key), granted, now)
        lanes[:, place] = np.bincount(given.slate.lane, minlength=len(LANES))
        withheld[place] = sum(effect.count for effect in given.effects if effect.rule != LIMIT)
        offered[place] = len(given.slate) + sum(effect.count for effect in given.effects)
    figures = {SAMPLED: float(len(keys))}
    if not offered.sum():
        return figures
    shown = lanes.sum(0)
    for name, held, places in (
        *((f"lane_share.{lane}", lanes[code], shown) for code, lane in enumerate(LANES)),
        ("withheld_share", withheld, offered),
    ):
        share, error = metrics.share(held, places)
        figures |= {name: share, name + ERROR: error}
    return figures


def watch(this: Night, snapshot: Snapshot, keys: Sequence[bytes]) -> list[Verdict]:
    """What the probes and the canaries of conf/gates say of a snapshot that is not published yet, at this very moment.

    Raises:
        SettingsError: a canary names a surface that is not there. LedgerUnavailable: what they granted cannot be read.
    """
    watcher = Watcher(snapshot, load_policies(this.settings.policy), this.settings.gates, time.time_ns() // 1000)
    return watcher.probes(keys) + watcher.canaries(_footings(this, watcher.vocabulary))


@dataclass(frozen=True, slots=True)
class Standpoint:
    """Where a canary stands: its surface, the keys it may be filed under, and what it allows."""

    chain: Chain
    keys: tuple[bytes, ...]
    granted: int


class Watcher:
    """Asks for lists and says what is wrong with them. Nobody is named but canaries, by their names."""

    def __init__(self, snapshot: Snapshot, chains: Mapping[str, Chain], settings: GateSettings, now: int) -> None:
        self.vocabulary = Vocabulary.from_json(snapshot.vocabulary)
        self._snapshot, self._chains, self._settings, self._now = snapshot, chains, settings, now

    def probes(self, keys: Sequence[bytes]) -> list[Verdict]:
        """Of a stranger on each surface, and of people of the snapshot with every profile grant and with none."""
        verdicts = []
        for chain in self._chains.values():
            stranger = self._list(chain, None, 0)
            verdicts.append(_verdict(f"probe stranger on {chain.name}", self._stranger_faults(chain, stranger)))
            if keys:
                verdicts.append(
                    _verdict(f"probe people on {chain.name}", self._people_faults(chain, keys, stranger.slate.item))
                )
        return verdicts

    def canaries(self, standpoints: Mapping[str, Standpoint]) -> list[Verdict]:
        """Of the named accounts."""
        verdicts = []
        for name, canary in self._settings.watched().items():
            at = standpoints[name]
            records = (self._snapshot.user(key) for key in at.keys)
            record = next((each for each in records if each is not None), None)
            given = served(self._snapshot, at.chain, record, at.granted, self._now, canary.region)
            verdicts.append(_verdict(f"canary {name} on {at.chain.name}", faults(canary, self._shown(given))))
        return verdicts

    def _list(self, chain: Chain, key: bytes | None, granted: int) -> Served:
        record = self._snapshot.user(key) if key is not None else None
        return served(self._snapshot, chain, record, granted, self._now, self._settings.probes.region)

    def _stranger_faults(self, chain: Chain, given: Served) -> list[str]:
        found = self._amiss(given.slate.item)
        least = min(self._settings.probes.stranger_items or 0, chain.default_limit)
        if len(given.slate) < least:
            found.append(f"has {len(given.slate)} items, at least {least} expected (gates.probes.stranger_items)")
        return found

    def _people_faults(self, chain: Chain, keys: Sequence[bytes], stranger: NDArray[np.int32]) -> list[str]:
        counts: dict[str, int] = {}
        for key in keys:
            wrong = [] if self._snapshot.user(key) is not None else ["is not in the snapshot"]
            given = self._list(chain, key, self.vocabulary.groups).slate.item
            wrong += self._amiss(given) if len(given) else ["has an empty list"]
            if not np.array_equal(self._list(chain, key, 0).slate.item, stranger):
                wrong.append("is not shown a stranger's list without grants")
            for each in wrong:
                counts[each] = counts.get(each, 0) + 1
        return [f"{count} of {len(keys)}: {each}" for each, count in counts.items()]

    def _amiss(self, items: NDArray[np.int32]) -> list[str]:
        found = []
        table = self._snapshot.items
        if len(np.unique(items)) < len(items):
            found.append("shows an item twice")
        if self._settings.probes.available:
            here = (table.available_from[items] <= self._now) & (self._now < table.available_until[items])
            limited = items[table.has_regions[items]].tolist()
            region = self._settings.probes.region.upper()
            if not here.all() or not all(covers(table.regions(code), region) for code in limited):
                found.append("shows what cannot be had now and there")
        return found

    def _shown(self, given: Served) -> Shown:
        table = self._snapshot.items
        pairs = zip(given.slate.item.tolist(), given.slate.lane.tolist(), strict=True)
        return Shown(
            given.profiled,
            tuple(
                ShownItem(table.id_of(item), LANES[lane], tuple(table.category_path(item)), bool(table.sensitive[item]))
                for item, lane in pairs
            ),
        )


def _footings(this: Night, vocabulary: Vocabulary) -> dict[str, Standpoint]:
    """Where each canary stands by the ledger as it is now: that is what a server would go by."""
    settings, canaries = this.settings, this.settings.gates.watched()
    chains = {name: surface_chain(settings, canary.surface) for name, canary in canaries.items()}
    if not chains:
        return {}
    with opened_ledger(settings) as (ledger, keys):

        def stands(canary: Canary, chain: Chain) -> Standpoint:
            standing = ledger.standing(keys.stable.derive(canary.user))
            granted = vocabulary.under(standing.preference or chain.default_level, standing.granted)
            if canary.granted != "ledger":
                granted = vocabulary.groups if canary.granted == "all" else 0
            return Standpoint(chain, keys.filed_under(canary.user, standing.person), granted)

        return {name: stands(canary, chains[name]) for name, canary in canaries.items()}


def _verdict(name: str, found: Sequence[str]) -> Verdict:
    outcome = Outcome.BROKEN if found else Outcome.PASSED
    return Verdict(name, "", None, None, "", outcome, f"{name}: {'; '.join(found)}" if found else "")
