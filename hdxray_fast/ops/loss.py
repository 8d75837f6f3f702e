"""MAE's reconstruction loss on the predicted patches only, straight from the images: targets are never stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from . import flops, native
from .gather import check_call, check_values_eagerly, gather_patches_ref
from .operands import check_pixels, check_rows, check_scaled_rows, check_scaling, check_upstream
from .plan import MaskPlan, check_tensor, rows_with_patch
from .view import View, check_view, view_images_ref, view_patches

VARIANCE_EPSILON = 1e-6  # csrc/cpu/loss_kernel.h holds the same


def reconstruction_loss(
    images: Tensor,  # [B, C, H, W] u8 | u16 | f16 | bf16 | f32
    pred: Tensor,  # [N_predict, C*p*p] f32 | f16 | bf16
    plan: MaskPlan,
    scale: float | Tensor = 1.0,  # [] or [B] f32
    shift: float | Tensor = 0.0,  # [] or [B] f32
    norm_pix_loss: bool = True,
    backend: str = "auto",
    view: View | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared error between predictions and the (normalised) pixels of the predicted patches.

    The target is ``t = pixel * scale + shift``; with `norm_pix_loss` it is ``(t - mean) / sqrt(var + 1e-6)``, mean and
    unbiased variance over the patch (He et al., "Masked autoencoders are scalable vision learners", 2022, section 4).
    All arithmetic is fp32 with a fixed order of summation: the result does not depend on the number of threads.

    Where `pred` needs a gradient it is made in the same pass, and held, in the size and dtype of `pred`, until the
    backward pass (float16 and compiled graphs: made in the backward pass). There is no second derivative.

    Args:
        images: as in `gather_patches`. No gradient flows to them.
        pred: ``[N_predict, C*p*p]``, float32, float16 or bfloat16; elements in the order (row, column, channel).
        plan: its predicted patches are the rows of `pred`.
        scale: a number, or one per image (float32 ``[B]``).
        shift: likewise.
        norm_pix_loss: normalise each target patch by its own mean and variance.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.
        view: as in `gather_patches`.

    Returns:
        ``loss``, a float32 scalar: the mean over all predicted patches of the batch, 0 if there are none;
        differentiable with respect to `pred`. ``patch_loss`` ``[N_predict]`` float32: each patch's mean squared error,
        without gradient. Rows in a plan's slack count for nothing: their loss and gradient are zero.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described, or they do not fit together; nothing was
        read.
        BackendError: ``backend="native"`` where it cannot run.
    """
    images, ids, cu_seqlens = check_call(images, plan, "predict")
    pred = check_tensor("pred", pred, native.FLOAT_DTYPES, images.device)
    row_size = images.shape[1] * plan.patch_size**2
    if pred.shape != (ids.shape[0], row_size):
        raise ArgumentError(
            f"pred: got shape {tuple(pred.shape)}, but plan predicts {ids.shape[0]} patches; "
            f"accepted is [N_predict, C*p*p] = [{ids.shape[0]}, {row_size}]"
        )
    if not isinstance(norm_pix_loss, bool):
        raise ArgumentTypeError(f"norm_pix_loss: got {type(norm_pix_loss).__name__}, accepted is a bool")
    if norm_pix_loss and row_size < 2:
        raise ArgumentError("norm_pix_loss: a patch of one pixel has no variance; use norm_pix_loss=False")
    scale, shift = native.per_image("scale", scale, images), native.per_image("shift", shift, images)
    if native.resolve_for(backend, images, pred) == "reference":
        check_values_eagerly(plan, "predict")
        if view is not None:
            images = view_images_ref(images.detach(), check_view(view, images, values=True))
        return reconstruction_loss_ref(images, pred, plan, scale, shift, norm_pix_loss)
    scaling = native.scaling_of(scale, shift)
    images, grid = images.detach(), None
    if view is not None:
        images, grid = view_patches(images, plan, view, "predict", backend), list(plan.grid_size)
    # Not in half precision: gradients of 1e-7, which a loss scaler enlarges, would be lost before that is known. Not
    # in a compiled graph: it copies what it writes to in place, and that is no less than reading pixels again.
    once = pred.dtype != torch.float16 and not torch.compiler.is_compiling()
    with_grad = once and pred.requires_grad and torch.is_grad_enabled()
    loss, patch_loss, _ = _loss_op(
        images, pred.contiguous(), ids, cu_seqlens, *scaling, plan.patch_size, norm_pix_loss, with_grad, grid
    )
    return loss, patch_loss.detach()


def reconstruction_loss_ref(
    images: Tensor,
    pred: Tensor,
    plan: MaskPlan,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    norm_pix_loss: bool = True,
) -> tuple[Tensor, Tensor]:
    """`reconstruction_loss` in plain PyTorch, in fp32 (in fp64 for fp64 predictions). Arguments are not checked."""
    work = torch.float64 if pred.dtype == torch.float64 else torch.float32
    target = gather_patches_ref(images.detach(), plan, scale, shift, work, "predict")  # [N_predict, C*p*p]
    if norm_pix_loss and target.shape[0]:  # the variance of no patches is not worth a warning
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + VARIANCE_EPSILON).sqrt()
    # Slack may follow the real rows: its targets are zero, and so its predictions count as zero, whatever they are.
    real, _ = rows_with_patch(plan, "predict")
    patch_loss = (torch.where(real[:, None], pred.to(work), 0) - target).square().mean(-1)  # [N_predict]
    count = plan.predict_cu_seqlens[-1].clamp(min=1)
    return patch_loss.sum() / count, patch_loss.detach()


