"""Training steps of the masked auto-encoders, ours and the plain one, as the GPU benchmarks time them.

A step is: mask, forward pass under bf16 autocast, backward pass, fused AdamW. Both keep 640 of 6400 patches. The plain
MAE normalises bytes to floats, patchifies and sorts noise; ours plans its masks on the device, with bounds, and
gathers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import hdxray_fast as hx
from harness.plain_mae import PlainMAE
from harness.work import cross_decoder_flops, encoder_flops, self_decoder_flops
from hdxray_fast.models.presets import ENCODERS
from hdxray_fast.ops.mask_ratio import RATIO_INSIDE, RATIO_OUTSIDE

SCALE, SHIFT = 1 / 127.5, -1.0


@dataclass(frozen=True)
class Setting:
    """Sizes of a step; smaller ones than the defaults are for tests.

    Attributes:
        name: encoder preset.
        img_size: pixels, a multiple of 64.
        overrides: encoder options in place of the preset's, and the decoder's depth and width.
    """

    name: str
    batch: int
    img_size: int = 1280
    device: str = "cuda"
    decoder_dim: int = 512
    decoder_depth: int = 8
    overrides: tuple[tuple[str, int], ...] = ()

    @property
    def preset(self) -> dict[str, int]:
        sizes = {key: ENCODERS[self.name][key] for key in ("embed_dim", "depth", "num_heads")}
        return {**sizes, **dict(self.overrides)}

    @property
    def grid(self) -> int:
        return self.img_size // 16

    def grids(self) -> tuple[Tensor, Tensor]:
        """Inside and valid grids, bool ``[B, grid, grid]``: a chest of half the canvas, no padding."""
        inside = torch.zeros(self.batch, self.grid, self.grid, dtype=torch.bool)
        top, left = self.grid * 3 // 16, self.grid // 10
        inside[:, top : self.grid - top, left : self.grid - left] = True
        return inside.to(self.device), torch.ones_like(inside, device=self.device)

    def counts(self, predict: float) -> tuple[int, int]:
        """Kept and predicted patches of each image."""
        inside, valid = (g[:1].cpu() for g in self.grids())
        plan = hx.plan_masks(inside, valid, RATIO_INSIDE, RATIO_OUTSIDE, predict=predict)
        return plan.max_keep, plan.max_predict

    def images(self, count: int = 2) -> list[Tensor]:
        size = (self.batch, 1, self.img_size, self.img_size)
        return [torch.randint(0, 256, size, dtype=torch.uint8, device=self.device) for _ in range(count)]

    def flops(self, decoder: str) -> float:
        """Of a training step over the whole batch."""
        keep, predict = self.counts(0.25 if decoder == "cross" else 1.0)
        dim, depth = self.preset["embed_dim"], self.preset["depth"]
        sizes = (dim, self.decoder_dim, self.decoder_depth, 256)
        if decoder == "cross":
            rest = cross_decoder_flops(keep + 1, predict, *sizes, maps=depth + 1)
        else:
            rest = self_decoder_flops(keep + 1, keep + predict + 1, *sizes)
        return 3.0 * self.batch * (encoder_flops(keep + 1, dim, depth, 256) + rest)


def our_step(setting: Setting, decoder: str, compiled: bool = False) -> Callable[[int], Tensor]:
    """``step(i)`` of our MAE; gives the loss."""
    with torch.device(setting.device):
        model = hx.create_mae(
            setting.name,
            decoder=decoder,
            img_size=setting.img_size,
            decoder_embed_dim=setting.decoder_dim,
            decoder_depth=setting.decoder_depth,
            **dict(setting.overrides),
        )
    model = model.to(setting.device)
    predict = model.default_predict
    keep, predicted = setting.counts(predict)
    bounds = {"max_keep": keep, "max_predict": predicted} if setting.device == "cuda" else {}
    images, grids = setting.images(), setting.grids()
    run = torch.compile(model) if compiled else model

    def loss(i: int) -> Tensor:
        plan = hx.plan_masks(*grids, RATIO_INSIDE, RATIO_OUTSIDE, predict=predict, epoch=i, **bounds)
        with torch.autocast(setting.device, torch.bfloat16):
            return run(images[i % len(images)], plan, SCALE, SHIFT).loss

    return stepper(model, loss)


def plain_step(
    setting: Setting,
    compiled: bool = False,
    blocks: str = "timm",
    batch_of: Callable[[int], Tensor] | None = None,
) -> Callable[[int], Tensor]:
    """``step(i)`` of the plain MAE; gives the loss.

    Args:
        batch_of: gives the images of step i, normalised floats ``[B, 1, S, S]`` on the device; by default they are
            random bytes that are there already, normalised in the step.
    """
    with torch.device(setting.device):
        model = PlainMAE(
            (setting.img_size, setting.img_size),
            decoder_embed_dim=setting.decoder_dim,
            decoder_depth=setting.decoder_depth,
            blocks=blocks,
            **setting.preset,
        )
    model = model.to(setting.device)
    keep, _ = setting.counts(1.0)
    images = setting.images() if batch_of is None else []
    run = torch.compile(model) if compiled else model

    def loss(i: int) -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            floats = images[i % len(images)].float() * SCALE + SHIFT if batch_of is None else batch_of(i)
            return run(floats, keep)[0]

    return stepper(model, loss)


def stepper(model: torch.nn.Module, loss: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """``step(i)``: ``loss(i)``, its backward pass, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(i: int) -> Tensor:
        value = loss(i)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def not_finite(loss: Tensor, _: str) -> float:
    """Error of a step's result: 0 if the loss is a number."""
    return 0.0 if bool(torch.isfinite(loss)) else float("nan")


def largest_batch(name: str, batches: tuple[int, ...]) -> int:
    """The largest of `batches` with which a step of the plain MAE, who needs most memory, fits on the GPU."""
    for batch in batches[:-1]:
        try:
            plain_step(Setting(name, batch))(0)
            torch.cuda.synchronize()
            return batch
        except torch.OutOfMemoryError:
            pass
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    return batches[-1]
