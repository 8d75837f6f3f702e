"""Reconstruction loss against eager PyTorch: patchify the targets, normalise, index, square, mean."""

from __future__ import annotations

import torch
from harness.pixel_cases import canvases, chest_grids

import hdxray_fast as hx
from hdxray_fast.ops.loss import reconstruction_loss_ref

SCALE, SHIFT = 1 / 127.5, -1.0
RIVAL = "eager patchify + normalise + index + MSE"


def inputs() -> tuple[torch.Tensor, torch.Tensor, hx.MaskPlan]:
    inside, valid = chest_grids(8)
    plan = hx.plan_masks(inside, torch.ones_like(valid))  # no padding: some 5760 predicted patches an image
    pred = torch.randn(plan.predict_ids.numel(), plan.patch_size**2, requires_grad=True)
    return canvases(8), pred, plan


def with_gradient(loss, images, pred, plan) -> torch.Tensor:
    return torch.autograd.grad(loss(images, pred, plan, SCALE, SHIFT)[0], pred)[0]


def test_loss_forward(compare):
    images, pred, plan = inputs()
    with torch.no_grad():
        torch.testing.assert_close(
            hx.reconstruction_loss(images, pred, plan, SCALE, SHIFT),
            reconstruction_loss_ref(images, pred, plan, SCALE, SHIFT),
        )
        compare(
            "loss, 8 × 1280² uint8, forward",
            lambda: hx.reconstruction_loss(images, pred, plan, SCALE, SHIFT),
            lambda: reconstruction_loss_ref(images, pred, plan, SCALE, SHIFT),
            rival_name=RIVAL,
            bar=5,
            rounds=7,
            extra={"rows": plan.predict_ids.numel()},
        )


def test_loss_forward_backward(compare):
    images, pred, plan = inputs()
    torch.testing.assert_close(
        with_gradient(hx.reconstruction_loss, images, pred, plan),
        with_gradient(reconstruction_loss_ref, images, pred, plan),
    )
    compare(
        "loss, 8 × 1280² uint8, forward + backward",
        lambda: with_gradient(hx.reconstruction_loss, images, pred, plan),
        lambda: with_gradient(reconstruction_loss_ref, images, pred, plan),
        rival_name=RIVAL,
        bar=5,
        rounds=7,
        extra={"rows": plan.predict_ids.numel()},
    )
