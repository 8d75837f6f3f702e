"""The encoder on the GPU: all patches, and those inside the chest contour, against timm's ViT over all patches.

ViT-B/16, 16 images of 1280 x 1280 bytes; launch gaps count; both normalise the bytes themselves. Inference has weights
and activations in bf16. A fine-tuning step is forward and backward pass under bf16 autocast and AdamW, of a linear head
on 14 findings; ours looks at the patches that ``keep="contour"`` chooses, margin included, and chooses them in the
step.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness.attention_cases import contour_grids
from harness.gpu_bench import GpuBench, quick
from harness.mae_steps import SCALE, SHIFT, Setting, stepper
from harness.mae_steps import not_finite as loss_not_finite
from harness.plain_mae import import_timm
from harness.race import Contender
from harness.work import encoder_flops
from torch import Tensor

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig
from hdxray_fast.classify.loss import classification_loss
from hdxray_fast.models.inputs import patches_to_keep

pytestmark = pytest.mark.gpu
TIMM, TIMM_COMPILED = "timm's ViT", "timm's ViT, compiled"
CONTOUR, CONTOUR_COMPILED = "contour", "contour, compiled"
FINDINGS = 14


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


def labels(setting: Setting) -> Tensor:
    """``[B, FINDINGS] float32``, each present or not."""
    return torch.randint(0, 2, (setting.batch, FINDINGS), device=setting.device).float()


def timm_finetuning(setting: Setting, compiled: bool = False) -> Callable[[int], Tensor]:
    """``step(i)`` over all patches; gives the loss."""
    with torch.device(setting.device):
        model = import_timm().VisionTransformer(
            img_size=setting.img_size,
            patch_size=16,
            in_chans=1,
            num_classes=FINDINGS,
            global_pool="avg",
            **setting.preset,
        )
    model = model.to(setting.device)
    run = torch.compile(model) if compiled else model
    images, target = setting.images(), labels(setting)

    def loss(i: int) -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            logits = run(images[i % len(images)].float() * SCALE + SHIFT)
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    return stepper(model, loss)


def our_finetuning(setting: Setting, inside: Tensor, valid: Tensor, compiled: bool = False) -> Callable[[int], Tensor]:
    """``step(i)`` over the patches that ``keep="contour"`` chooses; gives the loss."""
    with torch.device(setting.device):
        encoder = hx.create_encoder(setting.name, img_size=setting.img_size, keep="contour", **dict(setting.overrides))
        model = Classifier(encoder, ClassifierConfig([f"finding {n}" for n in range(FINDINGS)]))
    model = model.to(setting.device)
    run = torch.compile(model) if compiled else model
    inside, valid = inside.to(setting.device), valid.to(setting.device)
    images, target = setting.images(), labels(setting)

    def loss(i: int) -> Tensor:
        pixels = images[i % len(images)]
        plan = patches_to_keep(encoder, pixels, inside, valid)  # before what is compiled, as fine-tuning does
        with torch.autocast(setting.device, torch.bfloat16):
            logits = run(pixels, plan, SCALE, SHIFT)
        return classification_loss(logits, target)

    return stepper(model, loss)


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


def test_finetuning_step(gpu: GpuBench):
    if import_timm() is None:
        pytest.skip("the rival is timm's, and timm is not installed")
    setting = Setting("vit_base_patch16", 16)
    grids = contour_grids(setting.batch)
    field = [
        Contender(CONTOUR, lambda: our_finetuning(setting, *grids)),
        Contender(TIMM, lambda: timm_finetuning(setting)),
    ]
    if not quick():
        field.append(Contender(CONTOUR_COMPILED, lambda: our_finetuning(setting, *grids, compiled=True)))
        field.append(Contender(TIMM_COMPILED, lambda: timm_finetuning(setting, compiled=True)))
    outcomes = gpu.race(field, hold=False, check=loss_not_finite, warmup=2)
    work = {"items": setting.batch, "extra": {"batch": setting.batch}}
    gpu.row("finetune contour", outcomes, CONTOUR, [TIMM], **work)
    if not quick():
        gpu.row("finetune contour, compiled", outcomes, CONTOUR_COMPILED, [TIMM_COMPILED], **work)
