"""Random draws and opaque names, a whole column at a time."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


class Stream(IntEnum):
    """What a generator is for, so that one more draw in one place moves nothing elsewhere."""

    ITEMS = 0
    PEOPLE = 1
    NEEDS = 2
    GRANTS = 3
    NAMES = 4
    DAY = 5
    GROUPS = 6
    QUALITY = 7
    MOODS = 8


def generator(seed: int, stream: Stream, day: int = 0) -> np.random.Generator:
    """The generator of one purpose, and for Stream.DAY and Stream.MOODS of one day."""
    return np.random.default_rng((seed, int(stream), day))


def sigmoid(values: Floats) -> Floats:
    """The logistic function."""
    return 1.0 / (1.0 + np.exp(-values))


def pick(weights: Floats, rng: np.random.Generator) -> Ints:
    """One column of each row, drawn by weight.

    Args:
        weights: (N, K) non-negative, each row with a positive sum.

    Returns:
        (N,) columns; never one of weight 0.
    """
    edges = np.cumsum(weights, axis=1)
    # A hair below 1, so that rounding cannot reach past the last positive weight.
    aim = rng.random(len(weights)) * (1 - 1e-12) * edges[:, -1]
    return np.asarray((aim[:, None] >= edges[:, :-1]).sum(axis=1), np.int64)


def pick_within(weights: Floats, starts: Ints, ends: Ints, rng: np.random.Generator) -> Ints:
    """One index out of each range, drawn by weight.

    Args:
        weights: (N,) non-negative.
        starts, ends: any shape, the same: ranges `starts <= index < ends`, none empty.

    Returns:
        Indices of that shape.
    """
    edges = np.concatenate([[0.0], np.cumsum(weights)])
    low, high = edges[starts], edges[ends]
    found = np.searchsorted(edges, low + rng.random(starts.shape) * (high - low), "right") - 1
    return np.asarray(np.clip(found, starts, ends - 1), np.int64)


def unit(values: Floats) -> Floats:
    """Rows scaled to length 1."""
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float64)


def ranks(groups: Ints, order: Ints) -> Ints:
    """For each row, how many rows of the same group come before it in `order`, a stable sort of the rows by group."""
    ordered = groups[order]
    places = np.arange(len(order))
    first = np.ones(len(order), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    result = np.empty(len(order), np.int64)
    result[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return result


def serial_names(prefix: str, numbers: Ints) -> pa.Array:
    """Names such as user-00042, all of the same length."""
    digits = max(5, len(str(int(numbers.max(initial=0)))))
    powers = 10 ** np.arange(digits - 1, -1, -1, dtype=np.int64)
    letters = np.empty((len(numbers), len(prefix) + 1 + digits), np.uint8)
    letters[:, : len(prefix) + 1] = np.frombuffer(f"{prefix}-".encode(), np.uint8)
    letters[:, len(prefix) + 1 :] = _HEX[numbers[:, None] // powers % 10]
    return _strings(letters)


def opaque_names(numbers: Ints, key: int) -> pa.Array:
    """Sixteen hex digits for each number below 2**63: distinct for distinct numbers, and in no order.

    Source: the finaliser of SplitMix64, a bijection; Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195, with the
    constants of Stafford's variant 13.
    """
    mixed = numbers.astype(np.uint64) + np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    octets = (mixed ^ (mixed >> np.uint64(31))).astype(">u8").view(np.uint8).reshape(-1, 8)
    return _strings(_HEX[np.stack([octets >> 4, octets & 15], axis=2)].reshape(-1, 16))


def _strings(letters: NDArray[np.uint8]) -> pa.Array:
    count, length = letters.shape
    offsets = pa.py_buffer(np.arange(0, (count + 1) * length, length, dtype=np.int32))
    return pa.StringArray.from_buffers(count, offsets, pa.py_buffer(np.ascontiguousarray(letters)))
