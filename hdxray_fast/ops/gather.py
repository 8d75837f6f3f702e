"""The pixels of the chosen patches, normalised, as rows ready for the patch-embedding product; no other is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from . import flops, native
from .operands import check_float_dtype, check_pixels, check_scaling, check_scatter
from .plan import MaskPlan, dtype_names, rows_with_patch
from .view import View, check_view, view_images_ref, view_patches


def gather_patches(
    images: Tensor,  # [B, C, H, W] u8 | u16 | f16 | bf16 | f32
    plan: MaskPlan,
    scale: float | Tensor = 1.0,  # [] or [B] f32
    shift: float | Tensor = 0.0,  # [] or [B] f32
    out_dtype: torch.dtype = torch.float32,
    which: str = "keep",
    backend: str = "auto",
    view: View | None = None,
) -> Tensor:
    """Rows of the kept (or predicted) patches: ``pixel * scale + shift``, in fp32, then rounded once to `out_dtype`.

    The order of a row's elements is that of MAE's ``patchify``: (row in the patch, column in the patch, channel).
    Multiplication and addition are two roundings, as in PyTorch, so fp32 rows equal the reference bit for bit.

    Args:
        images: ``[B, C, H, W]``, C = 1 or 3, with H, W and B as `plan` was made for; uint8, uint16, float16, bfloat16
            or float32; any strides whose last is 1.
        plan: which patches.
        scale: a number, or one per image (float32 ``[B]``).
        shift: likewise.
        out_dtype: float32, float16 or bfloat16.
        which: ``"keep"`` or ``"predict"``.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.
        view: read the images through these maps and tables, as `view_patches` does; the plan is then one of the view.

    Returns:
        ``[N, C*p*p]`` of `out_dtype`, zero in a plan's slack. Differentiable with respect to float images, unless they
        are seen through a view.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described, or plan and images do not fit; nothing was
        read.
        BackendError: ``backend="native"`` where it cannot run.
    """
    images, ids, cu_seqlens = check_call(images, plan, which)
    if out_dtype not in native.FLOAT_DTYPES:
        raise ArgumentError(f"out_dtype: got {out_dtype}, accepted are {dtype_names(native.FLOAT_DTYPES)}")
    scale, shift = native.per_image("scale", scale, images), native.per_image("shift", shift, images)
    grid = None
    if view is not None and images.requires_grad:
        raise ArgumentError("images: requires_grad is set, but no gradient flows through a view; pass images.detach()")
    if native.resolve_for(backend, images) == "reference":
        check_values_eagerly(plan, which)
        if view is not None:
            images = view_images_ref(images, check_view(view, images, values=True))
        return gather_patches_ref(images, plan, scale, shift, out_dtype, which)
    if view is not None:
        one = images[:, :1] if images.stride(1) == 0 else images  # channels that are views of one are seen once
        seen = view_patches(one, plan, view, which, backend)
        images, grid = seen.expand(-1, images.shape[1], -1, -1), list(plan.grid_size)
    scaling = native.scaling_of(scale, shift)
    return _gather_op(images, ids, cu_seqlens, *scaling, plan.patch_size, out_dtype, which, grid)


def gather_patches_ref(
    images: Tensor,
    plan: MaskPlan,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    out_dtype: torch.dtype = torch.float32,
    which: str = "keep",
) -> Tensor:
    """`gather_patches` in plain PyTorch: normalise everything, patchify everything, index. Checks nothing."""
    (gh, gw), p, (batch, channels) = plan.grid_size, plan.patch_size, images.shape[:2]
    scale, shift = (s.view(-1, 1, 1, 1) if isinstance(s, Tensor) else s for s in (scale, shift))
    work = torch.float64 if out_dtype == torch.float64 else torch.float32
    pixels = images.to(work) * scale + shift  # [B, C, H, W]
    # [B, C, gh, p, gw, p] -> [B, gh, gw, p, p, C]
    rows = (
        pixels.reshape(batch, channels, gh, p, gw, p)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(batch * gh * gw, p * p * channels)
    )
    ids = plan.keep_ids if which == "keep" else plan.predict_ids
    real, image = rows_with_patch(plan, which)
    chosen = rows[torch.where(real, image * (gh * gw) + ids, 0)]
    return torch.where(real[:, None], chosen, 0).to(out_dtype)


def check_call(images: Any, plan: Any, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images, ids and cu_seqlens of a pixel op's call, if they fit together; all but the values of the ids."""
    if not isinstance(plan, MaskPlan):
        raise ArgumentTypeError(f"plan: got {type(plan).__name__}, accepted is a MaskPlan (see plan_masks)")
    images = native.check_images(images, plan)
    return images, *native.check_packed(plan, which, images.device)


