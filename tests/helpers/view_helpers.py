"""Images, maps and tables for the tests of views."""

from __future__ import annotations

import cv2
import numpy as np
import torch

import hdxray_fast as hx

DTYPES = (torch.uint8, torch.uint16, torch.float32, torch.float16, torch.bfloat16)
SIZES = [((6, 5), 16, 1), ((5, 7), 8, 3), ((4, 4), 5, 1), ((3, 3), 1, 3)]  # grid, patch size, channels


def images_of(dtype: torch.dtype, grid: tuple[int, int], p: int, channels: int, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(p)
    size = (batch, channels, grid[0] * p, grid[1] * p)
    if dtype.is_floating_point:
        return torch.randn(size, generator=generator).to(dtype)
    return torch.randint(0, 256 if dtype == torch.uint8 else 65536, size, generator=generator).to(dtype)


def table_of(dtype: torch.dtype, batch: int = 3) -> torch.Tensor | None:
    if dtype.is_floating_point:
        return None
    entries, top = (256, 256) if dtype == torch.uint8 else (257, 65536)
    return torch.randint(0, top, (batch, entries), generator=torch.Generator().manual_seed(1)).to(dtype)


def maps(height: int, width: int, turn: float, zoom: float = 1.1, shift: float = 0.04, batch: int = 3) -> torch.Tensor:
    """Maps about the centre: a turn in degrees, both ways and none, a zoom, a shift as a share of the width."""
    rows = []
    for b in range(batch):
        sign = (1, -1, 0)[b % 3]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), sign * turn, zoom**sign)
        matrix[:, 2] += sign * shift * width
        rows.append(matrix)
    return torch.tensor(np.array(rows), dtype=torch.float32)


def hostile_maps(batch: int = 3) -> dict[str, torch.Tensor]:
    far = torch.tensor([[1.0, 0, 1e30], [0, 1, -1e30]])
    huge = torch.tensor([[1e30, 1, 0], [0, 1e30, 0]])
    tiny = torch.tensor([[1e-30, 0, 2.5], [0, 1e-30, 1.5]])
    edge = torch.tensor([[1.0, 0, -0.5], [0, 1, 0.5]])
    mirrored = torch.tensor([[-1.0, 0, 30.25], [0, -1, 20.75]])
    found = {"far": far, "huge": huge, "tiny": tiny, "edge": edge, "mirrored": mirrored}
    return {name: one.expand(batch, 2, 3).contiguous() for name, one in found.items()}


def plan_of(grid: tuple[int, int], p: int, batch: int = 3) -> hx.MaskPlan:
    inside = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(0)) > 0.5
    return hx.plan_masks(inside, torch.ones(batch, *grid, dtype=torch.bool), 0.5, 0.3, patch_size=p)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
