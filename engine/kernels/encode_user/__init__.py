"""The user tower without torch: decayed sums of item vectors, then a small MLP; and what a score says of wants.

The sums are linear in the events, so withdrawing a source is a subtraction and today's events are an addition; only the MLP
is not. The night trains these arrays in torch; night and server encode with `Encoder`, and a test holds all three together.
"""

from engine.kernels.encode_user.chance import (
    ONLOOKER,
    SAMPLE,
    expected_wants,
    faded,
    log_mass,
    log_sum,
    nearest_decay,
    step_of,
)
from engine.kernels.encode_user.cpu import Encoder
from engine.kernels.encode_user.reference import UserTower, encode, pool, within_groups
from engine.kernels.encode_user.scale import OVER_ALL, OVER_TAIL, Scale

__all__ = [
    "ONLOOKER",
    "OVER_ALL",
    "OVER_TAIL",
    "SAMPLE",
    "Encoder",
    "Scale",
    "UserTower",
    "encode",
    "expected_wants",
    "faded",
    "log_mass",
    "log_sum",
    "nearest_decay",
    "pool",
    "step_of",
    "within_groups",
]