def check_values_eagerly(plan: MaskPlan, which: str) -> None:
    """The values of the ids, for the reference path; the native ops look at them by themselves, compiled or not."""
    if not torch.compiler.is_compiling():
        ids, cu_seqlens = native.check_packed(plan, which, plan.device)
        native.check_packed_values(ids, cu_seqlens, plan.grid_size[0] * plan.grid_size[1], which)


# --- registration -----------------------------------------------------------------------------------------------------
# scale and shift are [B] f32 or None; where None, the number counts (and a compiled graph holds for this one alone).
# With a grid, images are the pixels of the patches alone, [N, C, p, p].
@torch.library.custom_op("hdxray_fast::gather_patches", mutates_args=(), device_types=("cpu", "cuda"))
def _gather_op(
    images: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    scale_value: float,
    shift_value: float,
    patch_size: int,
    out_dtype: torch.dtype,
    which: str,
    grid: Sequence[int] | None = None,
) -> Tensor:
    ids, cu_seqlens = check_pixels(images, ids, cu_seqlens, patch_size, which, grid)
    check_float_dtype("out_dtype", out_dtype)
    scaling = (*check_scaling(scale, shift, cu_seqlens), scale_value, shift_value)
    return native.gather(images, ids, cu_seqlens, scaling, patch_size, out_dtype, which, grid)


@_gather_op.register_fake
def _(images, ids, cu_seqlens, scale, shift, scale_value, shift_value, patch_size, out_dtype, which, grid=None):
    check_pixels(images, ids, cu_seqlens, patch_size, which, grid)
    check_float_dtype("out_dtype", out_dtype)
    check_scaling(scale, shift, cu_seqlens)
    return images.new_empty(ids.shape[0], images.shape[1] * patch_size**2, dtype=out_dtype)


@torch.library.custom_op("hdxray_fast::gather_patches_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _scatter_op(
    grad_rows: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    scale: Tensor | None,
    scale_value: float,
    shape: list[int],
    patch_size: int,
    image_dtype: torch.dtype,
) -> Tensor:
    ids, cu_seqlens, scale = check_scatter(grad_rows, ids, cu_seqlens, scale, shape, patch_size, image_dtype)
    scaling = (scale, None, scale_value, 0.0)
    return native.scatter(grad_rows.contiguous(), ids, cu_seqlens, scaling, shape, patch_size, image_dtype)


@_scatter_op.register_fake
def _(grad_rows, ids, cu_seqlens, scale, scale_value, shape, patch_size, image_dtype):
    check_scatter(grad_rows, ids, cu_seqlens, scale, shape, patch_size, image_dtype)
    return grad_rows.new_empty(shape, dtype=image_dtype)


# --- gradients --------------------------------------------------------------------------------------------------------
# Gathering is linear in the images, and its backward the transpose: the backward of that gathers again, without shift.
def _save_for_scatter(ctx, inputs, output) -> None:
    images, ids, cu_seqlens, scale, _, ctx.scale_value, _, ctx.patch_size, *_ = inputs
    ctx.save_for_backward(ids, cu_seqlens, scale)
    ctx.shape, ctx.image_dtype = list(images.shape), images.dtype


def _scatter_rows(ctx, grad_rows):
    grad_images = None
    if ctx.needs_input_grad[0]:
        grad_images = _scatter_op(
            grad_rows, *ctx.saved_tensors, ctx.scale_value, ctx.shape, ctx.patch_size, ctx.image_dtype
        )
    return grad_images, *[None] * 10


def _save_for_gather(ctx, inputs, output) -> None:
    grad_rows, ids, cu_seqlens, scale, ctx.scale_value, _, ctx.patch_size, _ = inputs
    ctx.save_for_backward(ids, cu_seqlens, scale)
    ctx.rows_dtype = grad_rows.dtype


def _gather_images(ctx, grad_images):
    grad_rows = None
    if ctx.needs_input_grad[0]:
        ids, cu_seqlens, scale = ctx.saved_tensors
        grad_rows = _gather_op(
            grad_images, ids, cu_seqlens, scale, None, ctx.scale_value, 0.0, ctx.patch_size, ctx.rows_dtype, "keep"
        )
    return grad_rows, *[None] * 7


_gather_op.register_autograd(_scatter_rows, setup_context=_save_for_scatter)
_scatter_op.register_autograd(_gather_images, setup_context=_save_for_gather)
flops.count_nothing(torch.ops.hdxray_fast.gather_patches, torch.ops.hdxray_fast.gather_patches_backward)
