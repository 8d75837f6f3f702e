"""The rules of a mask plan in their plainest form: NumPy, a full sort, no shortcut. The core's paths give the same ids.

The random key of a patch is one word of Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), a pure function of (seed, epoch, sample index, patch id): the same on any machine, with any number of workers
or ranks, whatever else is in the batch, and after a resume, with no generator state to save.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .mask_ratio import masked_patches, round_half_up

STRATEGIES = ("contour", "random", "rectangle", "block")  # positions are the codes of csrc/common/mask_plan.h
BLOCK_EDGE = 4  # patches; on a grid smaller than that, the grid's shorter side


def philox_ref(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox-4x32-10 of counters ``[N, 4]`` (any unsigned dtype, 32 bits used) under one key; ``[N, 4]`` uint32."""
    low = np.uint64(0xFFFFFFFF)
    x0, x1, x2, x3 = (counter[:, i].astype(np.uint64) & low for i in range(4))
    k0, k1 = key
    for _ in range(10):
        a, b = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (b >> np.uint64(32)) ^ x1 ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ x3 ^ np.uint64(k1),
            a & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=1).astype(np.uint32)


def patch_keys_ref(n: int, seed: int, epoch: int, index: int) -> np.ndarray:
    """The keys of patches (or blocks) 0..n-1, ``[n]`` uint32: word ``id % 4`` at counter (id // 4, epoch, index)."""
    counter = np.zeros(((n + 3) // 4, 4), np.uint64)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 1:] = epoch, index & 0xFFFFFFFF, index >> 32
    return philox_ref(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:n]


def _rectangle(gh: int, gw: int) -> np.ndarray:
    box = np.zeros((gh, gw), bool)
    box[int(0.25 * gh) + 1 : int(0.75 * gh) + 1, int(0.125 * gw) + 1 : int(0.75 * gw) + 1] = True
    return box


def _plan_image_ref(inside: np.ndarray, valid: np.ndarray, index: int, choice: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Kept and predicted ids of one image, ascending."""
    code, ratio_inside, ratio_outside, predict, seed, epoch = choice
    strategy, (gh, gw) = STRATEGIES[code], inside.shape
    if strategy == "block":
        edge = min(BLOCK_EDGE, gh, gw)
        rows, cols = np.arange(gh) // edge, np.arange(gw) // edge
        across = -(-gw // edge)
        blocks = patch_keys_ref(-(-gh // edge) * across, seed, epoch | 0x80000000, index)
        keys = blocks[rows[:, None] * across + cols[None, :]].reshape(-1)
    else:
        keys = patch_keys_ref(gh * gw, seed, epoch, index)
    if strategy == "rectangle":
        inside = _rectangle(gh, gw)
    inside, valid = inside.reshape(-1), valid.reshape(-1)
    order = np.argsort(keys, kind="stable")  # by (key, id)
    strata = [order[(inside & valid)[order]], order[(~inside & valid)[order]]]
    masked = list(masked_patches(len(strata[0]), len(strata[1]), ratio_inside, ratio_outside))
    if strategy == "random":
        strata, masked = [order[valid[order]]], [sum(masked)]
    keep = [len(s) - m for s, m in zip(strata, masked, strict=True)]
    if not any(keep) and valid.any():
        first = order[valid[order]][0]
        keep = [int(first in s) for s in strata]
    hidden = [s[k:] for s, k in zip(strata, keep, strict=True)]
    share = [round_half_up(predict, len(h)) for h in hidden]
    if predict > 0 and not any(share) and any(map(len, hidden)):
        first = order[np.isin(order, np.concatenate(hidden))][0]
        share = [int(first in h) for h in hidden]
    kept = np.concatenate([s[:k] for s, k in zip(strata, keep, strict=True)])
    predicted = np.concatenate([h[:n] for h, n in zip(hidden, share, strict=True)])
    return np.sort(kept), np.sort(predicted)


def plan_masks_ref(
    inside: Tensor, valid: Tensor, index: Tensor, choice: tuple
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed plans of a batch, on the CPU.

    Args:
        inside: ``[B, gh, gw]`` bool. valid: likewise. index: ``[B]`` int64.
        choice: position in `STRATEGIES`, ratio_inside, ratio_outside, predict, seed, epoch.

    Returns:
        keep_ids, keep_cu_seqlens, predict_ids, predict_cu_seqlens, int32.
    """
    plans = [
        _plan_image_ref(i, v, int(n), choice)
        for i, v, n in zip(inside.numpy(), valid.numpy(), index.tolist(), strict=True)
    ]
    packed = []
    for part in zip(*plans, strict=True) if plans else ((), ()):
        ids = np.concatenate([np.empty(0, np.int64), *part])
        cu = np.cumsum([0, *map(len, part)])
        packed += [torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(cu.astype(np.int32))]
    return tuple(packed)
