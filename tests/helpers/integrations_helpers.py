"""What the tests of other tools compare with."""

from __future__ import annotations

import torch


def same(ours: torch.Tensor, plain: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to rounding, measured against the largest value."""
    assert ours.shape == plain.shape
    worst = ((ours - plain).abs().max() / plain.abs().max()).item()
    assert worst <= tolerance, f"{worst:.2e} of the largest value"
