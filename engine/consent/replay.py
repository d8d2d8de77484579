"""All people's consent at once, as the night reads it: from the projection, or replayed up to an earlier sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Select, func, select

from engine.consent.changes import ALONE, LINKED, parse_effect
from engine.consent.tables import CHANGES, CURRENT, EFFECT, TOMBSTONES, stream
from engine.identity import KEY_BYTES
from engine.schema import STANDINGS

_NO_PREFERENCE = -1
_KEY = f"S{KEY_BYTES}"
STATE_COLUMNS = (
    CURRENT.c.user_key, CURRENT.c.granted, CURRENT.c.preference, CURRENT.c.sequence, CURRENT.c.erased_at, CURRENT.c.erasure,
    CURRENT.c.person,
)  # fmt: skip
_STATE_TYPES = (np.int64, np.uint8, np.int64, np.int64, np.int64)  # of codes for the states, and of the rest
Bits = Mapping[str, int]  # (purpose/source) -> mask


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What everybody allows, as columns of (N,) ascending by key; what each is, `changes.Standing` says."""

    key: NDArray[np.bytes_]
    granted: NDArray[np.uint64]
    preference: NDArray[np.uint8]
    sequence: NDArray[np.int64]
    erased_at: NDArray[np.int64]
    erasure: NDArray[np.int64]
    person: NDArray[np.bytes_]


def current_state(connection: Connection, bits: Bits) -> State:
    """Everybody's state now.

    Raises:
        ValueError: a stored state is not one.
    """
    states: dict[str, int] = {}
    parts: list[list[NDArray[Any]]] = [[np.empty(0, kind)] for kind in _STATE_TYPES]
    keys = [b""]
    persons = [b""]
    for key, state, *numbers, person in _columns(connection, select(*STATE_COLUMNS).order_by(CURRENT.c.user_key)):
        keys.append(_joined(key))
        persons.append(_joined([each or ALONE for each in person]))
        parts[0].append(_coded(state, states))
        for part, column, kind in zip(parts[1:], numbers, _STATE_TYPES[1:], strict=True):
            part.append(np.array(column, kind))
    masks = np.array([mask_of(state, bits) for state in states], np.uint64)
    codes, *columns = (np.concatenate(part) for part in parts)
    granted = masks[codes] if states else masks
    columns.append(np.frombuffer(b"".join(persons), _KEY))
    return State(np.frombuffer(b"".join(keys), _KEY), granted, *columns)


def current_standings(connection: Connection, bits: Bits) -> pa.Table:
    """Everybody's standing now, as STANDINGS, sorted by user key.

    Raises:
        ValueError: a stored state is not one.
    """
    state = current_state(connection, bits)
    return _table(state.key.tobytes(), state.granted, state.preference, state.erased_at)


