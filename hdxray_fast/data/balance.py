"""An even load: which process takes which images of a step, so that none waits for another.

How many patches of a radiograph are kept depends on its contour and on how much of the canvas it fills; so batches of
as many images differ in tokens. The images of a step are dealt out anew among its batches, which leaves the step's
loss and gradient what they were: sums over the same images.
"""

from __future__ import annotations

import numpy as np

MOST_SWAPS = 8  # rounds of them
EVEN = 1e-3  # batches whose costs differ by less than this share take equally long


def kept_patches(
    inside_share: np.ndarray, valid_share: np.ndarray, patches: int, ratio_inside: float, ratio_outside: float
) -> np.ndarray:
    """About how many patches of each image are kept, ``[N] float64``; rounding and augmentation move it a little.

    Args:
        inside_share: ``[N]``, share of all patches that lie inside the contour.
        valid_share: ``[N]``, share of all patches that hold some of the radiograph.
        patches: of the canvas.
        ratio_inside: share of the patches inside that are masked.
        ratio_outside: likewise, outside.
    """
    outside = np.maximum(valid_share - inside_share, 0)
    return patches * (inside_share * (1 - ratio_inside) + outside * (1 - ratio_outside))


def deal_evenly(costs: np.ndarray, batches: int) -> list[list[int]]:
    """Deal images out to batches of equal number and nearly equal cost.

    Round after round each batch gets one image, the dearest left going to the cheapest batch; then the dearest batch
    and the cheapest, the second dearest and the second cheapest, and so on, swap the two images that bring them closest
    together, as long as that helps. Every process of a run does this for every step, hence whole rounds at a time: 512
    batches of 32 images take a quarter of the CPU time that dealing them one by one does.

    Args:
        costs: ``[N]``, N a multiple of ``batches``.
        batches: how many.

    Returns:
        Positions in ``costs`` for each batch, ascending; always the same for the same arguments.
    """
    room = len(costs) // batches
    if batches == 1:
        return [list(range(len(costs)))]
    rounds = np.argsort(-costs, kind="stable").reshape(room, batches)  # positions, the dearest first
    dealt = np.empty((batches, room), np.int64)
    sums = np.zeros(batches)
    for turn, positions in enumerate(rounds):
        cheapest_first = np.argsort(sums, kind="stable")
        dealt[cheapest_first, turn] = positions
        sums[cheapest_first] += costs[positions]
    for _ in range(MOST_SWAPS):
        if not _swap(costs, dealt, sums):
            break
    dealt.sort(axis=1)
    return dealt.tolist()


def _swap(costs: np.ndarray, dealt: np.ndarray, sums: np.ndarray) -> bool:
    """One image each between dear and cheap batches, in place; False where that brings none of the pairs closer."""
    order, half = np.argsort(sums, kind="stable"), len(sums) // 2
    low, high = order[:half], order[: -half - 1 : -1]
    gap = sums[high] - sums[low]  # [P], falling
    uneven = gap > EVEN * sums[high]
    if not uneven.any():
        return False
    low, high, gap = low[uneven], high[uneven], gap[uneven]
    # swapping a and b takes costs[a] - costs[b] from one batch to the other; half the gap would close it
    moves = costs[dealt[high]][:, :, None] - costs[dealt[low]][:, None, :]  # [P, room, room]
    flat = moves.reshape(len(gap), -1)
    best = np.abs(flat - gap[:, None] / 2).argmin(1)
    move = flat[np.arange(len(gap)), best]
    helps = (move > 0) & (move < gap)
    high, low, best, move = high[helps], low[helps], best[helps], move[helps]
    i, j = np.divmod(best, dealt.shape[1])
    dealt[high, i], dealt[low, j] = dealt[low, j], dealt[high, i]
    sums[high] -= move
    sums[low] += move
    return bool(helps.any())
