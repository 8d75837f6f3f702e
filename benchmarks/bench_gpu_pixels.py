"""Gather, loss, mixtures of maps and mask plan on the GPU against PyTorch, eager and compiled; 64 images of 1280^2.

Rivals are given what they can know beforehand: the row of each patch among all patches of the batch is computed once,
outside the measured time. Times are of kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bench_mask_plan import argsort_plan
from harness.attention_cases import contour_grids
from harness.cases import CASES, COPY
from harness.gpu import limits
from harness.gpu_bench import GpuBench, quick
from harness.race import Contender
from harness.work import gather_bytes, loss_bytes
from torch import Tensor

import hdxray_fast as hx
from hdxray_fast.ops.loss import VARIANCE_EPSILON
from hdxray_fast.ops.mixture import mix_maps, mix_maps_ref

pytestmark = pytest.mark.gpu

BATCH, SIZE, PATCH = 64, 1280, 16
SCALE, SHIFT = 1 / 127.5, -1.0
EAGER, EAGER_INDEX = "eager patchify + normalise + index", "eager index first, then normalise"
COMPILED, COMPILED_INDEX = "compiled patchify + normalise + index", "compiled index first, then normalise"
STACKED, COMPILED_STACKED = "product with the stacked maps", "the same, compiled"
OURS = "ours"


def image_sets(count: int, batch: int = BATCH, device: str = "cuda") -> list[Tensor]:
    size = (batch, 1, SIZE, SIZE)
    return [torch.randint(0, 256, size, dtype=torch.uint8, device=device) for _ in range(count)]


def batch_rows(ids: Tensor, cu_seqlens: Tensor, patches: int) -> Tensor:
    """Place of each patch among all patches of the batch, int64 ``[N]``."""
    images = torch.arange(len(cu_seqlens) - 1, device=ids.device)
    return torch.repeat_interleave(images, cu_seqlens.diff(), output_size=len(ids)) * patches + ids


# --- rivals -----------------------------------------------------------------------------------------------------------
def patch_rows(images: Tensor, rows: Tensor) -> Tensor:
    """Normalise, patchify, index: fp32 ``[N, p * p]``."""
    batch, grid = images.shape[0], SIZE // PATCH
    x = images.float() * SCALE + SHIFT
    x = x.reshape(batch, grid, PATCH, grid, PATCH).permute(0, 1, 3, 2, 4).reshape(-1, PATCH * PATCH)
    return x[rows]


def patch_rows_index_first(images: Tensor, rows: Tensor) -> Tensor:
    """Pick the patches out of a strided view while they are bytes, then normalise: fp32 ``[N, p * p]``."""
    grid = SIZE // PATCH
    patches = images.view(-1, grid, PATCH, grid, PATCH)  # [B, gh, p, gw, p]
    chosen = patches[rows // grid**2, rows // grid % grid, :, rows % grid]  # [N, p, p]
    return chosen.flatten(1).float() * SCALE + SHIFT


def gathered(images: Tensor, rows: Tensor, pick: Callable[[Tensor, Tensor], Tensor] = patch_rows) -> Tensor:
    return pick(images, rows).bfloat16()


def mse_loss(
    images: Tensor, pred: Tensor, rows: Tensor, pick: Callable[[Tensor, Tensor], Tensor] = patch_rows
) -> Tensor:
    target = pick(images, rows)
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) / (var + VARIANCE_EPSILON).sqrt()
    return (pred.float() - target).square().mean(-1).mean()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def relative_error(out: Tensor, ref: Tensor) -> float:
    return ((out.double() - ref.double()).norm() / ref.double().norm()).item()


def worst_error(reference: tuple[Tensor, ...], results: tuple[Tensor, ...], _: str) -> float:
    """The largest relative error of several results."""
    return max(relative_error(out, ref) for out, ref in zip(results, reference, strict=True))


# --- gather -----------------------------------------------------------------------------------------------------------
def test_gather(gpu: GpuBench):
    inside, valid = contour_grids(BATCH)
    plan = hx.plan_masks(inside, torch.ones_like(valid))  # no padding: 90 % of all patches are masked
    nbytes = gather_bytes(plan.keep_ids, plan.keep_cu_seqlens, plan.grid_size, PATCH, 1, 2)
    plan = plan.to("cuda")
    rows = batch_rows(plan.keep_ids, plan.keep_cu_seqlens, plan.grid_size[0] * plan.grid_size[1])
    sets = image_sets(gpu.sets(nbytes))

    def ours() -> Callable[[int], Tensor]:
        return lambda i: hx.gather_patches(sets[i % len(sets)], plan, SCALE, SHIFT, out_dtype=torch.bfloat16)

    def rival(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], Tensor]:
        return lambda i: function(sets[i % len(sets)], rows)

    index_first = partial(gathered, pick=patch_rows_index_first)
    field = [
        Contender(OURS, ours),
        Contender(EAGER, partial(rival, gathered)),
        Contender(EAGER_INDEX, partial(rival, index_first)),
        Contender(COMPILED, lambda: rival(compiled(gathered))),
        Contender(COMPILED_INDEX, lambda: rival(compiled(index_first))),
    ]
    reference = patch_rows(sets[0], rows)
    outcomes = gpu.race(field, check=lambda out, _: relative_error(out, reference), sets=len(sets))

    extra = {"rows": len(rows), "bytes": nbytes}
    gpu.row("gather eager", outcomes, OURS, [EAGER], nbytes=nbytes, extra=extra)
    gpu.row("gather compiled", outcomes, OURS, [EAGER_INDEX, COMPILED, COMPILED_INDEX], nbytes=nbytes, extra=extra)
    mine = outcomes[OURS]
    gpu.values(
        "gather copy",
        mine.median if mine.samples else None,
        nbytes / (limits()["copy_gb_s"] * 1e9),
        COPY,
        "s",
        extra={**extra, "limits": limits()},
        failed=mine.failed,
    )


# --- loss -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_loss(gpu: GpuBench, training: bool):
    inside, valid = contour_grids(BATCH)
    plan = hx.plan_masks(inside, valid, predict=0.25)
    nbytes = loss_bytes(plan.predict_ids, plan.predict_cu_seqlens, plan.grid_size, PATCH, 1, 2, training)
    plan = plan.to("cuda")
    rows = batch_rows(plan.predict_ids, plan.predict_cu_seqlens, plan.grid_size[0] * plan.grid_size[1])
    count = gpu.sets(nbytes)
    sets = [
        (images, torch.randn(len(rows), PATCH**2, device="cuda").bfloat16().requires_grad_(training))
        for images in image_sets(count)
    ]

    def caller(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], tuple[Tensor, ...]]:
        def call(i: int) -> tuple[Tensor, ...]:
            images, pred = sets[i % count]
            with torch.set_grad_enabled(training):
                value = loss(images, pred)
            return (value.detach(), *(torch.autograd.grad(value, pred) if training else ()))

        return call

    def ours(images: Tensor, pred: Tensor) -> Tensor:
        return hx.reconstruction_loss(images, pred, plan, SCALE, SHIFT)[0]

    def eager(images: Tensor, pred: Tensor) -> Tensor:
        return mse_loss(images, pred, rows)

    def index_first(images: Tensor, pred: Tensor) -> Tensor:
        return mse_loss(images, pred, rows, patch_rows_index_first)

    field = [
        Contender(OURS, lambda: caller(ours)),
        Contender(EAGER, lambda: caller(eager)),
        Contender(EAGER_INDEX, lambda: caller(index_first)),
        Contender(COMPILED_INDEX, lambda: caller(compiled(index_first))),
    ]
    if not quick():
        field.append(Contender(COMPILED, lambda: caller(compiled(eager))))
    reference = caller(eager)(0)

    outcomes = gpu.race(field, check=partial(worst_error, reference), sets=count)
    gpu.row(
        f"loss {'training' if training else 'forward'}",
        outcomes,
        OURS,
        [c.name for c in field if c.name != OURS],
        nbytes=nbytes,
        extra={"rows": len(rows), "bytes": nbytes},
    )


# --- mixture of maps --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_mixture(gpu: GpuBench, training: bool):
    """The cross decoder's 8 mixtures of a ViT-B's 13 maps, fp32 maps under bf16 autocast, as a step has them."""
    depth, count, rows, width = 8, 13, 32 * 672, 768
    size = rows * width
    nbytes = size * (4 * count + 2 * depth) * (2 if training else 1) + (4 * count * size if training else 0)
    maps = [torch.randn(rows, width, device="cuda").requires_grad_(training) for _ in range(count)]
    weights = torch.randn(depth, count, device="cuda").mul_(count**-0.5).requires_grad_(training)
    grads = torch.randn(depth, rows, width, device="cuda").bfloat16()

    def caller(mix: Callable[[list[Tensor], Tensor], Tensor]) -> Callable[[int], tuple[Tensor, ...]]:
        def call(_: int) -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(training), torch.autocast("cuda", torch.bfloat16):
                mixed = mix(maps, weights)
            more = torch.autograd.grad(mixed, [*maps, weights], grads) if training else ()
            return (mixed.detach(), *more)

        return call

    field = [Contender(OURS, lambda: caller(mix_maps)), Contender(STACKED, lambda: caller(mix_maps_ref))]
    if not quick():
        field.append(Contender(COMPILED_STACKED, lambda: caller(compiled(mix_maps_ref))))
    reference = caller(mix_maps_ref)(0)

    outcomes = gpu.race(field, check=partial(worst_error, reference))
    gpu.row(
        f"mixture {'training' if training else 'forward'}",
        outcomes,
        OURS,
        [c.name for c in field if c.name != OURS],
        nbytes=nbytes,
        extra={"rows": rows, "bytes": nbytes},
    )


# --- mask plan --------------------------------------------------------------------------------------------------------
RIVAL_PLAN, ON_HOST = "argsort masking", "planned on the CPU, then copied"


@pytest.mark.parametrize("key", ["mask plan", "mask plan synced"])
def test_mask_plan(gpu: GpuBench, key: str):
    inside, valid = contour_grids(BATCH)
    exact = hx.plan_masks(inside, valid)
    bounds = {} if key.endswith("synced") else {"max_keep": exact.max_keep, "max_predict": exact.max_predict}
    on_device = inside.cuda(), valid.cuda()
    index = torch.arange(BATCH, device="cuda")

    def same_plan(plan: Any, name: str) -> float:
        """0 if the plan is the CPU's, id for id; of other plans only the counts are looked at."""
        if name != OURS:
            return 0.0 if torch.equal(plan[1].cpu(), exact.keep_cu_seqlens) else 1.0
        plan = plan.to("cpu")
        pairs = [(getattr(plan, n), getattr(exact, n)) for n in ("keep_ids", "keep_cu_seqlens", "predict_ids")]
        return 0.0 if all(torch.equal(a, b) for a, b in pairs) else 1.0

    def from_host() -> Callable[[int], list[Tensor]]:
        def call(_: int) -> list[Tensor]:
            plan = hx.plan_masks(inside, valid).to("cuda")
            return [plan.keep_ids, plan.keep_cu_seqlens]

        return call

    field = [
        Contender(OURS, lambda: lambda _: hx.plan_masks(*on_device, index=index, **bounds)),
        Contender(RIVAL_PLAN, lambda: lambda _: argsort_plan(*on_device)),
        Contender(ON_HOST, from_host, checked=True),
    ]
    outcomes = gpu.race(field, check=same_plan, tolerance=0.0)
    gpu.row(key, outcomes, OURS, [RIVAL_PLAN], extra={"images": BATCH, "case": CASES[key].title})
