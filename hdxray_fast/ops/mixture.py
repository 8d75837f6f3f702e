"""Mixtures of feature maps: several weighted sums of the same tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError
from . import attention, autocast, flops
from .compiling import constant_result
from .operands import check_maps

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mix_maps(maps: list[Tensor], weights: Tensor) -> Tensor:
    """``L`` sums of ``M`` feature maps, each with weights of its own.

    On a GPU two Triton kernels read each map once, forward and backward, and sum in fp32. Elsewhere it is one matrix
    product of the weights with the stacked maps. Under autocast the result has its dtype, as a product's.

    Args:
        maps: ``M`` tensors ``[N, D]`` of one dtype.
        weights: ``[L, M]``.

    Returns:
        ``[L, N, D]``. On a GPU it can be differentiated once.
    """
    if not _kernels_take(maps[0].device.type, maps[0].device.index, maps[0].dtype):
        return mix_maps_ref(maps, weights)
    device = maps[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps[0].dtype
    with autocast.off(device):
        return _mix_op(maps, weights, dtype)


def mix_maps_ref(maps: list[Tensor], weights: Tensor) -> Tensor:
    """`mix_maps` in plain PyTorch: ``[L, M] @ [M, N * D]``, of a copy of all maps."""
    return (weights @ torch.stack(maps).flatten(1)).view(len(weights), *maps[0].shape)


@constant_result
def _kernels_take(device_type: str, index: int | None, dtype: torch.dtype) -> bool:
    return device_type == "cuda" and dtype in DTYPES and not attention.why_not_triton(device_type, index)


# --- registration -----------------------------------------------------------------------------------------------------
@torch.library.custom_op("hdxray_fast::mix_maps", mutates_args=(), device_types=("cpu", "cuda"))
def _mix_op(maps: list[Tensor], weights: Tensor, dtype: torch.dtype) -> Tensor:
    check_maps(maps, weights)
    if not dtype.is_floating_point:
        raise ArgumentError(f"dtype: got {dtype}, accepted are floating-point dtypes")
    if not _run_kernels(maps[0]):
        return mix_maps_ref(maps, weights.to(maps[0].dtype)).to(dtype)
    from .triton import mixture as kernels

    return kernels.forward([x.contiguous() for x in maps], weights.float().contiguous(), dtype)


@_mix_op.register_fake
def _(maps, weights, dtype):
    check_maps(maps, weights)
    return maps[0].new_empty(weights.shape[0], *maps[0].shape, dtype=dtype)


@torch.library.custom_op("hdxray_fast::mix_maps_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _mix_backward_op(grads: Tensor, maps: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Gradients of the maps, and of the weights behind them."""
    check_maps(maps, weights, grads)
    if _run_kernels(maps[0]):
        from .triton import mixture as kernels

        *grad_maps, grad_weights = kernels.backward(
            grads.contiguous(), [x.contiguous() for x in maps], weights.float().contiguous()
        )
        return [*grad_maps, grad_weights.to(weights.dtype)]
    kind = maps[0].dtype
    flat = grads.flatten(1).to(kind)  # [L, N * D]
    grad_maps = (weights.t().to(kind) @ flat).view(len(maps), *maps[0].shape)
    grad_weights = flat @ torch.stack(maps).flatten(1).t()
    return [*(grad.clone() for grad in grad_maps), grad_weights.to(weights.dtype)]


@_mix_backward_op.register_fake
def _(grads, maps, weights):
    check_maps(maps, weights, grads)
    return [*(x.new_empty(x.shape) for x in maps), weights.new_empty(weights.shape)]


def _run_kernels(tensor: Tensor) -> bool:
    """The operators themselves: where there is no GPU, PyTorch's formula, or Triton's interpreter."""
    return tensor.dtype in DTYPES and not attention.why_not_triton(tensor.device.type, tensor.device.index)


def _save(ctx, inputs, output) -> None:
    maps, weights, _ = inputs
    ctx.save_for_backward(weights, *maps)


def _backward(ctx, grads):
    weights, *maps = ctx.saved_tensors
    *grad_maps, grad_weights = _mix_backward_op(grads, maps, weights)
    return grad_maps, grad_weights, None


_mix_op.register_autograd(_backward, setup_context=_save)
flops.count_mixture(torch.ops.hdxray_fast.mix_maps, torch.ops.hdxray_fast.mix_maps_backward)
