"""Raw user ids into pseudonyms, each id once a process: a log repeats its people day after day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.identity import KEY_BYTES, UserKeys, fault_in_id

_REMEMBERED = 2_000_000  # ids, in about 100 bytes each
_WIDTH = 2 * KEY_BYTES


@dataclass(slots=True, eq=False)
class _Known:
    """What a process has derived; a hash of the id finds the row, the id itself decides. Never written anywhere.

    hashes: ascending, with the row of each. names, made: by row, as they came.
    """

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]
    names: pa.Array
    made: NDArray[np.uint8]


_known: dict[str, _Known] = {}  # by key ids


class People:
    """Pseudonyms of a deployment's people; without keys, checks ids alone.

    Args:
        keys: the deployment's; None derives nothing, as a dry run needs nothing.
    """

    def __init__(self, keys: UserKeys | None) -> None:
        self._keys = keys
        self._name = f"{keys.stable.key_id} {keys.rotating.key_id}" if keys else ""

    def of(self, ids: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Key and seal of each id, (N, 32) bytes, and (N,) which ids are bad. Bad ids and nulls get zeros."""
        hashes = pl.Series(pl.from_arrow(ids)).cast(pl.String).hash().to_numpy()
        made, bad = np.zeros((len(ids), _WIDTH), np.uint8), np.zeros(len(ids), bool)
        known = _known.get(self._name)
        met = np.zeros(len(ids), bool)
        if known is not None and len(known.hashes):
            rows = known.rows[np.minimum(np.searchsorted(known.hashes, hashes), len(known.hashes) - 1)]
            same = pc.equal(known.names.take(pa.array(rows)), ids).fill_null(False)
            met = same.to_numpy(zero_copy_only=False)
            made[met] = known.made[rows[met]]
        new = np.flatnonzero(~met)
        if len(new):
            names = ids.take(pa.array(new)).to_pylist()
            bad[new] = [name is None or bool(fault_in_id(name)) for name in names]
            sound = new[~bad[new]]
            derived = self._derive([name for name, is_bad in zip(names, bad[new], strict=True) if not is_bad])
            made[sound] = derived
            self._remember(hashes[sound], ids.take(pa.array(sound)), derived)
        return made, bad

    def _derive(self, names: list[str]) -> NDArray[np.uint8]:
        if self._keys is None:
            return np.ones((len(names), _WIDTH), np.uint8)
        return np.frombuffer(b"".join(self._keys.pseudonyms(names)), np.uint8).reshape(-1, _WIDTH)

    def _remember(self, hashes: NDArray[np.uint64], names: pa.Array, made: NDArray[np.uint8]) -> None:
        known = _known.get(self._name)
        if known is None or len(known.made) + len(made) > _REMEMBERED:
            known = _Known(np.empty(0, np.uint64), np.empty(0, np.int64), pa.array([], pa.string()), made[:0])
        rows = len(known.made) + np.arange(len(made))
        hashes, first = np.unique(hashes, return_index=True)
        place = np.searchsorted(known.hashes, hashes)
        # Of two ids that hash alike, one is derived each time that it comes.
        new = (
            known.hashes[np.minimum(place, len(known.hashes) - 1)] != hashes if len(known.hashes) else hashes == hashes
        )
        _known[self._name] = _Known(
            np.insert(known.hashes, place[new], hashes[new]),
            np.insert(known.rows, place[new], rows[first[new]]),
            pa.concat_arrays([known.names, names.cast(pa.string())]),
            np.concatenate([known.made, made]),
        )
