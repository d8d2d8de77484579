"""The user tower without torch: decayed sums of item vectors, then a small MLP.

The sums are linear in the events, so withdrawing a source is a subtraction and today's events are an addition; only the MLP
is not. The night trains these arrays in torch; the server encodes with NumPy alone, and a test holds both together.
"""

from engine.kernels.encode_user.reference import UserTower, encode, pool, within_groups

__all__ = ["UserTower", "encode", "pool", "within_groups"]
