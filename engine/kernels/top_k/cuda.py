"""Exact top-K on a CUDA device: cuBLAS products by tiles and torch.topk for the shortlist, then the CPU path's own proof.

The scores of one tile do reach device memory here; the fused Triton kernel that avoids it is a later step. The answer is
the same either way, because shortlist, margin and re-scoring are those of the CPU path.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels.top_k import cpu, reference
from engine.schema import NO_ITEM

USERS_AT_ONCE = 4_096
ITEMS_AT_ONCE = 131_072


def top_k(
    users: reference.F32,
    items: reference.F32,
    k: int,
    starts: NDArray[np.int64],
    seen: reference.I32,
    device: str = "cuda",
) -> tuple[reference.I32, reference.F32]:
    """Same answer as the reference, bit for bit; `device` may be "cpu", which runs the same text without a GPU."""
    import torch

    out_ids = np.full((len(users), k), NO_ITEM, np.int32)
    out_scores = np.full((len(users), k), -np.inf, np.float32)
    if not len(items):
        return out_ids, out_scores
    longest = float(np.sqrt((items.astype(np.float64) ** 2).sum(1).max()))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would break the margin's proof
    try:
        table = torch.from_numpy(items).to(device)
        for first in range(0, len(users), USERS_AT_ONCE):
            last = min(first + USERS_AT_ONCE, len(users))
            block = users[first:last]
            queries = torch.from_numpy(block).to(device)
            owner = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1]))
            hidden = seen[starts[first] : starts[last]]
            found = []
            for at in range(0, len(items), ITEMS_AT_ONCE):
                scores = queries @ table[at : at + ITEMS_AT_ONCE].T
                inside = (hidden >= at) & (hidden < at + scores.shape[1])
                rows = torch.from_numpy(owner[inside]).to(device)
                columns = torch.from_numpy((hidden[inside] - at).astype(np.int64)).to(device)
                scores[rows, columns] = -torch.inf
                value, place = torch.topk(scores, min(k + cpu.SLACK, scores.shape[1]), dim=1)
                found.append((value, place + at))
            rough_all = torch.cat([value for value, _ in found], 1)
            ids_all = torch.cat([place for _, place in found], 1)
            rough_best, order = torch.topk(rough_all, min(k + cpu.SLACK, rough_all.shape[1]), dim=1)
            rough = rough_best.cpu().numpy()
            ids = torch.gather(ids_all, 1, order).to(torch.int32).cpu().numpy()
            norms = np.sqrt((block.astype(np.float64) ** 2).sum(1))
            safe = cpu.is_complete(rough, k, cpu.margin(norms, longest, items.shape[1]), len(items))
            exact = reference.exact_scores(block, items, ids)
            exact[np.isneginf(rough)] = -np.inf
            best, value_ = reference.best_first(exact, ids, k)
            out_ids[first:last, : best.shape[1]], out_scores[first:last, : best.shape[1]] = best, value_
            redo = np.flatnonzero(~safe)
            if len(redo):
                lengths = np.diff(starts)[first + redo]
                mine = np.concatenate([seen[starts[row] : starts[row + 1]] for row in first + redo])
                out_ids[first + redo], out_scores[first + redo] = reference.top_k(
                    block[redo], items, k, np.concatenate([[0], np.cumsum(lengths)]), mine
                )
    finally:
        torch.set_float32_matmul_precision(precision)
    return out_ids, out_scores
