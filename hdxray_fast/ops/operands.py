"""What a registered operator looks at before it hands out a pointer, whoever called it.

The public functions check more, and say it in their words; but ``torch.ops.hdxray_fast.*`` can be called by anybody, a
saved graph included. The core and the kernels are told of sizes once, and everything else is read as far as these say:
so every count, dtype, device and layout is held against the others here, in the operators themselves and in their
stand-ins for tensors without values. The values of ids and ``cu_seqlens`` are :mod:`native`'s to look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError
from . import native
from .plan import MAX_PATCH_SIZE, check_tensor

KNOTS = 257  # of a table for uint16: at 0, 256, ..., 65536
TABLE_SIZES = {torch.uint8: 256, torch.uint16: KNOTS}
INT32_END = 2**31


def check_pixels(
    images: Tensor, ids: Tensor, cu_seqlens: Tensor, patch_size: int, which: str, grid: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """``images [B, C, H, W]`` (with a grid ``[N, C, p, p]``) and their packed patches; ids and cu_seqlens, contiguous.

    Raises:
        ArgumentError, ArgumentTypeError: names the argument that does not fit.
    """
    _check_patch_size(patch_size)
    check_tensor("images", images, tuple(native.DTYPE_CODES))
    if images.ndim != 4 or images.shape[1] not in native.CHANNELS:
        raise ArgumentError(f"images: got shape {tuple(images.shape)}, accepted is [B, C, H, W], C of 1 or 3")
    if which not in ("keep", "predict"):
        raise ArgumentError(f"which: got {which!r}, accepted are 'keep', 'predict'")
    ids, cu_seqlens = _check_packed(ids, cu_seqlens, images.device)
    if grid is None:
        _check_canvas("images", images.shape, cu_seqlens, patch_size)
        return ids, cu_seqlens
    if len(grid) != 2 or not all(1 <= side < INT32_END for side in grid) or grid[0] * grid[1] >= INT32_END:
        raise ArgumentError(f"grid: got {list(grid)}, accepted are (rows, columns) of patches")
    if images.shape[0] != ids.shape[0] or images.shape[2] != patch_size or images.shape[3] != patch_size:
        raise ArgumentError(
            f"images: got shape {tuple(images.shape)}, accepted are the pixels of {ids.shape[0]} patches, "
            f"[N, C, p, p] = [{ids.shape[0]}, {images.shape[1]}, {patch_size}, {patch_size}]"
        )
    return ids, cu_seqlens


def check_scaling(scale: Tensor | None, shift: Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor | None, ...]:
    """``scale`` and ``shift``, each ``[B]`` float32, contiguous, or None."""
    return _per_image("scale", scale, cu_seqlens), _per_image("shift", shift, cu_seqlens)


def check_rows(name: str, rows: Tensor, ids: Tensor, channels: int, patch_size: int) -> None:
    """``[N, C*p*p]`` of a float dtype: a row for each id."""
    check_tensor(name, rows, native.FLOAT_DTYPES, ids.device)
    size = channels * patch_size**2
    if rows.ndim != 2 or rows.shape[0] != ids.shape[0] or rows.shape[1] != size:
        raise ArgumentError(
            f"{name}: got shape {tuple(rows.shape)}, accepted for {ids.shape[0]} ids is "
            f"[N, C*p*p] = [{ids.shape[0]}, {size}]"
        )


def check_float_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in native.FLOAT_DTYPES:
        raise ArgumentError(f"{name}: got {dtype}, accepted are float32, float16, bfloat16")


def check_scatter(
    grad_rows: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    scale: Tensor | None,
    shape: Sequence[int],
    patch_size: int,
    image_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows that go back to images of ``shape``; ids, cu_seqlens and scale, contiguous."""
    _check_patch_size(patch_size)
    check_float_dtype("image_dtype", image_dtype)
    check_tensor("grad_rows", grad_rows, native.FLOAT_DTYPES)
    if len(shape) != 4 or any(side < 0 for side in shape) or shape[1] not in native.CHANNELS:
        raise ArgumentError(f"shape: got {list(shape)}, accepted is [B, C, H, W], C of 1 or 3")
    ids, cu_seqlens = _check_packed(ids, cu_seqlens, grad_rows.device)
    _check_canvas("shape", shape, cu_seqlens, patch_size)
    check_rows("grad_rows", grad_rows, ids, shape[1], patch_size)
    return ids, cu_seqlens, _per_image("scale", scale, cu_seqlens)


def check_view_operands(
    images: Tensor, affine: Tensor, table: Tensor | None, whose: str = ""
) -> tuple[Tensor, Tensor | None]:
    """``affine [B, 2, 3]`` float32 and ``table [B, 256]`` uint8 or ``[B, 257]`` uint16, contiguous.

    ``whose`` stands before their names in errors.
    """
    batch = images.shape[0]
    name = f"{whose}affine"
    check_tensor(name, affine, (torch.float32,), images.device)
    if affine.ndim != 3 or affine.shape[0] != batch or affine.shape[1] != 2 or affine.shape[2] != 3:
        raise ArgumentError(f"{name}: got shape {tuple(affine.shape)}, accepted is [B, 2, 3] = [{batch}, 2, 3]")
    if table is None:
        return affine.contiguous(), None
    name = f"{whose}table"
    if images.dtype not in TABLE_SIZES:
        raise ArgumentError(f"{name}: is for uint8 and uint16 images, but these are {images.dtype}; use None")
    check_tensor(name, table, (images.dtype,), images.device)
    size = TABLE_SIZES[images.dtype]
    if table.ndim != 2 or table.shape[0] != batch or table.shape[1] != size:
        got = f"got shape {tuple(table.shape)}, accepted for {images.dtype}"
        raise ArgumentError(f"{name}: {got} is [B, {size}] = [{batch}, {size}]")
    return affine.contiguous(), table.contiguous()


