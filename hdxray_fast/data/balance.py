"""An even load: which process takes which images of a step, so that none waits for another.

How many patches of a radiograph are kept depends on its contour and on how much of the canvas it fills; so batches of
as many images differ in tokens. The images of a step are dealt out anew among its batches, which leaves the step's
loss and gradient what they were: sums over the same images.
"""

from __future__ import annotations

import heapq

import numpy as np


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

    The dearest image goes first, each to the cheapest batch that has room (Graham's rule, with room for as many images
    each); then the dearest and the cheapest batch swap images as long as that brings them closer.

    Args:
        costs: ``[N]``, N a multiple of ``batches``.
        batches: how many.

    Returns:
        Positions in ``costs`` for each batch, ascending; always the same for the same arguments.
    """
    room = len(costs) // batches
    if batches == 1:
        return [list(range(len(costs)))]
    dealt: list[list[int]] = [[] for _ in range(batches)]
    sums = np.zeros(batches)
    heap = [(0.0, batch) for batch in range(batches)]
    for position in np.argsort(-costs, kind="stable").tolist():
        _, batch = heapq.heappop(heap)
        dealt[batch].append(position)
        sums[batch] += costs[position]
        if len(dealt[batch]) < room:
            heapq.heappush(heap, (sums[batch], batch))
    for _ in range(4 * batches):
        high, low = int(sums.argmax()), int(sums.argmin())
        gap = sums[high] - sums[low]
        # swapping a and b takes costs[a] - costs[b] from one batch to the other; half the gap would close it
        moves = costs[dealt[high]][:, None] - costs[dealt[low]][None, :]  # [room, room]
        best = np.abs(moves - gap / 2).argmin()
        i, j = divmod(int(best), room)
        if not 0 < moves[i, j] < gap:
            break
        dealt[high][i], dealt[low][j] = dealt[low][j], dealt[high][i]
        sums[high] -= moves[i, j]
        sums[low] += moves[i, j]
    return [sorted(batch) for batch in dealt]
