"""One window of each radiograph: masks, and with them all work, stay within it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def windows(valid: Tensor, side: int, seed: int, draws: Tensor) -> Tensor:
    """Squares of ``side`` patches, each round a patch drawn from those that are valid, moved to lie in the grid.

    A patch near a border is thus in fewer windows than one in the middle of the radiograph.

    Args:
        valid: ``[B, gh, gw]`` bool.
        side: of a window, patches; more than the grid has are all of it.
        seed: ``0 <= seed < 2^64``.
        draws: ``[B]`` int64; each stands for one window of its image, whatever the batch.

    Returns:
        The valid patches within, ``[B, gh, gw]`` bool; of an image without valid patches none.
    """
    within = torch.zeros_like(valid)
    for image, draw in enumerate(draws.tolist()):
        rows, columns = np.nonzero(valid[image].numpy())
        if not len(rows):
            continue
        chosen = np.random.Generator(np.random.Philox(key=[seed, draw])).integers(len(rows))
        top, left = (
            min(max(int(centre) - side // 2, 0), max(size - side, 0))
            for centre, size in zip((rows[chosen], columns[chosen]), valid.shape[1:], strict=True)
        )
        part = (image, slice(top, top + side), slice(left, left + side))
        within[part] = valid[part]
    return within