# --- registration -----------------------------------------------------------------------------------------------------
# scale and shift are [B] f32 or None; where None, the number counts (and a compiled graph holds for this one alone).
# With a grid, images are the pixels of the patches alone, [N, C, p, p].
#
# The gradient of pred is known as soon as the loss is, so one pass makes both (with_grad), the gradient for an upstream
# gradient of 1. The backward pass hands it out, multiplied in place by what upstream really says: nothing is read or
# written where that is 1, and the number stays on its device.
@torch.library.custom_op("hdxray_fast::reconstruction_loss", mutates_args=(), device_types=("cpu", "cuda"))
def _loss_op(
    images: Tensor,
    pred: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    scale_value: float,
    shift_value: float,
    patch_size: int,
    norm_pix_loss: bool,
    with_grad: bool,
    grid: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    ids, cu_seqlens = check_pixels(images, ids, cu_seqlens, patch_size, "predict", grid)
    check_rows("pred", pred, ids, images.shape[1], patch_size)
    scaling = (*check_scaling(scale, shift, cu_seqlens), scale_value, shift_value)
    return native.loss(images, pred, ids, cu_seqlens, scaling, patch_size, norm_pix_loss, with_grad, grid)


@_loss_op.register_fake
def _(images, pred, ids, cu_seqlens, scale, shift, scale_value, shift_value, patch_size, norm, with_grad, grid=None):
    check_pixels(images, ids, cu_seqlens, patch_size, "predict", grid)
    check_rows("pred", pred, ids, images.shape[1], patch_size)
    check_scaling(scale, shift, cu_seqlens)
    loss, patch_loss = (pred.new_empty(shape, dtype=torch.float32) for shape in ((), (ids.shape[0],)))
    # contiguous, whatever the strides of pred are
    return loss, patch_loss, pred.new_empty(pred.shape if with_grad else (0, pred.shape[1]))


@torch.library.custom_op("hdxray_fast::reconstruction_loss_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _loss_backward_op(
    images: Tensor,
    pred: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    grad_loss: Tensor,
    scale_value: float,
    shift_value: float,
    patch_size: int,
    norm_pix_loss: bool,
    grid: Sequence[int] | None = None,
) -> Tensor:
    ids, cu_seqlens = check_pixels(images, ids, cu_seqlens, patch_size, "predict", grid)
    check_rows("pred", pred, ids, images.shape[1], patch_size)
    check_upstream(grad_loss, images.device)
    scaling = (*check_scaling(scale, shift, cu_seqlens), scale_value, shift_value)
    return native.loss_gradient(images, pred, ids, cu_seqlens, scaling, grad_loss, patch_size, norm_pix_loss, grid)


@_loss_backward_op.register_fake
def _(images, pred, ids, cu_seqlens, scale, shift, grad_loss, scale_value, shift_value, patch_size, norm, grid=None):
    check_pixels(images, ids, cu_seqlens, patch_size, "predict", grid)
    check_rows("pred", pred, ids, images.shape[1], patch_size)
    check_upstream(grad_loss, images.device)
    check_scaling(scale, shift, cu_seqlens)
    return pred.new_empty(pred.shape)


@torch.library.custom_op("hdxray_fast::scale_loss_gradient", mutates_args=("grad_pred",), device_types=("cpu", "cuda"))
def _scale_op(grad_pred: Tensor, cu_seqlens: Tensor, grad_loss: Tensor) -> None:
    native.scale_loss_gradient(grad_pred, check_scaled_rows(grad_pred, cu_seqlens, grad_loss), grad_loss)


@_scale_op.register_fake
def _(grad_pred, cu_seqlens, grad_loss):
    check_scaled_rows(grad_pred, cu_seqlens, grad_loss)


def _save_for_backward(ctx, inputs, output) -> None:
    images, pred, ids, cu_seqlens, scale, shift, *values, with_grad, grid = inputs
    ctx.values = *values, grid  # scale, shift, patch size, norm_pix_loss; grid
    ctx.save_for_backward(images, pred, ids, cu_seqlens, scale, shift)
    ctx.unit_grad = output[2].detach() if with_grad else None  # detached: ctx must not own what owns it
    ctx.set_materialize_grads(False)  # else zeros are made for the third output


def _backward(ctx, grad_loss, *_):
    grad_pred = None
    if ctx.needs_input_grad[1] and grad_loss is not None:
        # It is handed out once, and whoever gets it may write to it. A second backward pass works it out anew; so does
        # one that is to be differentiated itself, which the operator then refuses by name, a compiler's stand-in, and
        # a batch of gradients in one (is_grads_batched).
        if type(grad_loss) is Tensor and not torch.is_grad_enabled() and not native.is_wrapped(grad_loss):
            grad_pred, ctx.unit_grad = ctx.unit_grad, None
        if grad_pred is None:
            grad_pred = _loss_backward_op(*ctx.saved_tensors, grad_loss, *ctx.values)
        else:
            _scale_op(grad_pred, ctx.saved_tensors[3], grad_loss)
    return None, grad_pred, *[None] * 10


_loss_op.register_autograd(_backward, setup_context=_save_for_backward)
flops.count_nothing(
    torch.ops.hdxray_fast.reconstruction_loss,
    torch.ops.hdxray_fast.reconstruction_loss_backward,
    torch.ops.hdxray_fast.scale_loss_gradient,
)
