"""Pooling and encoding of users in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from engine.errors import KernelError

F32 = NDArray[np.float32]
MICROSECONDS_A_DAY = 86_400_000_000
EPSILON = 1e-5  # of the layer norm, as in torch


@dataclass(frozen=True, slots=True, eq=False)
class UserTower:
    """The tower's parameters: K decays over vectors of D, a hidden layer of H.

    Shapes: rates (K,) per day; mix (K,); enter (H, K*D), enter_bias (H,); leave (D, H), leave_bias (D,);
    gain (D,), shift (D,) of the final layer norm.
    """

    rates: F32
    mix: F32
    enter: F32
    enter_bias: F32
    leave: F32
    leave_bias: F32
    gain: F32
    shift: F32

    @property
    def width(self) -> int:
        """D."""
        return len(self.gain)

    def arrays(self) -> dict[str, F32]:
        """The parameters by name, as a snapshot stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all parameters."""
        return tuple(field.name for field in fields(cls))

    def fits(self, decays: int, width: int) -> bool:
        """Whether the parameters are of one tower, of K decays over vectors of D."""
        hidden = self.enter_bias.shape
        shapes = ((decays,), (decays,), (*hidden, decays * width), hidden, (width, *hidden), *[(width,)] * 3)
        found = tuple(array.shape for array in self.arrays().values())
        return len(hidden) == 1 and found == shapes

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float32]]) -> UserTower:
        """The tower whose parameters a snapshot stores.

        Raises:
            KernelError: a parameter is missing.
        """
        missing = [name for name in cls.names() if name not in arrays]
        if missing:
            raise KernelError(f"The user tower lacks {', '.join(missing)}.", "Publish a snapshot of this version.")
        return cls(**{name: np.asarray(arrays[name], np.float32) for name in cls.names()})


def pool(
    sums: F32, weights: F32, last: NDArray[np.int64], owner: NDArray[np.integer], users: int, rates: F32
) -> tuple[F32, F32]:
    """Bring groups of events to one time and add them up per user.

    Args:
        sums: (G, K, D) decayed sums of item vectors, each relative to its group's last event.
        weights: (G, K) decayed sums of the event weights, likewise.
        last: (G,) microseconds since the epoch of each group's last event.
        owner: (G,) user row of each group, 0..users-1, ascending.
        users: rows of the result.
        rates: (K,) decay per day.

    Returns:
        (users, K, D) sums and (users, K) weights relative to each user's latest event; zero where a user has no group.
    """
    total = np.zeros((users, *sums.shape[1:]), np.float32)
    mass = np.zeros((users, weights.shape[1]), np.float32)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    if len(starts):
        latest = np.repeat(np.maximum.reduceat(last, starts), np.diff(np.append(starts, len(owner))))
        days = (latest - last) / MICROSECONDS_A_DAY
        fade = np.exp(-days[:, None] * rates[None].astype(np.float64)).astype(np.float32)
        total[owner[starts]] = np.add.reduceat(fade[:, :, None] * sums, starts)
        mass[owner[starts]] = np.add.reduceat(fade * weights, starts)
    return total, mass


def within_groups(granted: int, groups: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(G,) which groups of events a set of grants allows: the whole of the consent algebra."""
    inside: NDArray[np.bool_] = (np.uint64(granted) >> groups.astype(np.uint64)) & np.uint64(1) == 1
    return inside


def encode(sums: F32, weights: F32, tower: UserTower) -> F32:
    """User vectors from pooled sums.

    Args:
        sums: (U, K, D) decayed sums. weights: (U, K) decayed weights; a user with none gets the zero vector.

    Returns:
        (U, D) vectors, to be multiplied with item vectors.
    """
    known = weights.max(1, initial=0.0) > 0
    means = sums / np.maximum(weights, np.float32(1e-30))[:, :, None] * np.float32(np.sqrt(tower.width))
    pooled = np.einsum("ukd,k->ud", means, tower.mix)
    hidden = means.reshape(len(means), tower.enter.shape[1]) @ tower.enter.T + tower.enter_bias
    hidden = hidden * (0.5 + 0.5 * np.tanh(0.5 * hidden))  # SiLU, in a form that cannot overflow
    vector = pooled + hidden @ tower.leave.T + tower.leave_bias
    vector = vector - vector.mean(1, keepdims=True)
    vector = vector / np.sqrt((vector**2).mean(1, keepdims=True) + np.float32(EPSILON))
    result: F32 = (vector * tower.gain + tower.shift) * known[:, None]
    return result
