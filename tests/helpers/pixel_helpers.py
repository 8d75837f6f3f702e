"""Pixels of every type that the operators read, for the tests of gather and loss."""

from __future__ import annotations

import torch
from plan_helpers import ragged_plan

import hdxray_fast as hx

PIXELS = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PER_IMAGE = torch.tensor([1 / 255, 0.5, 3.7e-5]), torch.tensor([-0.5, 0.0, 1.25])


def pixels(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    if dtype == torch.uint16:
        return torch.randint(0, 65536, shape, dtype=torch.int32).to(dtype)
    return torch.randn(shape).to(dtype)


def gather_case(patch: int, channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, hx.MaskPlan]:
    """Three images on a 3 x 5 grid, the middle one without a single patch; on the CPU."""
    plan = ragged_plan((3, 5), [4, 0, 15], [6, 0, 0], patch)
    return pixels((3, channels, 3 * patch, 5 * patch), dtype), plan