def check_upstream(grad_loss: Tensor, device: torch.device) -> None:
    """The gradient of the loss, ``[]`` float32."""
    check_tensor("grad_loss", grad_loss, (torch.float32,), device)
    if grad_loss.ndim != 0:
        raise ArgumentError(f"grad_loss: got shape {tuple(grad_loss.shape)}, accepted is [], one number")


def check_scaled_rows(grad_pred: Tensor, cu_seqlens: Tensor, grad_loss: Tensor) -> Tensor:
    """Rows that are multiplied where they lie: ``[N, R]``, contiguous. Gives cu_seqlens, contiguous."""
    check_tensor("grad_pred", grad_pred, native.FLOAT_DTYPES)
    if grad_pred.ndim != 2 or not grad_pred.is_contiguous():
        raise ArgumentError(f"grad_pred: got shape {tuple(grad_pred.shape)}, accepted is a contiguous [N, C*p*p]")
    check_upstream(grad_loss, grad_pred.device)
    return _check_vector("cu_seqlens", cu_seqlens, grad_pred.device, 1)


def check_maps(maps: list[Tensor], weights: Tensor, grads: Tensor | None = None) -> None:
    """``M`` maps of one shape, dtype and device, ``weights [L, M]``, and of the backward pass ``grads [L, *map]``."""
    if not maps:
        raise ArgumentError("maps: got none, accepted is one or more")
    first = maps[0]
    for i, one in enumerate(maps):
        if one.shape != first.shape or one.dtype != first.dtype or one.device != first.device:
            raise ArgumentError(
                f"maps: map {i} is {tuple(one.shape)} {one.dtype} on {one.device}, the first one "
                f"{tuple(first.shape)} {first.dtype} on {first.device}; they must be alike"
            )
    if not first.is_floating_point():
        raise ArgumentError(f"maps: got {first.dtype}, accepted are floating-point dtypes")
    if weights.ndim != 2 or weights.shape[0] < 1 or weights.shape[1] != len(maps):
        raise ArgumentError(f"weights: got shape {tuple(weights.shape)}, accepted is [L, M] = [L, {len(maps)}]")
    _check_floats("weights", weights, first.device)
    if grads is None:
        return
    if grads.shape != (weights.shape[0], *first.shape):
        raise ArgumentError(
            f"grads: got shape {tuple(grads.shape)}, accepted is [L, ...] = {[weights.shape[0], *first.shape]}"
        )
    _check_floats("grads", grads, first.device)


# --- parts ------------------------------------------------------------------------------------------------------------
def _check_patch_size(patch_size: int) -> None:
    if not 1 <= patch_size <= MAX_PATCH_SIZE:
        raise ArgumentError(f"patch_size: got {patch_size}, accepted is 1 to {MAX_PATCH_SIZE}")


def _check_canvas(name: str, shape: Sequence[int], cu_seqlens: Tensor, patch_size: int) -> None:
    batch, _, height, width = shape
    if batch != cu_seqlens.shape[0] - 1:
        raise ArgumentError(
            f"cu_seqlens: got {cu_seqlens.shape[0]} entries, accepted for a batch of {batch} images is B + 1"
        )
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ArgumentError(
            f"{name}: got {height} x {width} pixels, accepted are whole patches of {patch_size} x {patch_size}"
        )


def _check_packed(ids: Tensor, cu_seqlens: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return _check_vector("ids", ids, device, 0), _check_vector("cu_seqlens", cu_seqlens, device, 1)


def _check_vector(name: str, vector: Tensor, device: torch.device, least: int) -> Tensor:
    """An int32 vector of at least so many entries, contiguous."""
    check_tensor(name, vector, (torch.int32,), device)
    if vector.ndim != 1 or (least and vector.shape[0] < least):
        raise ArgumentError(
            f"{name}: got shape {tuple(vector.shape)}, accepted is a vector of {least or 'any number of'} entries"
            f"{' or more' if least else ''}"
        )
    return vector.contiguous()


def _per_image(name: str, value: Tensor | None, cu_seqlens: Tensor) -> Tensor | None:
    if value is None:
        return None
    check_tensor(name, value, (torch.float32,), cu_seqlens.device)
    if value.ndim != 1 or value.shape[0] != cu_seqlens.shape[0] - 1:
        batch = cu_seqlens.shape[0] - 1
        raise ArgumentError(f"{name}: got shape {tuple(value.shape)}, accepted is [B] = [{batch}]")
    return value.contiguous()


def _check_floats(name: str, tensor: Tensor, device: torch.device) -> None:
    if not tensor.is_floating_point() or tensor.device != device:
        raise ArgumentError(f"{name}: got {tensor.dtype} on {tensor.device}, accepted are floats on {device}")
