"""Inputs of the pixel benchmarks: a batch of chest-like contours on a letterboxed 1280 x 1280 canvas."""

from __future__ import annotations

import cv2
import numpy as np
import torch

import hdxray_fast as hx
from hdxray_fast.data.augment import Augmentation


def chest_grids(batch: int, grid: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Inside and valid grids, bool ``[B, grid, grid]``: ellipses of chest size, and a letterbox's margins."""
    y, x = np.mgrid[:grid, :grid] / grid
    inside = np.stack([((y - 0.48) / 0.36) ** 2 + ((x - 0.5) / (0.33 + 0.01 * b)) ** 2 < 1 for b in range(batch)])
    valid = np.ones((batch, grid, grid), bool)
    for b in range(batch):
        margin = b % 4 * grid // 20
        valid[b, :, :margin] = valid[b, :, grid - margin :] = False
    return torch.from_numpy(inside), torch.from_numpy(valid)


def canvases(batch: int, size: int = 1280) -> torch.Tensor:
    """Noise, uint8 ``[B, 1, size, size]``: the time does not depend on what the pixels show."""
    return torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8)


def drawn_view(batch: int, size: int = 1280) -> hx.View:
    """What pre-training's augmentation draws for images of uint8: a map and a gamma each."""
    affines, tables = [], []
    for b in range(batch):
        affine, table = Augmentation().draw_view(np.random.default_rng(b), size, np.uint8)
        affines.append(cv2.invertAffineTransform(affine))
        tables.append(table)
    return hx.View(torch.tensor(np.array(affines), dtype=torch.float32), torch.from_numpy(np.array(tables)))
