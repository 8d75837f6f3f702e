"""Gather against PyTorch: patchify + normalise + index (as MAE's code does it), and against indexing first."""

from __future__ import annotations

import cv2
import pytest
import torch
from harness.pixel_cases import canvases, chest_grids, drawn_view

import hdxray_fast as hx

SCALE, SHIFT = 1 / 127.5, -1.0


def image_of_row(plan: hx.MaskPlan) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(plan.batch_size), plan.keep_counts)


def eager(images: torch.Tensor, plan: hx.MaskPlan, dtype: torch.dtype) -> torch.Tensor:
    """Normalise, patchify, keep."""
    batch, channels = images.shape[:2]
    (gh, gw), p = plan.grid_size, plan.patch_size
    x = images.float() * SCALE + SHIFT
    x = x.reshape(batch, channels, gh, p, gw, p).permute(0, 2, 4, 3, 5, 1).reshape(batch * gh * gw, p * p * channels)
    return x[image_of_row(plan) * (gh * gw) + plan.keep_ids].to(dtype)


def index_first(images: torch.Tensor, plan: hx.MaskPlan, dtype: torch.dtype) -> torch.Tensor:
    """The best of plain PyTorch: pick the patches out of a strided view while they are bytes, then normalise."""
    gw, p = plan.grid_size[1], plan.patch_size
    patches = images[:, 0].unfold(1, p, p).unfold(2, p, p)  # [B, gh, gw, p, p], a view
    ids = plan.keep_ids.long()
    return (patches[image_of_row(plan), ids // gw, ids % gw].float() * SCALE + SHIFT).to(dtype).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rival", "rival_name", "bar"), [
    (eager, "eager patchify + normalise + index", 20),
    (index_first, "eager index first, then normalise", None),
], ids=["eager", "index-first"])  # fmt: skip
def test_gather(compare, dtype, rival, rival_name, bar):
    images, plan = canvases(8), hx.plan_masks(*chest_grids(8))
    ours = hx.gather_patches(images, plan, SCALE, SHIFT, out_dtype=dtype)
    assert torch.equal(ours, rival(images, plan, dtype))
    compare(
        f"gather, 8 × 1280² uint8 → {'fp32' if dtype is torch.float32 else 'bf16'}, kept patches"
        + ("" if bar else "; indexing first"),
        lambda: hx.gather_patches(images, plan, SCALE, SHIFT, out_dtype=dtype),
        lambda: rival(images, plan, dtype),
        rival_name=rival_name,
        bar=bar,
        rounds=20,
        extra={"rows": plan.keep_ids.numel()},
    )


def test_gather_through_a_view(compare):
    """Augmented patches alone, against augmenting the canvas and gathering from it."""
    images, plan, view = canvases(8), hx.plan_masks(*chest_grids(8)), drawn_view(8)
    affines, tables, size = view.affine.double().numpy(), view.table.numpy(), images.shape[-2:]

    def whole() -> torch.Tensor:
        seen = torch.empty_like(images)
        for image, to, affine, table in zip(images, seen, affines, tables, strict=True):
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            cv2.LUT(cv2.warpAffine(image[0].numpy(), affine, size, flags=flags), table, dst=to[0].numpy())
        return hx.gather_patches(seen, plan, SCALE, SHIFT, out_dtype=torch.bfloat16)

    def ours() -> torch.Tensor:
        return hx.gather_patches(images, plan, SCALE, SHIFT, out_dtype=torch.bfloat16, view=view)

    assert (ours().float() - whole().float()).abs().max() <= 12 * SCALE  # of noise; OpenCV rounds places to 1/32 pixel
    compare(
        "gather through a view, 8 × 1280² uint8 → bf16, kept patches",
        ours,
        whole,
        rival_name="cv2.warpAffine + cv2.LUT + gather",
        bar=6,
        rounds=15,
        extra={"rows": plan.keep_ids.numel()},
    )
