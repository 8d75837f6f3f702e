"""Mask plan against masking by argsort, as MAE and its descendants do it, extended to two strata."""

from __future__ import annotations

import torch
from harness.pixel_cases import chest_grids

import hdxray_fast as hx


def argsort_plan(inside: torch.Tensor, valid: torch.Tensor, ratio_inside: float = 0.95, ratio_outside: float = 0.85):
    """The same plan by one argsort over the batch, its noise lifted by stratum; ranks come from the sorted order.

    One sort fewer than MAE's own masking (which sorts twice, for ids_restore), so the stronger rival.
    """
    inside, valid = inside.flatten(1), valid.flatten(1)  # [B, n]
    stratum = torch.where(valid, (~inside).float(), 2.0)
    order = (torch.rand(stratum.shape, device=stratum.device) + stratum).argsort(dim=1)
    n_inside = (inside & valid).sum(1, keepdim=True)
    n_outside = (~inside & valid).sum(1, keepdim=True)
    keep_inside = n_inside - (ratio_inside * n_inside + 0.5).floor().long()
    keep_outside = n_outside - (ratio_outside * n_outside + 0.5).floor().long()
    rank = torch.arange(order.shape[1], device=order.device)
    chosen = (rank < keep_inside) | ((rank >= n_inside) & (rank < n_inside + keep_outside))
    keep = torch.zeros_like(valid).scatter_(1, order, chosen)
    packed = []
    for patches in (keep, valid & ~keep):
        cu = torch.zeros(len(patches) + 1, dtype=torch.int32, device=patches.device)
        cu[1:] = patches.sum(1).cumsum(0)
        packed += [patches.nonzero()[:, 1].to(torch.int32), cu]
    return packed


def test_mask_plan(compare):
    inside, valid = chest_grids(8)
    ours, rival = hx.plan_masks(inside, valid), argsort_plan(inside, valid)
    assert torch.equal(ours.keep_cu_seqlens, rival[1])  # the same budget, image by image
    assert torch.equal(ours.predict_cu_seqlens, rival[3])
    compare(
        "mask plan, 8 × 80 × 80, contour",
        lambda: hx.plan_masks(inside, valid),
        lambda: argsort_plan(inside, valid),
        rival_name="argsort masking",
        bar=20,
        rounds=40,
        inner=5,
    )
