"""Encoder inference on the GPU: all patches, and those inside the chest contour, against timm's ViT over all patches.

ViT-B/16, weights and activations in bf16, 16 images of 1280 x 1280 bytes; launch gaps count. Both normalise the bytes
themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness.attention_cases import contour_grids
from harness.gpu_bench import GpuBench, quick
from harness.mae_steps import SCALE, SHIFT, Setting
from harness.plain_mae import import_timm
from harness.race import Contender
from harness.work import encoder_flops
from torch import Tensor

import hdxray_fast as hx

pytestmark = pytest.mark.gpu
TIMM, TIMM_COMPILED = "timm's ViT", "timm's ViT, compiled"


def timm_encoder(setting: Setting, compiled: bool = False) -> Callable[[int], Tensor]:
    """``call(i)``: tokens ``[B, 6401, D]``."""
    with torch.device(setting.device):
        model = import_timm().VisionTransformer(
            img_size=setting.img_size, patch_size=16, in_chans=1, num_classes=0, **setting.preset
        )
    model = model.to(setting.device, torch.bfloat16).eval()
    features = torch.compile(model.forward_features) if compiled else model.forward_features
    images = setting.images()

    @torch.inference_mode()
    def call(i: int) -> Tensor:
        return features(images[i % len(images)].bfloat16() * SCALE + SHIFT)

    return call


def our_encoder(setting: Setting, plan: hx.MaskPlan) -> Callable[[int], Tensor]:
    """``call(i)``: packed tokens ``[N_keep + B, D]``."""
    with torch.device(setting.device):
        model = hx.create_encoder(setting.name, img_size=setting.img_size, **dict(setting.overrides))
    model = model.to(setting.device, torch.bfloat16).eval()
    images = setting.images()
    plan = plan.to(setting.device)

    @torch.inference_mode()
    def call(i: int) -> Tensor:
        return model(images[i % len(images)], plan, SCALE, SHIFT).values

    return call


def not_finite(tokens: Tensor, _: str) -> float:
    return 0.0 if bool(torch.isfinite(tokens).all()) else float("nan")


def test_encoder(gpu: GpuBench):
    if import_timm() is None:
        pytest.skip("the rival is timm's, and timm is not installed")
    setting = Setting("vit_base_patch16", 16)
    inside, valid = contour_grids(setting.batch)
    plans = {"all": hx.plan_all(torch.ones_like(valid)), "contour": hx.plan_all(inside & valid)}
    field = [Contender(key, lambda plan=plan: our_encoder(setting, plan)) for key, plan in plans.items()]
    field.append(Contender(TIMM, lambda: timm_encoder(setting)))
    if not quick():
        field.append(Contender(TIMM_COMPILED, lambda: timm_encoder(setting, compiled=True)))
    outcomes = gpu.race(field, hold=False, check=not_finite, warmup=2)
    sizes = (setting.preset["embed_dim"], setting.preset["depth"], 256)
    for key, plan in plans.items():
        lengths = [n + 1 for n in plan.keep_counts.tolist()]
        gpu.row(
            f"encoder {key}",
            outcomes,
            key,
            [TIMM],
            flops=sum(encoder_flops(n, *sizes) for n in lengths),
            items=setting.batch,
            extra={"batch": setting.batch, "tokens": sum(lengths)},
        )
