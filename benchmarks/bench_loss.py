"""Reconstruction loss against eager PyTorch: patchify the targets, normalise, index, square, mean."""

from __future__ import annotations

import statistics
import time

import torch
from harness.pixel_cases import canvases, chest_grids, drawn_view

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


def test_loss_and_gather_through_a_view(compare):
    """What a training step of the default decoder asks of the pixels: a quarter of the masked patches is predicted."""
    images, plan, view = canvases(8), hx.plan_masks(*chest_grids(8), predict=0.25), drawn_view(8)
    pred = torch.randn(plan.predict_ids.numel(), plan.patch_size**2, requires_grad=True)

    def ours() -> None:
        hx.gather_patches(images, plan, SCALE, SHIFT, out_dtype=torch.bfloat16, view=view)
        torch.autograd.grad(hx.reconstruction_loss(images, pred, plan, SCALE, SHIFT, view=view)[0], pred)

    ours()
    seconds = []
    for _ in range(15):
        begin = time.process_time()
        ours()
        seconds.append((time.process_time() - begin) / images.shape[0])
    compare.values(
        "gather and loss through a view, forward + backward, CPU time an image of 1280² uint8",
        statistics.median(seconds),
        2.5e-3,
        rival_name="the promised 2.5 ms",
        unit="s",
        bar=1,
    )