def replayed_standings(connection: Connection, at: int, bits: Bits) -> pa.Table:
    """Everybody's standing after the changes up to a sequence, as STANDINGS, sorted by user key.

    Erasures hold whatever the sequence: what went before them is gone, and a replay must not make up for it.

    Raises:
        ValueError: a stored change is not one.
    """
    statement = (
        select(CHANGES.c.user_key, EFFECT, func.coalesce(CHANGES.c.preference, _NO_PREFERENCE))
        .where(
            CHANGES.c.sequence <= at, CHANGES.c.purpose != LINKED
        )  # each link is an effect of its own, and grants nothing
        .order_by(CHANGES.c.user_key, CHANGES.c.sequence, CHANGES.c.position)
    )
    effects: dict[str, int] = {}
    keys, codes, preferences = [b""], [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    for key, effect, preference in _columns(connection, statement):
        keys.append(_joined(key))
        codes.append(_coded(effect, effects))
        preferences.append(np.array(preference, np.int8))
    rows = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    starts = np.ones(len(rows), bool)
    starts[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    person = np.cumsum(starts) - 1
    granted = fold(person, np.concatenate(codes), list(effects), int(starts.sum()), bits)
    preferred = np.zeros(len(granted), np.uint8)
    stated = np.concatenate(preferences)
    assign_last(preferred, person, stated, np.flatnonzero(stated != _NO_PREFERENCE))
    return _with_erased(connection, rows[starts].view(_KEY).reshape(-1), granted, preferred)


def _with_erased(
    connection: Connection, keys: NDArray[np.bytes_], granted: NDArray[np.uint64], preference: NDArray[np.uint8]
) -> pa.Table:
    """STANDINGS of people by key, ascending, and of those of whom an erasure alone is left."""
    of = TOMBSTONES.c.user_key
    statement = select(of, func.max(TOMBSTONES.c.erased_at)).group_by(of).order_by(of)
    gone, since = [b""], [np.empty(0, np.int64)]
    for key, erased_at in _columns(connection, statement):
        gone.append(_joined(key))
        since.append(np.array(erased_at, np.int64))
    erased = np.frombuffer(b"".join(gone), _KEY)
    everybody = np.union1d(keys, erased)
    place = np.searchsorted(everybody, keys)
    columns = (
        np.zeros(len(everybody), np.uint64),
        np.zeros(len(everybody), np.uint8),
        np.zeros(len(everybody), np.int64),
    )
    columns[0][place], columns[1][place] = granted, preference
    columns[2][np.searchsorted(everybody, erased)] = np.concatenate(since)
    return _table(everybody.tobytes(), *columns)


def fold(
    person: NDArray[np.int64], codes: NDArray[np.int64], effects: Sequence[str], people: int, bits: Bits
) -> NDArray[np.uint64]:
    """The mask of each person after their changes: for each (purpose, source), what the last change on it said.

    Args:
        person: (N,) ascending; the rows of one person in the order in which they take effect.
        codes: (N,) rows of `effects`.
        effects: the distinct effects.
        people: how many persons.
        bits: the mask of each pair.
    """
    parsed = [parse_effect(effect) for effect in effects]
    says = np.array([granted for granted, _, _ in parsed], bool)
    result = np.zeros(people, np.uint64)
    for pair, mask in bits.items():
        purpose, source = pair.split("/")
        touches = np.array([p == purpose and (of is None or source in of) for _, p, of in parsed], bool)
        if not (touches & says).any():
            continue  # never granted to anybody
        held = np.zeros(people, bool)
        assign_last(held, person, says[codes], np.flatnonzero(touches[codes]))
        result |= np.where(held, np.uint64(mask), np.uint64(0))
    return result


def assign_last(out: NDArray[Any], person: NDArray[np.int64], values: NDArray[Any], rows: NDArray[np.intp]) -> None:
    """Put (N,) values of some rows, ascending by person, into (P,) places: of each person's, the last."""
    # NumPy does not say which value stays when one index is assigned to twice, hence the explicit last of each person.
    if len(rows):
        last = rows[np.append(person[rows[1:]] != person[rows[:-1]], True)]
        out[person[last]] = values[last]


def mask_of(state: str, bits: Bits) -> int:
    """The mask of a state.

    Raises:
        ValueError: it is not one.
    """
    mask = 0
    for pair in state.split():
        if pair.count("/") != 1:
            raise ValueError(f"{pair!r} is no grant")
        mask |= bits.get(pair, 0)  # a source that was retired allows nothing
    return mask


def _columns(connection: Connection, statement: Select[Any]) -> Iterator[tuple[list[Any], ...]]:
    for rows in stream(connection, statement):
        yield tuple([row[place] for row in rows] for place in range(len(rows[0])))


def _joined(keys: Sequence[bytes]) -> bytes:
    joined = b"".join(keys)
    if len(joined) != KEY_BYTES * len(keys):
        raise ValueError("a stored user key is not 16 bytes long")
    return joined


def _coded(texts: Sequence[str], known: dict[str, int]) -> NDArray[np.int64]:
    batch = pa.array(texts, pa.string()).dictionary_encode()
    rows = np.array([known.setdefault(text, len(known)) for text in batch.dictionary.to_pylist()], np.int64)
    codes: NDArray[np.int64] = rows[batch.indices.to_numpy()]
    return codes


def _table(
    keys: bytes, granted: NDArray[np.uint64], preference: NDArray[np.uint8], erased_at: NDArray[np.int64]
) -> pa.Table:
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(granted), [None, pa.py_buffer(keys)])
    return pa.table([column, pa.array(granted), pa.array(preference), pa.array(erased_at)], schema=STANDINGS)
