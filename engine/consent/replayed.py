"""Whether people's standings are what their rows come to, for many people at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.consent.changes import ALONE, LINKED, effect_of, grants_in
from engine.consent.replay import assign_last, fold, mask_of
from engine.identity import KEY_BYTES

_KEY = f"S{KEY_BYTES}"
_BITS = 60  # pairs of purpose and source that one mask takes
Rows = list[tuple[Any, ...]]


def differing(changes: Rows, tombs: Rows, current: Rows) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Where what is kept of people differs from what their rows come to: the places that it tells of, and in what.

    Args:
        changes, tombs, current: of the same people, each by key: rows of CHANGES (by place then), TOMBSTONES and CURRENT.

    Raises:
        ValueError: a stored effect, state or key is not one.
    """
    keys = [_keys(rows) for rows in (changes, tombs, current)]
    everybody = np.unique(np.concatenate(keys))
    of_change, of_tomb, of_current = (np.searchsorted(everybody, each) for each in keys)
    people = len(everybody)
    zeros = [np.zeros(people, np.int64) for _ in range(4)]
    preference, last, erased_at, erasure = zeros
    sequence = np.array([row[1] for row in changes], np.int64)
    assign_last(last, of_change, sequence, np.arange(len(changes)))
    stated = np.array([-1 if row[7] is None else row[7] for row in changes], np.int64)
    assign_last(preference, of_change, stated, np.flatnonzero(stated >= 0))
    assign_last(erasure, of_tomb, np.array([row[1] for row in tombs], np.int64), np.arange(len(tombs)))
    assign_last(erased_at, of_tomb, np.array([row[2] for row in tombs], np.int64), np.arange(len(tombs)))
    yield sequence[sequence < erasure[of_change]], "a row lies before its person's erasure"
    last = np.maximum(last, erasure)
    there = np.zeros(people, bool)
    there[of_current] = True
    yield last[~there], "a person has rows and no standing"
    recorded = np.zeros(people, bool)
    recorded[of_change] = recorded[of_tomb] = True
    held = [np.array([row[place] for row in current], np.int64) for place in (2, 3, 4, 5)]
    yield held[1][~recorded[of_current]], "a standing is of somebody of whom nothing is recorded"
    names = ("preference", "place", "time of erasure", "place of erasure")
    known = recorded[of_current]
    for name, expected, kept in zip(names, (preference, last, erased_at, erasure), held, strict=True):
        wrong = known & (expected[of_current] != kept)
        yield held[1][wrong], f"a standing's {name} is not what its person's rows come to"
    wrong = known & _persons_differ(changes, of_change, current, of_current, people)
    yield held[1][wrong], "whom a standing is linked with is not what its person's rows come to"
    wrong = known & _grants_differ(changes, of_change, current, of_current, people)
    yield held[1][wrong], "what a standing grants is not what its person's rows come to"


def _persons_differ(
    changes: Rows, of_change: NDArray[np.int64], current: Rows, of_current: NDArray[np.int64], people: int
) -> NDArray[np.bool_]:
    """(C,) whether each of the standings shares another person than the last link of its rows."""
    expected: dict[int, bytes] = {}
    for place, row in zip(of_change.tolist(), changes, strict=True):
        if row[3] == LINKED:
            expected[place] = bytes.fromhex(row[4]) if row[6] else ALONE
    kept = [bytes(row[6] or ALONE) for row in current]
    return np.array(
        [expected.get(at, ALONE) != person for at, person in zip(of_current.tolist(), kept, strict=True)], bool
    )


def _grants_differ(
    changes: Rows, of_change: NDArray[np.int64], current: Rows, of_current: NDArray[np.int64], people: int
) -> NDArray[np.bool_]:
    """(C,) whether each of the standings grants something else than the person's changes, by name."""
    about = np.array([row[3] not in ("", LINKED) for row in changes], bool)
    said = [row for row, is_grant in zip(changes, about, strict=True) if is_grant]
    person = of_change[about]
    effects, codes = _coded([effect_of(row[3], row[4], bool(row[6]), row[5] or "") for row in said])
    states, kept = _coded([row[1] for row in current])
    canonical = np.array([" ".join(sorted(set(state.split()))) == state for state in states], bool)
    pairs = {f"{each.purpose}/{each.source}" for state in states for each in grants_in(state)}
    for effect in effects:
        purpose, source, covers = effect[1:].split("/")
        pairs |= {f"{purpose}/{each}" for each in ([source] if source else covers.split())}
    wrong = ~canonical[kept]
    ordered, folded = sorted(pairs), np.concatenate([[-1], person])
    rows = np.cumsum(folded[1:] != folded[:-1]) - 1  # the fold wants people without a gap
    whom = person[np.flatnonzero(folded[1:] != folded[:-1])]
    for start in range(0, len(ordered), _BITS):
        bits = {pair: 1 << place for place, pair in enumerate(ordered[start : start + _BITS])}
        granted = np.zeros(people, np.uint64)
        granted[whom] = fold(rows, codes, effects, len(whom), bits)
        masks = np.array([mask_of(state, bits) for state in states], np.uint64)
        wrong |= granted[of_current] != masks[kept]
    return wrong


def _coded(texts: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    coded = pa.array(texts, pa.string()).dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)


def _keys(rows: Rows) -> NDArray[np.bytes_]:
    joined = b"".join([bytes(row[0]) for row in rows])
    if len(joined) != KEY_BYTES * len(rows):
        raise ValueError("a stored user key is not 16 bytes long")
    return np.frombuffer(joined, _KEY)
