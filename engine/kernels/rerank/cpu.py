"""The compiled paths, unchecked but for what would read outside an array: what rules call on a snapshot's own arrays.

Arguments are as at the front door, C-contiguous and of exactly those dtypes; they may be read-only. Finite item vectors are
the caller's promise: with others the picks mean nothing, yet none comes twice.
"""

from engine.kernels.rerank.calibration import calibrate
from engine.kernels.rerank.likeness import dpp_of, finite, mmr_of
from engine.kernels.rerank.spacing import space

__all__ = ["calibrate", "dpp_of", "finite", "mmr_of", "space"]
